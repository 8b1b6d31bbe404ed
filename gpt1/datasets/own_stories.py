"""Read the stories of a user: a CSV of stories with two endings each, with or without answers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gpt1.datasets.story_cloze import COLUMNS, csv_rows, other_columns
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text


class _Form(NamedTuple):
    """The names of a CSV's columns; the columns of the label and the id may be missing."""

    sentences: tuple[str, ...]
    endings: tuple[str, str]
    label: str
    optional: tuple[str, ...]

    @property
    def required(self) -> tuple[str, ...]:
        """The required columns, which must have text in every row."""
        return (*self.sentences, *self.endings)


CLOZE = _Form(
    sentences=COLUMNS[1:5],
    endings=(COLUMNS[5], COLUMNS[6]),
    label=COLUMNS[7],
    optional=(COLUMNS[0], COLUMNS[7]),
)
SIMPLE = _Form(
    sentences=("story",), endings=("ending1", "ending2"), label="label", optional=("label",)
)


class Stories(NamedTuple):
    """Stories with two endings each, and their labels if they are known.

    The fields are those of :class:`gpt1.datasets.story_cloze.Cloze`.
    """

    stories: list[str]
    endings1: list[str]
    endings2: list[str]
    labels: list[int] | None


def read_stories(path: str | Path) -> Stories:
    """Read a CSV of stories as strictly as :func:`gpt1.datasets.story_cloze.read_cloze`.

    The file has one of two forms, which its header shows; the columns may have any order. The cloze
    form has the columns of the cloze CSVs, of which ``InputStoryid`` and ``AnswerRightEnding`` may
    be missing. The simple form has ``story,ending1,ending2`` and perhaps ``label``. A label is the
    number of the right ending, 1 or 2; all rows have one, or none has.

    Raises:
        InputError: the file cannot be read or breaks a rule; the message names the line, counted
            from 1.
    """
    rows = csv_rows(path, read_text(path, "the CSV of stories"))
    line, header = next(rows, (1, []))
    form = _form(f"{path}, line {line}", header)
    result, answers = Stories([], [], [], None), []
    for line, cells in rows:
        where = f"{path}, line {line}"
        row = _named(where, header, cells)
        _check_filled(where, form, row)
        result.stories.append(" ".join(row[name] for name in form.sentences))
        result.endings1.append(row[form.endings[0]])
        result.endings2.append(row[form.endings[1]])
        answers.append((line, row.get(form.label, "").strip()))
    if not answers:
        raise InputError(
            f"{path}, line 2: the file ends after its header, but at least one story was "
            "expected; add stories."
        )
    return result._replace(labels=_labels(path, form.label, answers))


def _form(where: str, header: list[str]) -> _Form:
    """Return the form of a header.

    Raises:
        InputError: the header has neither form; the message names the wrong column.
    """
    remedy = (
        f"make the first line {','.join(SIMPLE.required)}, with {SIMPLE.label} after them if the "
        f"answers are known, or {','.join(COLUMNS)}"
    )
    form = next((form for form in (CLOZE, SIMPLE) if set(form.required) & set(header)), None)
    if form is None:
        if header:
            raise other_columns(where, header, (*SIMPLE.required, *CLOZE.required), remedy)
        raise InputError(f"{where}: the file is empty or begins blank; {remedy}")
    twice = [name for name in header if header.count(name) > 1]
    missing = [name for name in form.required if name not in header]
    unknown = [name for name in header if name not in form.required + form.optional]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r:.40} is there twice; leave one out.")
    if missing:
        raise InputError(f"{where}: the header lacks {', '.join(missing)}; {remedy}")
    if unknown:
        raise InputError(f"{where}: there is no column {unknown[0]!r:.40}; {remedy}")
    return form


def _named(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    """Return the cells of a row by the names of their columns."""
    if not cells:
        raise InputError(f"{where}: the line is blank, but a story was expected; delete the line.")
    if len(cells) != len(header):
        raise InputError(
            f"{where}: the row has {len(cells)} cells, but {len(header)} were expected as in the "
            "header; put cells with commas in double quotes and add what is missing."
        )
    return dict(zip(header, cells, strict=True))


def _check_filled(where: str, form: _Form, row: dict[str, str]) -> None:
    for name in form.required:
        if not row[name].strip():
            raise InputError(
                f"{where}: {name} is empty, but text was expected; fill the cell or delete the row."
            )


def _labels(path: str | Path, column: str, answers: list[tuple[int, str]]) -> list[int] | None:
    """Return labels 0 or 1 for answers 1 or 2; None if no line has an answer."""
    first_line, first = answers[0]
    for line, answer in answers:
        if answer not in ("", "1", "2"):
            raise InputError(
                f"{path}, line {line}: {column} is {answer[:20]!r}, but 1 or 2 was expected; write "
                "the number of the right ending, or leave the column empty throughout."
            )
        if bool(answer) != bool(first):
            empty, filled = (line, first_line) if first else (first_line, line)
            raise InputError(
                f"{path}, line {empty}: {column} is empty, but line {filled} has an answer; give "
                "all answers or none."
            )
    return [int(answer) - 1 for _, answer in answers] if first else None
