"""Run the paper's experiments: ``gpt1 reproduce --data_dir DIR --model_dir DIR --out DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.commands.running import note, run_until_stopped
from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.reproduction import REPRODUCE, ReproductionSettings

if TYPE_CHECKING:
    from gpt1.reproduction.outcomes import Place
    from gpt1.reproduction.plan import Plan

COMMAND = REPRODUCE
MODULE = "python -m gpt1 reproduce"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    The status is 0 for success, 2 for bad input, 1 if a run failed, 143 if SIGTERM ended the
    program and 130 if SIGINT ended it.
    """
    words = sys.argv[1:] if argv is None else argv
    return run_until_stopped(COMMAND.program, MODULE, _reproduce, words, resume=())


def _reproduce(argv: Sequence[str], stop: StopRequests) -> int:
    """Make the runs that are not finished, and write the report."""
    with stop.held():  # An interrupted import of NumPy or torch fails.
        settings = ReproductionSettings.of(COMMAND.parse(argv))
        from gpt1.reproduction.outcomes import Place
        from gpt1.reproduction.plan import make_plan
        from gpt1.reproduction.report import write_report, write_tables
    stop.check()
    place = Place(Path(settings.out))
    if settings.report:
        _show_written(write_report(place))
        return 0
    plan = make_plan(settings)
    _show_plan(plan, place, with_runs=settings.dry_run)
    if settings.dry_run:
        return 0
    stop.where = "no run is under way, and the finished runs are kept"
    import gpt1
    from gpt1.reproduction.running import Functions, Work, make_runs
    from gpt1.training.console import say

    work = Work(
        place=place,
        functions=Functions(
            fine_tune=gpt1.fine_tune,
            zeroshot=lambda *args, **flags: gpt1.zeroshot(*args, **flags),
        ),
        say=lambda message: say(f"{COMMAND.program}: {message}"),
        finished=lambda: write_tables(place),
        keep_models=settings.keep_models,
        verbose=settings.verbose,
    )
    try:
        left = make_runs(plan.runs, work)
    except Gpt1Error:
        _show_written(write_report(place))
        raise
    if left:
        note(
            COMMAND.program,
            f"other processes are still making {len(left)} of the runs; they write the report, too",
        )
    _show_written(write_report(place))
    return 0


def _show_plan(plan: Plan, place: Place, *, with_runs: bool) -> None:
    """Print how many runs are finished and left, and with ``with_runs`` a line on each run."""
    from gpt1.reproduction.running import command_of, shown_time, time_left

    for text in plan.notes:
        note(COMMAND.program, text)
    outcomes = place.outcomes()
    for run in plan.runs if with_runs else ():
        print(f"{'done' if place.is_done(run) else 'left'}  {command_of(run, place)}")
    n_left = sum(not place.is_done(run) for run in plan.runs)
    seconds, n_unknown = time_left(plan.runs, outcomes)
    text = f"{len(plan.runs)} runs, {n_left} of them left"
    if n_left > n_unknown:
        text += f"; {n_left - n_unknown} take about {shown_time(seconds)}, one after another"
    if n_unknown and n_left > n_unknown:
        text += f", and of {n_unknown} no similar run is finished"
    note(COMMAND.program, text)


def _show_written(paths: Sequence[Path]) -> None:
    """Print the files of a report."""
    for path in paths:
        print(path)
