"""Run the paper's experiments: ``gpt1 reproduce --data_dir DIR --model_dir DIR --out DIR``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.commands.running import note, run_until_stopped
from gpt1.runtime.errors import Gpt1Error, InputError, report_errors
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.reproduction import REPRODUCE, ReproductionSettings
from gpt1.settings.words import counted

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
        if "WORLD_SIZE" in os.environ:
            raise InputError("torchrun: several runs at a time are made with --jobs; start without")
        from gpt1.reproduction.jobs import start_jobs
        from gpt1.reproduction.outcomes import Place
        from gpt1.reproduction.plan import make_plan
        from gpt1.reproduction.report import check_own
    stop.where = "the results of finished runs are kept"
    stop.check()
    place = Place(Path(settings.out))
    check_own(place)
    if settings.report:
        _report(place)
        return 0
    plan = make_plan(settings)
    _show_plan(plan, place, settings)
    if settings.dry_run:
        return 0
    n_left = sum(not place.is_done(run) for run in plan.runs)
    jobs = _jobs(settings, argv)[:n_left]
    try:
        status = start_jobs(work, jobs) if len(jobs) > 1 else _make_runs(settings, plan, place)
    except Gpt1Error:
        _report(place, may_be_empty=True)
        raise
    _report(place, may_be_empty=True)  # Other processes may be making all runs.
    return status


def _jobs(settings: ReproductionSettings, argv: Sequence[str]) -> list[list[str]]:
    """Return the words of the command line of each process that makes runs."""
    import torch

    n_gpus = torch.cuda.device_count() if settings.device is None else 0
    places = [["--device", f"cuda:{number}"] for number in range(n_gpus)] or [[]]
    n = settings.jobs or len(places)
    return [[*argv, *places[number % len(places)]] for number in range(n)]


def work(argv: Sequence[str]) -> int:
    """Make runs in one of several processes; return the exit status as :func:`main` does."""

    def body() -> int:
        from gpt1.reproduction.outcomes import Place
        from gpt1.reproduction.plan import make_plan

        settings = ReproductionSettings.of(COMMAND.parse(argv))
        return _make_runs(settings, make_plan(settings), Place(Path(settings.out)))

    def run() -> int:
        with StopRequests():
            return body()

    return report_errors(COMMAND.program, run)


def _make_runs(settings: ReproductionSettings, plan: Plan, place: Place) -> int:
    """Make the runs of a plan in this process."""
    import gpt1
    from gpt1.reproduction.report import write_tables
    from gpt1.reproduction.running import Functions, Work, make_runs
    from gpt1.training.console import say

    left = make_runs(
        plan.runs,
        Work(
            place=place,
            functions=Functions(
                fine_tune=gpt1.fine_tune,
                zeroshot=lambda *args, **flags: gpt1.zeroshot(*args, **flags),
            ),
            say=lambda message: say(f"{COMMAND.program}: {message}"),
            finished=lambda: write_tables(place),
            keep_models=settings.keep_models,
            verbose=settings.verbose,
        ),
    )
    if left:
        note(COMMAND.program, f"other processes are still making {counted(len(left), 'run')}")
    return 0


def _show_plan(plan: Plan, place: Place, settings: ReproductionSettings) -> None:
    """Print how many runs are left; for a dry run a line on each, with its command if verbose."""
    from gpt1.reproduction.outcomes import shown_left
    from gpt1.reproduction.running import command_of

    for text in plan.notes:
        note(COMMAND.program, text)
    for run in plan.runs if settings.dry_run else ():
        text = command_of(run, place) if settings.verbose else run.name
        print(f"{'done' if place.is_done(run) else 'left'}  {text}")
    note(COMMAND.program, shown_left(plan.runs, place))


def _report(place: Place, *, may_be_empty: bool = False) -> None:
    """Write the report and print the paths of its files.

    Args:
        place: the directory of the results.
        may_be_empty: whether to write nothing if no run is finished, and not to fail.
    """
    from gpt1.reproduction.report import write_report

    if may_be_empty and not place.outcomes():
        return
    for path in write_report(place, lambda text: note(COMMAND.program, text)):
        print(path)
