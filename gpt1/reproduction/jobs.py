"""Make runs in several processes of one machine at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gpt1.runtime import launcher
from gpt1.runtime.errors import Stopped
from gpt1.runtime.stopping import end_with_parent, handled_signals

Body = Callable[[Sequence[str]], int]


def start_jobs(body: Body, arguments: Sequence[Sequence[str]]) -> int:
    """Run ``body`` in a process of its own for each of several command lines, and wait for all.

    The processes share no torch process group: each makes runs of its own. SIGTERM and SIGINT are
    passed on to them as SIGTERM. When this process is killed, the others end as after SIGTERM.

    Args:
        body: the program of each process; returns its exit status. It must be importable.
        arguments: the words of the command line of each process.

    Returns:
        The exit status: 0, or that of the first process that failed.

    Raises:
        Stopped: a signal asked the program to end, and all processes have ended.
    """
    context: Any = multiprocessing.get_context(launcher.START_METHOD)
    processes = [
        context.Process(target=_run, args=(body, list(words), os.getpid())) for words in arguments
    ]
    request: signal.Signals | None = None

    def pass_on(number: int, frame: object) -> None:
        nonlocal request
        request = request or signal.Signals(number)
        for process in processes:
            if process.is_alive():
                process.terminate()

    previous = {number: signal.signal(number, pass_on) for number in handled_signals()}
    try:
        for process in processes:
            if request is None:
                process.start()
        for process in processes:
            if process.pid is not None:
                process.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if request is not None:
        raise Stopped(request, "every process has saved the state of its run")
    return next((abs(process.exitcode) for process in processes if process.exitcode), 0)


def _run(body: Body, words: list[str], parent: int) -> None:
    end_with_parent()
    if os.getppid() != parent:  # The parent is dead already.
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which passes it on.
    sys.exit(body(words))
