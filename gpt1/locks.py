"""One writer at a time: a lock on files that goes when its process does, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from gpt1.errors import Gpt1Error, InputError
from gpt1.files import try_lock


class RunLock:
    """Holds locks (:func:`gpt1.files.try_lock`) until its ``with`` block ends.

    A dead process holds none, so nothing that a killed run leaves can block the next one.
    """

    def __init__(self) -> None:
        self._files: list[IO[bytes]] = []

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
        for path in paths:
            try:
                file = open(path, "a+b", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise Gpt1Error(f"{path}: cannot be made: {error.strerror}.") from error
            self._files.append(file)
            if not try_lock(file):
                file.seek(0)
                owner = file.read(200).decode(errors="replace").strip()
                raise InputError(
                    f"--desc {name}: another run of this name is writing to {path.parent}/ "
                    f"({owner or 'just started'}); wait for its end, or give another --desc"
                )
            with suppress(OSError):  # a full disk: the lock holds without it
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
