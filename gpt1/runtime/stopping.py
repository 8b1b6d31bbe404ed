"""End a process: after SIGTERM or SIGINT, together with its parent, or at the end of a run."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import NoReturn

from gpt1.runtime.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds in which signals count as one request: `timeout` and Slurm may send two


class StopRequests:
    """Handle SIGTERM and SIGINT while a ``with`` block runs.

    The first signal raises :class:`gpt1.runtime.errors.Stopped` at once, except within
    :meth:`held`, which delays that. A further signal, ``ECHO`` seconds or more after the first,
    ends the process at once, as if it were not handled. A signal that the process was told to
    ignore stays ignored (see :func:`handled_signals`). Outside the main thread, where Python
    delivers no signals, this class does nothing.

    Attributes:
        signal: the first signal that came, or None.
        where: how far the program is; the message of :class:`gpt1.runtime.errors.Stopped`.
        waits_for: what a held request waits for, for the message at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.where = "before training began"
        self.waits_for = "the work under way"
        self._came = 0.0
        self._held = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a first request until :meth:`check` is called or an :meth:`obeyed` block runs."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Temporarily re-enable immediate stopping inside a :meth:`held` block.

        Raises:
            Stopped: a request has come, or comes while the block runs.
        """
        before, self._held = self._held, False
        try:
            self.check()
            yield
        finally:
            self._held = before

    def check(self) -> None:
        """Raise :class:`Stopped` if a request has come."""
        if self.signal is not None:
            raise Stopped(self.signal, self.where)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self._came > ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal, self._came = signal.Signals(number), time.monotonic()
        if not self._held:
            self.check()
        if os.environ.get("RANK", "0") == "0":
            text = (
                f"\n{self.signal.name}: finishing {self.waits_for}, then saving and ending; a "
                "second one ends at once and loses all updates since the last checkpoint\n"
            )
            with suppress(OSError):
                os.write(2, text.encode())  # print() fails if the signal interrupts a print()


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return the signals of ``SIGNALS`` that this process does not ignore.

    A shell without job control, such as one that runs a script, starts commands with ``&`` so that
    they ignore SIGINT, because Ctrl-C at the terminal is meant for the foreground.
    """
    return tuple(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


def end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when the process that started it dies.

    On other systems torchrun or the user must end the remaining processes.
    """
    pr_set_pdeathsig = 1
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


def end_process(status: int) -> NoReturn:
    """End this program with an exit status, which a rank of a distributed run does at once.

    Threads of torch's gloo backend may still be releasing tensors after the last communication. If
    they need Python's global lock while Python shuts down, Python ends them, and the C++ library
    then aborts the whole process (SIGABRT). Therefore a rank ends without Python's shutdown.

    Args:
        status: the exit status.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # The stream may be closed or None.
            stream.flush()
    os._exit(status)
