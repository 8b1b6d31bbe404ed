"""MNLI: does a hypothesis follow from a premise, contradict it, or neither? (Williams et al. 2018)

There are two validation and two test splits: "matched" ones with texts of the kinds that the
training split has, and "mismatched" ones with other kinds. The matched ones decide.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from gpt1.datasets.glue import read_labelled, read_unlabelled, remedy
from gpt1.datasets.labelled import make_splits
from gpt1.tasks import ACCURACY, Classes, Entailment, Splits, Task

_TEXTS = ("sentence1", "sentence2")
_LABEL = "gold_label"
_TARGET = Classes(("contradiction", "entailment", "neutral"))

_FILES = (
    "train.tsv",
    "dev_matched.tsv",
    "dev_mismatched.tsv",
    "test_matched.tsv",
    "test_mismatched.tsv",
)
_DIAGNOSTIC = tuple(
    Path(folder, name)
    for folder, name in product(
        (".", "../diagnostic", "../AX", "../ax"), ("diagnostic.tsv", "AX.tsv", "ax.tsv")
    )
)
"""Where GLUE's diagnostic split may be, as seen from the folder of MNLI."""


def _read(folder: Path) -> Splits:
    train, matched, mismatched = (
        read_labelled(folder / name, _TEXTS, _LABEL, _TARGET) for name in _FILES[:3]
    )
    tests = (read_unlabelled(folder / name, _TEXTS) for name in _FILES[3:])
    predicted = dict(zip(("MNLI-m", "MNLI-mm"), tests, strict=True))
    predicted |= {"MNLI-m.dev": matched, "MNLI-mm.dev": mismatched}
    diagnostic = next((folder / path for path in _DIAGNOSTIC if (folder / path).exists()), None)
    if diagnostic is not None:
        predicted["AX"] = read_unlabelled(diagnostic, _TEXTS)
    return make_splits(train, matched, predicted, _TARGET)


MNLI = Task(
    name="mnli",
    title="MNLI",
    folders=("MNLI", "mnli"),
    files=(_FILES,),
    remedy=remedy("MNLI"),
    read=_read,
    layout=Entailment(),
    target=_TARGET,
    metrics=(ACCURACY,),
)
