"""MRPC: do two sentences of the news mean the same (1) or not (0)? (Dolan and Brockett 2005)

Users have the files of GLUE, or those of Microsoft with GLUE's list of the validation pairs.
"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.glue import FILES, read_labelled, read_unlabelled, remedy
from gpt1.datasets.labelled import complete_form, make_splits, read_examples
from gpt1.datasets.tables import Row, tsv_rows
from gpt1.tasks import ACCURACY, F1, Classes, Example, Similarity, Splits, Task

_IDS = ("#1 ID", "#2 ID")
_TEXTS = ("#1 String", "#2 String")
_LABEL = "Quality"
_TARGET = Classes(("0", "1"))

_PUBLISHED = ("msr_paraphrase_train.txt", "dev_ids.tsv")
_PUBLISHED_TEST = "msr_paraphrase_test.txt"
_FORMS = (FILES, (*_PUBLISHED, _PUBLISHED_TEST), (*_PUBLISHED, FILES[2]))


def _read(folder: Path) -> Splits:
    *_, test_file = form = complete_form(folder, _FORMS)
    if form == FILES:
        train, valid = (read_labelled(folder / name, _TEXTS, _LABEL, _TARGET) for name in form[:2])
    else:
        train, valid = _split_published(folder)
    if test_file == _PUBLISHED_TEST:
        test = read_labelled(folder / test_file, _TEXTS, _LABEL, _TARGET)
    else:
        test = read_unlabelled(folder / test_file, _TEXTS)
    return make_splits(train, valid, {"MRPC": test, "MRPC.dev": valid}, _TARGET)


def _split_published(folder: Path) -> tuple[list[Example], list[Example]]:
    """Return the training and the validation split, which are those of GLUE."""
    file, ids_file = (folder / name for name in _PUBLISHED)
    ids = {tuple(row.cells) for row in tsv_rows(ids_file, _IDS, names=_IDS)}
    parts: tuple[list[Row], list[Row]] = ([], [])
    for where, (first, second, *cells) in tsv_rows(file, (*_IDS, *_TEXTS, _LABEL)):
        parts[(first, second) in ids].append(Row(where, cells))
    train, valid = (read_examples(part, _TARGET) for part in parts)
    return train, valid


MRPC = Task(
    name="mrpc",
    title="MRPC",
    folders=("MRPC", "mrpc"),
    files=_FORMS,
    remedy=remedy("MRPC"),
    read=_read,
    layout=Similarity(),
    target=_TARGET,
    metrics=(F1, ACCURACY),
)
