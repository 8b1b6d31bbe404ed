"""Make runs in several processes of one machine at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gpt1.runtime import launcher
from gpt1.runtime.errors import Stopped
from gpt1.runtime.stopping import end_with_parent

Body = Callable[[Sequence[str]], int]


def start_jobs(body: Body, arguments: Sequence[Sequence[str]]) -> int:
    """Run ``body`` in a process of its own for each of several command lines, and wait for all.

    The processes share no torch process group: each makes runs of its own. SIGTERM and SIGINT are
    passed on to them as SIGTERM. When this process is killed, the others end as after SIGTERM.
    Each process gets an equal share of torch's threads.

    Args:
        body: the program of each process; returns its exit status. It must be importable.
        arguments: the words of the command line of each process.

    Returns:
        The exit status: 0, or that of the first process that failed.

    Raises:
        Stopped: a signal asked the program to end, and all processes have ended.
        Gpt1Error: a signal that this process did not pass on ended one of the processes.
    """
    context: Any = multiprocessing.get_context(launcher.START_METHOD)
    n_threads = max(1, torch.get_num_threads() // len(arguments))
    processes = [
        context.Process(target=_run, args=(body, list(words), os.getpid(), n_threads))
        for words in arguments
    ]
    with launcher.PassedOn() as signals:
        for process in processes:
            if signals.request is None:
                process.start()
        signals.all_started()
        for process in processes:
            if process.pid is not None:
                process.join()
    if signals.request is not None:
        raise Stopped(signals.request, "every process has saved the state of its run")
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed and min(failed) < 0:
        remedy = "The same command makes the runs that are missing, with fewer --jobs if need be."
        raise launcher.killed(len(processes), -min(failed), remedy)
    return next(iter(failed), 0)


def _run(body: Body, words: list[str], parent: int, n_threads: int) -> None:
    end_with_parent()
    if os.getppid() != parent:  # The parent is dead already.
        return
    torch.set_num_threads(n_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which passes it on.
    sys.exit(body(words))
