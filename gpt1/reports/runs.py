"""Training runs as their logs tell them: evaluations, updates, best epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from gpt1.reports.analysis import LogLine, read_log
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text

SUFFIX = ".jsonl"
UPDATES_SUFFIX = ".updates.jsonl"


@dataclass(frozen=True, kw_only=True)
class UpdateLine:
    """One update, under the names of ``log/<desc>.updates.jsonl``.

    Attributes:
        n_updates: its number, from 1.
        clf_cost: mean cost of the choice, in nats a story; not finite if the run diverged.
        lm_cost: mean cost of the language model, in nats a token; None without that loss.
        lr: learning rate.
        grad_norm: norm of the gradient before clipping.
        time: seconds since 1970.
    """

    n_updates: int
    clf_cost: float
    lm_cost: float | None
    lr: float
    grad_norm: float
    time: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run.

    Attributes:
        name: its ``--desc``; with the directory if several runs have that name.
        evaluations: at least one, in the order of the log.
        updates: empty if there is no log of them.
    """

    name: str
    evaluations: list[LogLine]
    updates: list[UpdateLine]

    @property
    def best(self) -> LogLine:
        """The first evaluation of the highest validation accuracy: what ``--submit`` keeps."""
        return max(self.evaluations, key=lambda line: line.va_acc)

    @property
    def updates_a_second(self) -> float | None:
        """From the median time between two updates, which evaluations and pauses do not move."""
        gaps = [later.time - line.time for line, later in pairwise(self.updates)]
        typical = median(gaps) if gaps else 0.0
        return 1 / typical if typical > 0 else None


# Reading


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs whose evaluation logs are given, each with the log of updates beside it.

    The latter may be among ``paths``, as ``log/*.jsonl`` makes it; a log named twice counts once.

    Raises:
        InputError: a file is missing or is not what training writes; names file and line.
    """
    named = list(dict.fromkeys(map(Path, paths)))
    logs = [path for path in named if not path.name.endswith(UPDATES_SUFFIX)]
    for path in named:
        log = path.with_name(path.name.removesuffix(UPDATES_SUFFIX) + SUFFIX)
        if path not in logs and log not in logs:
            raise InputError(f"{path}: a log of updates; name the log of evaluations, {log}.")
    stems = [_stem(path) for path in logs]
    return [
        Run(
            name=stem.name if [other.name for other in stems].count(stem.name) == 1 else str(stem),
            evaluations=read_log(path),
            updates=_updates_beside(stem),
        )
        for path, stem in zip(logs, stems, strict=True)
    ]


def read_updates(path: str | Path) -> list[UpdateLine]:
    """The updates in a log of them, in order; none if the file is empty.

    Lines of events, which say ``event``, are left out.

    Raises:
        InputError: the file is missing, or a line is not what training writes; names the line
            and the field.
    """
    text = read_text(path, "the log of updates")
    lines: list[UpdateLine] = []
    for number, row in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        where = f"{path}, line {number}"
        values = _object(where, row)
        if "event" in values:
            continue
        line = _update_line(where, values)
        if lines and line.n_updates <= lines[-1].n_updates:
            raise InputError(
                f"{where}: expected an update after number {lines[-1].n_updates}, found number "
                f"{line.n_updates}; delete the lines that are twice."
            )
        lines.append(line)
    return lines


def _stem(log: Path) -> Path:
    """``log/a`` of ``log/a.jsonl``."""
    return log.with_name(log.name.removesuffix(SUFFIX))


def _updates_beside(stem: Path) -> list[UpdateLine]:
    path = stem.with_name(stem.name + UPDATES_SUFFIX)
    return read_updates(path) if path.exists() else []


_Check = tuple[Callable[[Any], bool], str]
_NUMBER: _Check = (lambda x: isinstance(x, float), "a number")
_CHECKS: dict[str, _Check] = {
    "n_updates": (
        lambda x: isinstance(x, float) and x >= 1 and x.is_integer(),
        "a whole number from 1",
    ),
    "lm_cost": (lambda x: x is None or isinstance(x, float), "a number or null"),
}


def _object(where: str, text: str) -> dict[str, Any]:
    """A line of a log as a JSON object."""
    try:  # all numbers as floats: no integer is then too long to read
        row = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: expected one JSON object, found {_shown(text)}; if a crash cut the line "
            "off, delete it."
        )
    return row


def _update_line(where: str, row: Mapping[str, Any]) -> UpdateLine:
    """One line with every field checked; fields of other names are left alone."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(UpdateLine)):
        is_right, expected = _CHECKS.get(name, _NUMBER)
        if name not in row or not is_right(row[name]):
            found = _shown(json.dumps(row[name])) if name in row else "nothing"
            raise InputError(
                f"{where}: expected {name} to be {expected}, found {found}; name a log of updates "
                "that training wrote."
            )
        values[name] = row[name]
    values["n_updates"] = int(values["n_updates"])
    return UpdateLine(**values)


def _shown(text: str) -> str:
    """A piece of a file as a message quotes it: short, on one line."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


# The table of best epochs

# Heading, decimals, value of a run; None is a dash.
_COLUMNS: tuple[tuple[str, int, Callable[[Run], float | None]], ...] = (
    ("valid acc %", 2, lambda run: run.best.va_acc),
    ("epoch", 0, lambda run: run.best.n_epochs),
    ("updates", 0, lambda run: run.best.n_updates),
    ("train acc %", 2, lambda run: run.best.tr_acc),
    ("train cost", 3, lambda run: run.best.tr_cost),
    ("valid cost", 3, lambda run: run.best.va_cost),
    ("updates/s", 2, lambda run: run.updates_a_second),
)
_SUMMARIES: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
    ("median", median),
    ("lowest", min),
    ("highest", max),
)


def table(runs: Sequence[Run]) -> str:
    """Each run at its best evaluation as aligned text; of several runs also median and range."""
    rows = [["run", *(heading for heading, _, _ in _COLUMNS)]]
    columns = [[value(run) for run in runs] for _, _, value in _COLUMNS]
    for i, run in enumerate(runs):
        rows.append([run.name, *_cells([column[i] for column in columns])])
    if len(runs) > 1:
        rows += [
            [name, *_cells([_summary(of, column) for column in columns])] for name, of in _SUMMARIES
        ]
    return align(rows, rules=(0, len(runs)) if len(runs) > 1 else (0,))


def align(rows: Sequence[Sequence[str]], rules: Sequence[int] = ()) -> str:
    """Cells as a table: the first column to the left, the others to the right.

    Args:
        rows: equally many cells each.
        rules: the rows under which a line is drawn.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
        if number in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def _cells(values: Sequence[float | None]) -> list[str]:
    return [
        "-" if value is None else _decimals(value, decimals)
        for value, (_, decimals, _) in zip(values, _COLUMNS, strict=True)
    ]


def _decimals(value: float, n: int) -> str:
    """Fixed decimals; of counts none, unless the median falls between two."""
    return f"{value:.{n}f}" if n else f"{value:.1f}".removesuffix(".0")


def _summary(of: Callable[[list[float]], float], column: Sequence[float | None]) -> float | None:
    """Of the values there are; not a number if one of them is not, as costs of a diverged run."""
    known = [value for value in column if value is not None]
    if not known:
        return None
    return math.nan if any(map(math.isnan, known)) else of(known)
