"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

Heavy modules are imported only when a run needs them, so that ``--help`` and messages about wrong
flags appear at once.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt1.commands.running import is_restarted, run_until_stopped
from gpt1.runtime.locks import RunLock
from gpt1.runtime.stopping import StopRequests
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
    words = sys.argv[1:] if argv is None else argv
    return run_until_stopped("gpt1 train", PROGRAM, _train, words)


def _train(argv: Sequence[str], stop: StopRequests) -> int:
    """Check the command line, then train here or in as many processes as there are GPUs."""
    with stop.held():  # An interrupted import of NumPy or torch fails.
        settings = parse(argv)
        if is_restarted():
            settings = replace(settings, resume=True)
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
