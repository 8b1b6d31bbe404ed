"""Ending on request: SIGTERM (Slurm, torchrun) and SIGINT (Ctrl-C), without losing an update."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from gpt1.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """Takes SIGTERM and SIGINT for as long as a ``with`` block runs.

    The first request ends the block by :class:`gpt1.errors.Stopped` at once, wherever it is,
    except within :meth:`held`, where it is only noted. The second one ends the process at once,
    as if nobody listened. Outside the main thread, where Python delivers no signals, it does
    nothing.

    Attributes:
        signal: the first request, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._held = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
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
            raise Stopped(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number)
        if not self._held:
            raise Stopped(self.signal)
        if "RANK" not in os.environ or os.environ["RANK"] == "0":
            print(
                f"\n{self.signal.name}: ending after this update; once more ends at once",
                file=sys.stderr,
            )
