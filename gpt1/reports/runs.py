"""Make the table of the best epochs of training runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from gpt1.results.log_lines import Run
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import OutputSettings
from gpt1.settings.pretraining import PretrainOutputSettings

# Heading, decimals, value of a run; None is a dash. Columns without decimals hold counts. {} stands
# for the first metric, which runs of pretraining have none of.
_COLUMNS: tuple[tuple[str, int, Callable[[Run], float | None]], ...] = (
    ("valid {} %", 2, lambda run: None if run.is_pretraining else run.best.valid_score),
    ("epoch", 0, lambda run: run.best.n_epochs),
    ("updates", 0, lambda run: run.best.n_updates),
    ("train {} %", 2, lambda run: None if run.is_pretraining else run.best.train_score),
    ("train cost", 3, lambda run: run.best.figures["tr_cost"]),
    ("valid cost", 3, lambda run: run.best.figures["va_cost"]),
    ("perplexity", 2, lambda run: run.best.figures["va_ppl"] if run.is_pretraining else None),
    ("updates/s", 2, lambda run: run.updates_per_second),
)
_SUMMARIES: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
    ("median", median),
    ("lowest", min),
    ("highest", max),
)
# What the first line of a log may say differently of two runs that repeat one another.
_OUTPUTS = (*settings_of(OutputSettings), *settings_of(PretrainOutputSettings))
_MAY_DIFFER = {item.name for item in _OUTPUTS} | {
    "out",
    "seed",
    "device",
    "n_processes",
    "gpt1_version",
    "torch_version",
    "run_id",
    "time",
}


def table(runs: Sequence[Run]) -> str:
    """Return a table of the best evaluation of each run, with median and range of repetitions.

    Columns in which no run has a value are left out. The last three rows summarize runs that repeat
    one another (:func:`are_repetitions`). They are left out for other runs, whose median means
    nothing. No count is summarized: the median of the numbers of epochs means nothing either.
    """
    names = {run.best.metric.name for run in runs if not run.is_pretraining}
    metric = names.pop() if len(names) == 1 else "score"
    all_columns = {
        (heading.format(metric), decimals): [value(run) for run in runs]
        for heading, decimals, value in _COLUMNS
    }
    columns = {
        key: values for key, values in all_columns.items() if any(x is not None for x in values)
    }
    rows = [["run", *(heading for heading, _ in columns)]]
    for i, run in enumerate(runs):
        cells = [_cell(values[i], decimals) for (_, decimals), values in columns.items()]
        rows.append([run.name, *cells])
    if not are_repetitions(runs):
        return align(rows, rules=(0,))
    for name, of in _SUMMARIES:
        cells = [
            _cell(_summary(of, values), decimals) if decimals else ""
            for (_, decimals), values in columns.items()
        ]
        rows.append([name, *cells])
    return align(rows, rules=(0, len(runs)))


def are_repetitions(runs: Sequence[Run]) -> bool:
    """Return whether there are several runs with the same settings.

    Settings may differ in the seed, in the outputs, and in the machine and library versions.
    """
    first, *others = [
        {name: value for name, value in run.settings.items() if name not in _MAY_DIFFER}
        for run in runs
    ]
    return bool(others) and all(settings == first for settings in others)


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


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _summary(of: Callable[[list[float]], float], column: Sequence[float | None]) -> float | None:
    """Summarise the known values of a column.

    Returns:
        NaN if a value is NaN, as that of a diverged run; None if no value is known.
    """
    known = [value for value in column if value is not None]
    if not known:
        return None
    return math.nan if any(map(math.isnan, known)) else of(known)
