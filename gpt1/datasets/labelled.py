"""Make examples and splits of the rows that :mod:`gpt1.datasets.tables` reads, and check them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gpt1.datasets.tables import COPY, Row
from gpt1.runtime.errors import InputError
from gpt1.runtime.json_files import shown
from gpt1.tasks import Classes, Example, Grades, Splits

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # JSON can spell these characters
_GRADE = re.compile(r"[0-9]+(\.[0-9]*)?")


def complete_form(folder: Path, forms: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first of several forms of a data set of which a folder has all files.

    If no form is complete, it is the first one.
    """
    complete = (form for form in forms if all(os.path.exists(folder / name) for name in form))
    return next(complete, forms[0])


def read_examples(rows: Iterable[Row], target: Classes | Grades | None) -> list[Example]:
    """Make an example of each row.

    Args:
        rows: the texts of each example, followed by the label if there is a target.
        target: how labels are spelled; None if the labels are not known.

    Raises:
        InputError: a text is empty or a label wrong; the message names the row.
    """
    examples = []
    for where, cells in rows:
        texts = cells if target is None else cells[:-1]
        for number, text in enumerate(texts, 1):
            check_text(where, text, "the text" if len(texts) == 1 else f"text {number}")
        label = None if target is None else _label(where, cells[-1].strip(), target)
        examples.append(Example(tuple(texts), label, where))
    return examples


def check_text(where: str, text: str, what: str) -> None:
    """Refuse a text that is blank, or that holds a character that no text file can hold.

    Args:
        where: the place of the text, for the message.
        text: the text.
        what: what the text is, for the message.
    """
    if not text.strip():
        raise InputError(
            f"{where}: {what} is empty, but text was expected; fill it in or delete the row."
        )
    if _NO_TEXT.search(text):
        raise InputError(
            f"{where}: {what} has a NUL character or half of a surrogate pair; {COPY}."
        )


def _label(where: str, cell: str, target: Classes | Grades) -> float:
    """Return the label that a cell spells."""
    if isinstance(target, Classes):
        if cell in target.names:
            return target.names.index(cell)
        expected = " or ".join(repr(name) for name in target.names)
        raise InputError(
            f"{where}: the label is {shown(cell)}, but {expected} was expected; {COPY}."
        )
    if not _GRADE.fullmatch(cell) or not target.lowest <= float(cell) <= target.highest:
        raise InputError(
            f"{where}: the grade is {shown(cell)}, but a number from {target.lowest:g} to "
            f"{target.highest:g} was expected; {COPY}."
        )
    return float(cell)


def make_splits(
    train: list[Example],
    valid: list[Example],
    predicted: Mapping[str, list[Example]],
    target: Classes | Grades,
    notes: Sequence[str] = (),
) -> Splits:
    """Return the splits of a data set, after a check that a model can learn its labels.

    Raises:
        InputError: all training examples have one label, or a class of the validation split is not
            in the training split.
    """
    trained = {example.label for example in train}
    file = train[0].source.rpartition(",")[0]
    if len(trained) < 2:
        label = target.spell(train[0].label or 0)
        raise InputError(
            f"{file}: every label is {label}, but training needs at least two different ones; get "
            "a complete copy."
        )
    for example in valid if isinstance(target, Classes) else ():
        if example.label not in trained:
            raise InputError(
                f"{example.source}: the label {target.spell(example.label or 0)} is not in the "
                f"training split ({os.path.basename(file)}); get complete copies of both files."
            )
    return Splits(train, valid, predicted, tuple(notes))
