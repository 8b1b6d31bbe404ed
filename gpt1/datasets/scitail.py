"""SciTail: does a science sentence follow from a text of the web or not? (Khot et al. 2018)"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.labelled import make_splits, read_examples
from gpt1.datasets.tables import tsv_rows
from gpt1.tasks import ACCURACY, Classes, Entailment, Splits, Task

_FILES = ("scitail_1.0_train.tsv", "scitail_1.0_dev.tsv", "scitail_1.0_test.tsv")
_COLUMNS = ("premise", "hypothesis", "label")
"""The columns of the files, which have no header."""

_TARGET = Classes(("entails", "neutral"))


def _read(folder: Path) -> Splits:
    train, valid, test = (
        read_examples(tsv_rows(folder / name, _COLUMNS, names=_COLUMNS), _TARGET) for name in _FILES
    )
    return make_splits(train, valid, {"SciTail": test, "SciTail.dev": valid}, _TARGET)


SCITAIL = Task(
    name="scitail",
    title="SciTail",
    folders=("SciTail", "scitail", "SciTailV1.1/tsv_format"),
    files=(_FILES,),
    remedy=(
        "get SciTail at https://allenai.org/data/scitail and put the files of its folder "
        "tsv_format there"
    ),
    read=_read,
    layout=Entailment(),
    target=_TARGET,
    metrics=(ACCURACY,),
)
