"""One writer at a time: a lock on files that goes when its process does, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from gpt1.errors import Gpt1Error, InputError


class RunLock:
    """Holds locks until its ``with`` block ends; a dead process holds none.

    The kernel keeps the lock (``flock``), so nothing that a killed run leaves can block the next
    one. Where the system has no such locks (Windows), nothing is locked.
    """

    def __init__(self) -> None:
        self._files: list[IO[str]] = []

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        self._files.clear()

    def take(self, paths: Sequence[Path], name: str) -> None:
        """Lock each of ``paths``, which are made if need be and hold nothing else.

        Args:
            paths: one for each directory that a run writes to.
            name: the run's, for the message.

        Raises:
            InputError: another process has one of them; names it.
            Gpt1Error: one cannot be made.
        """
        try:
            import fcntl
        except ImportError:
            return
        for path in paths:
            try:
                file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
                self._files.append(file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise InputError(
                    f"--desc {name}: another run of this name is writing to {path.parent}/ "
                    f"({file.read(200).strip() or 'just started'}); wait for its end, or give "
                    "another --desc"
                ) from None
            except OSError as error:
                raise Gpt1Error(f"{path}: cannot be locked: {error.strerror}.") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
