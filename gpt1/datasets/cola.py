"""CoLA: is a sentence acceptable English (1) or not (0)? (Warstadt et al. 2018, GLUE)"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.glue import FILES, read_unlabelled, remedy
from gpt1.datasets.labelled import make_splits, read_examples
from gpt1.datasets.tables import tsv_rows
from gpt1.tasks import ACCURACY, MATTHEWS, Classes, Classification, Example, Splits, Task

_NAMES = ("source", "label", "original mark", "sentence")
"""The columns of the training and the validation file, which have no header."""

_TARGET = Classes(("0", "1"))


def _read(folder: Path) -> Splits:
    train, valid = (_labelled(folder / file) for file in FILES[:2])
    test = read_unlabelled(folder / FILES[2], ("sentence",))
    return make_splits(train, valid, {"CoLA": test, "CoLA.dev": valid}, _TARGET)


def _labelled(path: Path) -> list[Example]:
    return read_examples(tsv_rows(path, ("sentence", "label"), names=_NAMES), _TARGET)


COLA = Task(
    name="cola",
    title="CoLA",
    folders=("CoLA", "cola"),
    files=(FILES,),
    remedy=remedy("CoLA"),
    read=_read,
    layout=Classification(),
    target=_TARGET,
    metrics=(MATTHEWS, ACCURACY),
)
