"""Start the processes of a run on one machine with several GPUs.

torch's elastic launcher (torchrun) is not used here. It loses the exit statuses of its processes
when it is asked to end, kills them 30 seconds later even if they are still saving their state,
and when one process fails it ends the others before they can report the cause.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch

from gpt1.errors import Gpt1Error
from gpt1.stopping import SIGNALS, end_with_parent

GRACE = 15.0  # seconds that processes get to end by themselves, then once more after SIGTERM


def processes_to_start(device_name: str | None, n_gpu: int) -> int:
    """How many processes the program should start itself: 1 except on several GPUs.

    As many as there are GPUs, at most one a tower, and a divisor of ``n_gpu``, so that each
    process has as many towers as any other. Under torchrun the processes are there already.
    """
    if "WORLD_SIZE" in os.environ or device_name not in (None, "cuda"):
        return 1
    if not torch.cuda.is_available():
        return 1
    available = min(torch.cuda.device_count(), n_gpu)
    return max(n for n in range(1, available + 1) if n_gpu % n == 0)


def start_processes(body: Callable[[Sequence[str]], int], argv: Sequence[str], n: int) -> int:
    """Run ``body(argv)`` in n processes of this machine, joined in a group; the exit status.

    SIGTERM and SIGINT are handed on to them as SIGTERM. When one of them ends badly the others are
    ended, too, within twice ``GRACE`` seconds, and its status is returned. When this process is
    killed they end as by SIGTERM.

    Raises:
        Gpt1Error: a signal that nobody sent from here ended one of them.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes = [
        context.Process(target=_process_main, args=(rank, body, list(argv), n, port))
        for rank in range(n)
    ]
    request: int | None = None

    def hand_on(number: int, frame: object) -> None:
        nonlocal request
        request = request or number
        for process in processes:
            if process.pid is not None:
                process.terminate()

    previous = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        for process in processes:
            process.start()
            if request is not None:  # it came before this one could be told
                process.terminate()
        status = _wait_for_all(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if request is not None and status in (128 + signal.SIGTERM, -signal.SIGTERM):
        return 128 + request
    if status < 0:
        raise Gpt1Error(
            f"one of the {n} processes was ended by {signal.Signals(-status).name}, as Linux does "
            "when memory runs out. Start the run again with --resume."
        )
    return status


def _wait_for_all(processes: Sequence[BaseProcess]) -> int:
    """Wait until all have ended; the first bad exit status, negative for a signal, or 0."""
    while True:
        # Asked once a turn: nobody waits for a process that ended between two questions.
        running = [process for process in processes if process.exitcode is None]
        bad = [code for process in processes if (code := process.exitcode)]
        if bad:
            _end_all(processes)
            return min(bad)  # of two at once a signal is the cause, not the consequence
        if not running:
            return 0
        wait([process.sentinel for process in running])


def _end_all(processes: Sequence[BaseProcess]) -> None:
    """Let the others notice by themselves, then ask them to end, then end them."""
    for step in (lambda process: None, BaseProcess.terminate, BaseProcess.kill):
        deadline = time.monotonic() + GRACE
        for process in processes:
            if process.exitcode is None:
                step(process)
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))


def _process_main(
    rank: int, body: Callable[[Sequence[str]], int], argv: list[str], world: int, port: int
) -> None:
    """One started process: torchrun's variables, then the program."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it is dead already
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which hands it on
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    sys.exit(body(argv))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
