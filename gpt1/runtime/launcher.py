"""Start the processes of a run on one machine with several GPUs.

torch's elastic launcher is not used: when it is asked to end, it loses the exit statuses of its
processes and kills them after 30 seconds even if they are still saving their state. When one
process fails, it ends the others before they can report the cause. ``torch.multiprocessing``,
which the elastic launcher is built on, grants them a grace period.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException
from torch.multiprocessing.spawn import start_processes as spawn_processes

from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.stopping import end_process, end_with_parent, handled_signals

GRACE = 15.0  # seconds that processes get to end by themselves, and again after SIGTERM
START_METHOD = "spawn"  # CUDA does not work in forked processes


def processes_to_start(device_name: str | None, n_gpu: int) -> int:
    """Return how many processes the program should start: 1 except on several GPUs.

    With several GPUs it is the largest divisor of ``n_gpu`` for which there are enough GPUs, so
    that every process has the same number of towers. Under torchrun, which has started the
    processes already, it is 1.

    Args:
        device_name: the value of ``--device``, or None.
        n_gpu: the number of towers.
    """
    if "WORLD_SIZE" in os.environ or device_name not in (None, "cuda"):
        return 1
    if not torch.cuda.is_available():
        return 1
    available = min(torch.cuda.device_count(), n_gpu)
    return max(n for n in range(1, available + 1) if n_gpu % n == 0)


def start_processes(body: Callable[[Sequence[str]], int], argv: Sequence[str], n: int) -> int:
    """Run ``body(argv)`` in n processes of this machine, which can form a process group.

    SIGTERM and SIGINT are passed on to the processes as SIGTERM, unless this process ignores them.
    When one process fails, the others are ended within twice ``GRACE`` seconds. When this process
    is killed, the other processes end as after SIGTERM.

    Args:
        body: the program of each process; returns its exit status. It must be importable.
        argv: the argument of ``body``.
        n: the number of processes.

    Returns:
        The exit status: 0, that of the process that failed, or 143 or 130 after a signal.

    Raises:
        Gpt1Error: a signal that this process did not pass on ended one of the processes.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with PassedOn() as signals:
        context = spawn_processes(  # type: ignore[no-untyped-call]
            _run_rank, (body, list(argv), n, store.port), n, join=False, start_method=START_METHOD
        )
        signals.all_started()
        status = _wait_for_all(context)
    if signals.request is not None and status in (128 + signal.SIGTERM, -signal.SIGTERM):
        return 128 + signals.request
    if status < 0:
        raise killed(n, -status, "Start the run again with --resume.")
    return status


class PassedOn:
    """Pass SIGTERM and SIGINT on to the child processes as SIGTERM while a ``with`` block runs.

    Attributes:
        request: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.request: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> PassedOn:
        self._previous = {n: signal.signal(n, self._handle) for n in handled_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def all_started(self) -> None:
        """Pass a signal on that came before all processes were started."""
        if self.request is not None:
            self._pass_on()

    def _handle(self, number: int, frame: object) -> None:
        self.request = self.request or signal.Signals(number)
        self._pass_on()

    def _pass_on(self) -> None:
        for process in multiprocessing.active_children():
            process.terminate()


def killed(n: int, number: int, remedy: str) -> Gpt1Error:
    """Return the error that a signal ended one of ``n`` processes.

    Args:
        n: the number of processes.
        number: the number of the signal.
        remedy: a sentence on how to go on.
    """
    return Gpt1Error(
        f"one of the {n} processes was ended by {signal.Signals(number).name}, as Linux does when "
        f"memory runs out. {remedy}"
    )


def _wait_for_all(context: ProcessContext) -> int:
    """Wait until all processes have ended; return the first exit status that is not 0, or 0.

    A process that a signal ended has a negative status. If two processes failed at the same time,
    the signal is taken as the cause and the exit status of the other as the consequence.
    """
    finished = False
    while not finished:
        wait(list(context.sentinels))
        failed: list[int] = [p.exitcode for p in context.processes if p.exitcode]
        try:
            finished = context.join(grace_period=GRACE)
        except ProcessExitedException as error:
            return min([*failed, error.exit_code])
    return 0


def _run_rank(
    rank: int, body: Callable[[Sequence[str]], int], argv: list[str], world: int, port: int
) -> None:
    """Run one of the started processes, with the environment that torchrun would give it."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # The parent is dead already.
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which passes it on.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # The parent serves the store.
    )
    end_process(body(argv))
