"""Pretrain on text of your own: ``gpt1 pretrain --corpus DIR --out DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from gpt1.commands.running import is_restarted, run_until_stopped
from gpt1.runtime.locks import RunLock
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.pretraining import PRETRAIN, PretrainSettings

COMMAND = PRETRAIN
MODULE = "python -m gpt1 pretrain"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    The status is 0 for success, 2 for bad input, 1 for other failures, 143 if SIGTERM ended the run
    and 130 if SIGINT ended it.
    """
    words = sys.argv[1:] if argv is None else argv
    return run_until_stopped(COMMAND.program, MODULE, _pretrain, words)


def _pretrain(argv: Sequence[str], stop: StopRequests) -> int:
    """Check the command line, then train here or in as many processes as there are GPUs."""
    with stop.held():  # An interrupted import of NumPy or torch fails.
        settings = PretrainSettings.of(COMMAND.parse(argv))
        if is_restarted():
            settings = replace(settings, resume=True)
        from gpt1.runtime import launcher
        from gpt1.runtime.ranks import joined
        from gpt1.training.pretraining_runs import run_pretraining
    stop.check()
    n = launcher.processes_to_start(settings.device, settings.n_gpu)
    if n > 1:
        return launcher.start_processes(main, argv, n)
    with RunLock() as lock, joined(settings.device, settings.n_gpu) as ranks:
        run_pretraining(settings, ranks, stop, lock)
    return 0
