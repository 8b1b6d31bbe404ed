"""QQP: do two questions of the site Quora ask the same (1) or not (0)? (GLUE)

GLUE's training file has a few damaged rows, with too few fields or an empty question. They are left
out of the labelled splits. The test split must be complete, because a submission has all its rows.
"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.glue import FILES, read_unlabelled, remedy
from gpt1.datasets.labelled import make_splits, read_examples
from gpt1.datasets.tables import keep_rows, tsv_rows
from gpt1.tasks import ACCURACY, F1, Classes, Example, Similarity, Splits, Task

_TEXTS = ("question1", "question2")
_TARGET = Classes(("0", "1"))


def _read(folder: Path) -> Splits:
    dropped: list[str] = []
    train, valid = (_labelled(folder / name, dropped) for name in FILES[:2])
    test = read_unlabelled(folder / FILES[2], _TEXTS)
    notes = []
    if dropped:
        notes.append(
            f"QQP: {len(dropped)} rows with too few fields or an empty question are left out, the "
            f"first one in {dropped[0]}"
        )
    return make_splits(train, valid, {"QQP": test, "QQP.dev": valid}, _TARGET, notes)


def _labelled(path: Path, dropped: list[str]) -> list[Example]:
    """Read the examples of a file, and add the places of damaged rows to ``dropped``."""
    rows = tsv_rows(path, (*_TEXTS, "is_duplicate"), dropped=dropped)
    whole = keep_rows(path, rows, lambda cells: all(cell.strip() for cell in cells), dropped)
    return read_examples(whole, _TARGET)


QQP = Task(
    name="qqp",
    title="QQP",
    folders=("QQP", "qqp"),
    files=(FILES,),
    remedy=remedy("QQP"),
    read=_read,
    layout=Similarity(),
    target=_TARGET,
    metrics=(F1, ACCURACY),
)
