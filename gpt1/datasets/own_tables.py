"""Read the tables of a user row by row: CSV, tab-separated values, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpt1.datasets.story_cloze import csv_rows
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_lines, read_text
from gpt1.runtime.json_files import shown
from gpt1.settings.words import did_you_mean, shorten

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_WHAT = "the table of examples"


class Table(NamedTuple):
    """The rows of a file.

    Attributes:
        path: the file, for messages.
        columns: the names of its columns.
        rows: for each row its place, such as ``a.csv, line 2``, and its cells by column.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[str, dict[str, str]]]

    def require(self, columns: list[str], flag: str) -> None:
        """Check that the table has these columns.

        Args:
            columns: the names.
            flag: the flag that names such columns, for the message.

        Raises:
            InputError: a column is not there; the message names those that are, and the most
                similar one.
        """
        missing = [name for name in columns if name not in self.columns]
        if not missing:
            return
        there = ", ".join(shorten(name, 20) for name in self.columns[:8])
        more = f" and {len(self.columns) - 8} more" if len(self.columns) > 8 else ""
        guess = did_you_mean(missing[0], self.columns)
        raise InputError(
            f"{self.path}, line 1: there is no column {shorten(missing[0], 40)}{guess}"
            f"{' Give' if guess else '; give'} {flag} with names among these: {there}{more}"
            f"{self._other_separator()}"
        )

    def _other_separator(self) -> str:
        """Return a remark if the header looks as if other characters separated its columns."""
        own = {".csv": ",", ".tsv": "\t"}.get(self.path.suffix)
        names = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
        for separator, name in names.items():
            if own and separator != own and len(self.columns) == 1 and separator in self.columns[0]:
                return (
                    f". The columns seem to be separated by {name}, but {names[own]} were expected "
                    f"in a {self.path.suffix} file"
                )
        return ""


def read_table(path: str | Path) -> Table:
    """Read a table, whose format follows from the end of the file's name.

    A ``.csv`` file has commas, and cells with commas, quotes or newlines are in double quotes. A
    ``.tsv`` file has tabs and no quotes. Both begin with a header. A ``.jsonl`` or ``.json`` file
    has one JSON object per line; null and a missing value count as an empty cell.

    Raises:
        InputError: the file cannot be read or breaks one of these rules; the message names the
            line, counted from 1.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: the name ends in {path.suffix or 'no suffix'!r}, but {', '.join(SUFFIXES)} "
            "were expected; save the table in one of these formats."
        )
    if path.suffix in (".csv", ".tsv"):
        table = _with_header(path, _lines_of_cells(path))
    else:
        rows = list(_json_rows(path))
        table = Table(path, list({name: None for _, row in rows for name in row}), rows)
    if not table.rows:
        raise InputError(
            f"{path}, line {2 if table.columns else 1}: the file ends, but at least one row was "
            "expected; add rows."
        )
    return table


def _lines_of_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line on which a row begins, and the cells of the row."""
    if path.suffix == ".csv":
        yield from csv_rows(path, read_text(path, _WHAT))
        return
    for number, line in enumerate(read_lines(path, _WHAT), start=1):
        yield number, line.split("\t") if line else []


def _with_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Table:
    """Return the rows by the names of the columns, which the first row holds."""
    line, header = next(lines, (1, []))
    columns = [name.strip() for name in header]
    twice = [name for name in columns if name and columns.count(name) > 1]
    if not any(columns):
        raise InputError(
            f"{path}, line {line}: the line is blank or missing, but the names of the columns were "
            "expected, such as text and label; write them into the first line."
        )
    if twice:
        raise InputError(
            f"{path}, line {line}: the column {shorten(twice[0], 40)!r} is there twice; rename one "
            "of the two."
        )
    rows = []
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) != len(columns):
            raise InputError(f"{where}: {_wrong_number(path, cells, len(columns))}")
        rows.append((where, dict(zip(columns, cells, strict=True))))
    return Table(path, columns, rows)


def _wrong_number(path: Path, cells: list[str], n_columns: int) -> str:
    """Return what is wrong with a row that has not as many cells as there are columns."""
    if not cells:
        return "the line is blank, but a row was expected; delete the line."
    remedy = {
        ".csv": "put cells with commas in double quotes, and add what is missing.",
        ".tsv": "take tabs and line ends out of the texts, and add what is missing.",
    }[path.suffix]
    n = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
    return f"the row has {n}, but {n_columns} were expected as in the header; {remedy}"


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the values of each JSON object of a file."""
    for number, line in enumerate(read_lines(path, _WHAT), start=1):
        where = f"{path}, line {number}"
        try:  # A number stays as it is written: as a label it is a name like others.
            values = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputError(
                f"{where}: expected one JSON object, such as "
                f'{{"text": "a text", "label": "good"}}, found {shown(line)}; write each example '
                "on a line of its own."
            )
        yield where, {name: _cell(where, name, value) for name, value in values.items()}


def _cell(where: str, name: str, value: object) -> str:
    """Return a value from JSON as a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        raise InputError(
            f"{where}: {shorten(name, 40)} is {shown(json.dumps(value))}, but a text or a number "
            "was expected; give each text a name of its own."
        )
    return value
