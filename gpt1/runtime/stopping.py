"""Ending on request: SIGTERM (Slurm, torchrun) and SIGINT (Ctrl-C), without losing an update."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from gpt1.runtime.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds in which signals are one request: `timeout` and Slurm may reach us twice


class StopRequests:
    """Takes SIGTERM and SIGINT for as long as a ``with`` block runs.

    The first request ends the block by :class:`gpt1.runtime.errors.Stopped` at once, wherever it
    is, except within :meth:`held`, where it is only noted. Another one, ``ECHO`` seconds later,
    ends the process at once, as if nobody listened. A signal that the process was told to ignore
    stays ignored (see :func:`handled_signals`). Outside the main thread, where Python delivers no
    signals, it does nothing.

    Attributes:
        signal: the first request, or None.
        where: how far the program is, for the message.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.where = "before training began"
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
        """Within the block a first request waits; :meth:`check` obeys it."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Within the block, which lies in a held one, a request counts at once again."""
        before, self._held = self._held, False
        try:
            self.check()
            yield
        finally:
            self._held = before

    def check(self) -> None:
        """Raise :class:`Stopped` if a request came."""
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
            text = f"\n{self.signal.name}: ending once all is saved; once more ends at once\n"
            with suppress(OSError):
                os.write(2, text.encode())  # a print could be the one that is interrupted


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return those of ``SIGNALS`` that are not ignored, which the program therefore handles.

    A shell without job control, such as one that runs a script, has the commands that it starts
    with ``&`` ignore SIGINT: a Ctrl-C at the terminal is meant for the foreground.
    """
    return tuple(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the process that started this one dies: nobody is orphaned.

    On another system torchrun or the user ends what is left.
    """
    pr_set_pdeathsig = 1
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
