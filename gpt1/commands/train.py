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
from gpt1.settings.training import Settings, parse

if TYPE_CHECKING:
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
        from gpt1.datasets import TASKS
        from gpt1.runtime import launcher
        from gpt1.runtime.ranks import joined
        from gpt1.training.runs import run_fine_tuning
        from gpt1.training.sources import find_sources

        sources = find_sources(settings, TASKS[settings.dataset])
        if sources.demo:
            settings = settings.for_demo()
    stop.check()
    n = launcher.processes_to_start(settings.device, settings.n_gpu)
    if n > 1:
        return launcher.start_processes(main, argv, n)
    with RunLock() as lock, joined(settings.device, settings.n_gpu) as ranks:
        if ranks.is_main and sources.demo:
            _announce_demo(settings, sources)
        result = run_fine_tuning(settings, sources, ranks, stop, lock)
        if settings.analysis and ranks.is_main:
            from gpt1.reports.analysis import analyse_rocstories

            outputs = result.outputs
            print(analyse_rocstories(sources.data_dir, outputs.submission, outputs.log))
    return 0


def _announce_demo(settings: Settings, sources: Sources) -> None:
    """Print that the demo runs, and where to read about the real data and weights."""
    why = "data/ holds no ROCStories and neither --data_dir nor --model_dir was given"
    if settings.data_dir is not None or settings.model_dir is not None:
        why = "its directory was named"
    lines = textwrap.wrap(
        f"This is the bundled demo: self-made stories ({sources.data_dir}/) and a small model "
        f"({sources.model_dir}/), trained with --lr {settings.lr:g} --n_iter {settings.n_iter}. It "
        f"runs because {why}; README.md says how to get the real data and weights.",
        width=78,
    )
    rule = "-" * max(map(len, lines))
    print("\n".join([rule, *lines, rule]), file=sys.stderr)
