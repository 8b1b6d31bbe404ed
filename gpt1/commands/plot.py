"""See what a run did and where a model looks: ``gpt1 plot --help``.

Learning curves, the table of best epochs and TensorBoard's files are made from logs alone. The
pictures of attention, in :mod:`gpt1.commands.plot_attention`, need a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING

from gpt1.commands.plot_attention import ATTENTION, AVERAGE, PROGRAM, draw_average, draw_maps
from gpt1.commands.running import Body, note, note_written, run_one_of
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting

if TYPE_CHECKING:
    from gpt1.results.log_lines import Run

_LOG = "log/<desc>.jsonl of a run; log/<desc>.updates.jsonl is read from beside it"


@dataclass(frozen=True, kw_only=True)
class CurvesSettings:
    """Logs and picture."""

    logs: tuple[str, ...] = setting(MISSING, _LOG, argument=True, metavar="FILE")
    out: str = setting(MISSING, "the picture: .png, .svg or .pdf", metavar="FILE")
    smooth: int | None = setting(
        None, "updates that a thick line averages [a twentieth of each run]", at_least(1)
    )


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Logs."""

    logs: tuple[str, ...] = setting(MISSING, _LOG, argument=True, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class TensorBoardSettings:
    """Log and output."""

    log: str = setting(MISSING, "log/<desc>.jsonl of a run", argument=True, metavar="FILE")
    out: str = setting(
        MISSING,
        "directory of the event files; what TensorBoard shows of it is replaced",
        metavar="DIR",
    )


CURVES = Command(
    name="plot curves",
    summary="Draw learning curves from logs.",
    groups=(CurvesSettings,),
    examples="""\
  # learning curves of two runs over one another
  gpt1 plot curves log/seed42.jsonl log/seed43.jsonl --out out/curves.png""",
)
TABLE = Command(
    name="plot table",
    summary="Print the best epoch of each run.",
    groups=(TableSettings,),
    examples="""\
  # the best epochs of all runs
  gpt1 plot table log/*.jsonl""",
)
TENSORBOARD = Command(
    name="plot tensorboard",
    summary="Write the figures of a run for TensorBoard.",
    groups=(TensorBoardSettings,),
    examples="""\
  # the curves as TensorBoard shows them
  gpt1 plot tensorboard log/rocstories.jsonl --out out/tensorboard""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 2 for bad input, 1 for other failures."""
    bodies: dict[Command, Body] = {
        CURVES: _curves,
        TABLE: _table,
        TENSORBOARD: _tensorboard,
        ATTENTION: draw_maps,
        AVERAGE: draw_average,
    }
    summary = "See what a run did, from its logs, and where a model looks."
    return run_one_of(PROGRAM, summary, bodies, argv)


def _curves(values: Values) -> None:
    from gpt1.reports import figures, learning_curves
    from gpt1.results.log_lines import read_runs

    given = values[CurvesSettings]
    figures.check_picture(given.out)
    runs = read_runs(given.logs)
    _note_missing_updates(runs)
    figures.save(learning_curves.curves(runs, given.smooth), given.out)
    note_written(PROGRAM, given.out)


def _table(values: Values) -> None:
    from gpt1.reports.runs import table
    from gpt1.results.log_lines import read_runs

    print(table(read_runs(values[TableSettings].logs)))


def _tensorboard(values: Values) -> None:
    from gpt1.results.log_lines import read_runs
    from gpt1.results.tensorboard import write_run

    given = values[TensorBoardSettings]
    (run,) = read_runs([given.log])
    _note_missing_updates([run])
    write_run(run, given.out)
    note_written(PROGRAM, given.out)


def _note_missing_updates(runs: Sequence[Run]) -> None:
    names = [run.name for run in runs if not run.updates]
    if names:
        note(PROGRAM, f"no log of updates beside the log of {', '.join(names)}: evaluations only")
