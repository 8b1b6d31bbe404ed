"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

Heavy modules are imported only when a run needs them, so that ``--help`` and messages about wrong
flags appear at once.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt1.runtime.errors import Stopped, report_errors
from gpt1.runtime.locks import RunLock
from gpt1.runtime.stopping import StopRequests, end_with_parent
from gpt1.settings.groups import OWN
from gpt1.settings.training import Settings, parse

if TYPE_CHECKING:
    from gpt1.training.runs import Result
    from gpt1.training.sources import Sources

PROGRAM = "python -m gpt1.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    The status is 0 for success, 2 for bad input, 1 for other failures, 143 if SIGTERM ended the run
    and 130 if SIGINT ended it.
    """
    return report_errors("gpt1 train", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    """Train; if a signal ends the run, add the command that continues it to the message."""
    if "WORLD_SIZE" in os.environ:
        end_with_parent()
    with StopRequests() as stop:
        try:
            return _train(argv, stop)
        except Stopped as error:
            stopped = Stopped(error.request, f"{error}; to go on: {_command_to_resume(argv)}")
            stopped.reported_elsewhere = os.environ.get("RANK", "0") != "0"
            raise stopped from None


def _train(argv: Sequence[str], stop: StopRequests) -> int:
    """Check the command line, then train here or in as many processes as there are GPUs."""
    with stop.held():  # An interrupted import of NumPy or torch fails.
        settings = parse(argv)
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            settings = replace(settings, resume=True)  # torchrun --max-restarts restarted it.
        from gpt1.datasets import find_task
        from gpt1.runtime import launcher
        from gpt1.runtime.ranks import joined
        from gpt1.training.runs import run_fine_tuning
        from gpt1.training.sources import find_sources

        task = find_task(settings)
        sources = find_sources(settings, task)
        if sources.demo:
            settings = settings.for_demo()
    stop.check()
    n = launcher.processes_to_start(settings.device, settings.n_gpu)
    if n > 1:
        return launcher.start_processes(main, argv, n)
    with RunLock() as lock, joined(settings.device, settings.n_gpu) as ranks:
        if ranks.is_main and sources.demo:
            _announce_demo(settings, sources)
        result = run_fine_tuning(settings, task, sources, ranks, stop, lock)
        if settings.analysis and ranks.is_main:
            _print_report(result, sources)
    return 0


def _print_report(result: Result, sources: Sources) -> None:
    """Print the report on the test split, or on the validation split if test labels are hidden."""
    from gpt1.reports.analysis import analyse
    from gpt1.reports.labelled import LabelledSplit

    data, stem = result.data, result.labelled
    labels = data.labels[stem]
    assert labels is not None  # The validation split has labels.
    split = LabelledSplit(task=data.task, stem=stem, labels=labels, source=str(sources.data_dir))
    print(analyse(split, result.outputs.submissions[stem], result.outputs.log))


def _command_to_resume(argv: Sequence[str]) -> str:
    """Return the command that continues this run."""
    words = [*argv, *(["--resume"] if "--resume" not in argv else [])]
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    program = PROGRAM.replace("python", "torchrun ...") if by_torchrun else PROGRAM
    return f"{program} {shlex.join(words)}"


def _announce_demo(settings: Settings, sources: Sources) -> None:
    """Print that the demo runs, and where to read about the real data and weights."""
    why = "data/ holds no ROCStories and neither --data_dir nor --model_dir was given"
    if settings.data_dir is not None or settings.model_dir is not None:
        why = "its directory was named"
    flags = f"--lr {settings.lr:g} --n_iter {settings.n_iter}"
    text = (
        f"This is the bundled demo: self-made stories ({sources.data_dir}/) and a small model "
        f"({sources.model_dir}/), trained with {flags}. It runs because {why}; README.md says how "
        "to get the real data and weights."
    )
    if settings.dataset == OWN:
        text = (
            f"This run starts from the demo's model in {sources.model_dir}/, which has a hundredth "
            f"of GPT-1's size, with {flags}; README.md says how to get the real one."
        )
    lines = textwrap.wrap(text, width=78)
    rule = "-" * max(map(len, lines))
    print("\n".join([rule, *lines, rule]), file=sys.stderr)
