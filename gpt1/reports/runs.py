"""Make the table of the best epochs of training runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from gpt1.results.log_lines import Run

# Of each column: heading, number of decimals, value of a run; None is shown as a dash.
_COLUMNS: tuple[tuple[str, int, Callable[[Run], float | None]], ...] = (
    ("valid acc %", 2, lambda run: run.best.va_acc),
    ("epoch", 0, lambda run: run.best.n_epochs),
    ("updates", 0, lambda run: run.best.n_updates),
    ("train acc %", 2, lambda run: run.best.tr_acc),
    ("train cost", 3, lambda run: run.best.tr_cost),
    ("valid cost", 3, lambda run: run.best.va_cost),
    ("updates/s", 2, lambda run: run.updates_per_second),
)
_SUMMARIES: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
    ("median", median),
    ("lowest", min),
    ("highest", max),
)


def table(runs: Sequence[Run]) -> str:
    """Return a table of the best evaluation of each run; several runs have median and range too."""
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
    """Align cells as a table: the first column to the left, the others to the right.

    Args:
        rows: the cells of each row, equally many in all rows.
        rules: the rows below which a line is drawn.
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
    """Return a number with n decimals; with n = 0, the median of two counts may have one."""
    return f"{value:.{n}f}" if n else f"{value:.1f}".removesuffix(".0")


def _summary(of: Callable[[list[float]], float], column: Sequence[float | None]) -> float | None:
    """Summarise the known values of a column.

    Returns:
        NaN if a value is NaN, as that of a diverged run; None if no value is known.
    """
    known = [value for value in column if value is not None]
    if not known:
        return None
    return math.nan if any(map(math.isnan, known)) else of(known)
