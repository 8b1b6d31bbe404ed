"""Read tables of texts row by row: tab-separated files, and files of JSON lines.

A field of a tab-separated file is never quoted. A double quote is a character like any other, and
Python's usual quoting would silently merge rows that begin with one. Lines end in LF or CRLF only:
other characters that Python takes for line ends, such as U+2028, may stand in a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import iter_lines
from gpt1.runtime.json_files import parse_object, shown
from gpt1.settings.words import shorten

COPY = "get an unchanged copy of the file"


class Row(NamedTuple):
    """Some cells of a row, and the file and line where the row is, for messages."""

    where: str
    cells: list[str]


def tsv_rows(
    path: str | Path,
    columns: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    least: int | None = None,
    dropped: list[str] | None = None,
) -> Iterator[Row]:
    """Yield some columns of a tab-separated file.

    Args:
        path: the file, in UTF-8 with or without a byte-order mark.
        columns: the names of the columns to return, in this order.
        names: the names of all columns, if the file has no header [the first line].
        least: the smallest number of fields in a row [as many as there are columns].
        dropped: the places of rows with too few fields are added here, and the rows are left out
            [such a row is an error].

    Raises:
        InputError: the file cannot be read, lacks a column or has no rows, or a row has another
            number of fields. The message names the line, counted from 1.
    """
    lines = _lines(path)
    end = f"{path}, line 1: the file is empty"
    if names is None:
        end = f"{path}, line 2: the file ends after its header"
        where, line = next(lines, (f"{path}, line 1", ""))
        names = [name.strip() for name in line.split("\t")]
        _check_header(where, names, columns)
    places = [names.index(column) for column in columns]
    least = max(len(names) if least is None else least, *(place + 1 for place in places))
    most = len(names)
    where = ""
    for where, line in lines:
        fields = line.split("\t")
        if dropped is not None and len(fields) < least:
            dropped.append(where)
        elif least <= len(fields) <= most:
            yield Row(where, [fields[place] for place in places])
        else:
            raise _wrong_number(where, line, names, least)
    if not where:
        raise _no_rows(end)


def jsonl_rows(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yield some values of a file with one JSON object per line; these values must be texts.

    Args:
        path: the file, in UTF-8.
        columns: the names of the values to return, in this order.

    Raises:
        InputError: the file cannot be read or is empty, or a line is not such an object. The
            message names the line, counted from 1.
    """
    where = ""
    for where, line in _lines(path):
        values = parse_object(line, where, COPY)
        for column in columns:
            if not isinstance(values.get(column), str):
                found = shown(str(values[column])) if column in values else "nothing"
                raise InputError(f"{where}: expected {column} to be a text, found {found}; {COPY}.")
        yield Row(where, [values[column] for column in columns])
    if not where:
        raise _no_rows(f"{path}, line 1: the file is empty")


def keep_rows(
    path: str | Path, rows: Iterable[Row], is_kept: Callable[[list[str]], bool], dropped: list[str]
) -> Iterator[Row]:
    """Yield the rows of a file that can be used, and add the places of the others to ``dropped``.

    Args:
        path: the file, for the message.
        rows: the rows.
        is_kept: takes the cells of a row.
        dropped: is extended.

    Raises:
        InputError: no row can be used.
    """
    n_kept = 0
    for row in rows:
        if is_kept(row.cells):
            n_kept += 1
            yield row
        else:
            dropped.append(row.where)
    if not n_kept:
        raise InputError(f"{path}: none of the rows can be used; {COPY}.")


def check_no_nul(where: str, line: str) -> None:
    """Refuse a line with a NUL character, which the readers of Python would accept."""
    if "\0" in line:
        raise InputError(
            f"{where}: there is a NUL character, which no text has; save the file as UTF-8 text "
            "or get an undamaged copy."
        )


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file, each with its place."""
    for number, line in enumerate(iter_lines(path, "the data file"), 1):
        where = f"{path}, line {number}"
        check_no_nul(where, line)
        yield where, line


def _no_rows(end: str) -> InputError:
    return InputError(f"{end}, but at least one row was expected; get a complete copy.")


def _check_header(where: str, names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise an :class:`InputError` if the header of a file lacks one of ``columns``."""
    missing = [column for column in columns if column not in names]
    if not missing:
        return
    found = ", ".join(repr(shorten(name, 20)) for name in names[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    found = f"the columns {found}{more}" if any(names) else "a blank line or none"
    raise InputError(
        f"{where}: found {found}, but a header with {', '.join(missing)} was expected, with tabs "
        f"between the names; {COPY}, or name the data set to which it belongs with --dataset."
    )


def _wrong_number(where: str, line: str, names: Sequence[str], least: int) -> InputError:
    """Make the error for a row with another number of fields than the file has columns."""
    if not line.strip():
        return InputError(f"{where}: the line is blank, but a row was expected; delete the line.")
    n, most = line.count("\t") + 1, len(names)
    expected = f"{most}" if least == most else f"{least} to {most}"
    shown_names = ", ".join(shorten(name, 20) for name in names[:16])
    return InputError(
        f"{where}: the row has {n} {'field' if n == 1 else 'fields'}, but {expected} were expected "
        f"({shown_names}), with tabs between them; {COPY}."
    )
