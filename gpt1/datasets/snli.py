"""SNLI: does a hypothesis follow from a caption, contradict it, or neither? (Bowman et al. 2015)

Each file may be of the form ``.jsonl`` or ``.txt``. The label "-" says that no three of the five
annotators agreed; such pairs are left out, as in the literature.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from gpt1.datasets.labelled import complete_form, make_splits, read_examples
from gpt1.datasets.tables import Row, jsonl_rows, keep_rows, tsv_rows
from gpt1.tasks import ACCURACY, Classes, Entailment, Splits, Task

_COLUMNS = ("sentence1", "sentence2", "gold_label")
_NO_MAJORITY = "-"
_TARGET = Classes(("contradiction", "entailment", "neutral"))

_FORMS = tuple(
    product(
        *(
            [f"snli_1.0_{split}.jsonl", f"snli_1.0_{split}.txt"]
            for split in ("train", "dev", "test")
        )
    )
)


def _read(folder: Path) -> Splits:
    files = complete_form(folder, _FORMS)
    dropped: list[str] = []
    train, valid, test = (
        read_examples(_with_majority(folder / name, dropped), _TARGET) for name in files
    )
    notes = []
    if dropped:
        notes.append(
            f"SNLI: {len(dropped)} pairs are left out because their label is {_NO_MAJORITY!r}, "
            "which means that the annotators had no majority"
        )
    return make_splits(train, valid, {"SNLI": test, "SNLI.dev": valid}, _TARGET, notes)


def _with_majority(path: Path, dropped: list[str]) -> Iterator[Row]:
    """Yield the pairs of a file; add the places of those without a majority to ``dropped``."""
    is_json = path.suffix == ".jsonl"
    rows = jsonl_rows(path, _COLUMNS) if is_json else tsv_rows(path, _COLUMNS, least=10)
    return keep_rows(path, rows, lambda cells: cells[-1] != _NO_MAJORITY, dropped)


SNLI = Task(
    name="snli",
    title="SNLI",
    folders=("SNLI", "snli", "snli_1.0"),
    files=_FORMS,
    remedy="get SNLI 1.0 at https://nlp.stanford.edu/projects/snli/ and put its files there",
    read=_read,
    layout=Entailment(),
    target=_TARGET,
    metrics=(ACCURACY,),
)
