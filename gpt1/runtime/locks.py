"""One writer at a time: locks on files that a process loses when it ends, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import try_lock


class RunLock(ExitStack):
    """Hold locks (:func:`gpt1.runtime.files.try_lock`) until the ``with`` block ends.

    A dead process holds none, so nothing that a killed run leaves can block the next one.
    """

    def take(self, paths: Sequence[Path], name: str) -> None:
        """Lock each of ``paths``. Missing files are made; the files hold nothing else.

        Args:
            paths: one for each directory that a run writes to.
            name: the run's name, for the message.

        Raises:
            InputError: another process holds one of the locks; the message names the process.
            Gpt1Error: a file cannot be made.
        """
        for path in paths:
            try:
                file = self.enter_context(path.open("a+b", buffering=0))
            except OSError as error:
                raise Gpt1Error(f"{path}: cannot be made: {error.strerror}.") from error
            if not try_lock(file):
                raise InputError(
                    f"--desc {name}: another run of this name is writing to {path.parent}/ "
                    f"({_owner(path) or 'just started'}); wait for its end, or give another --desc"
                )
            with suppress(OSError):  # On a full disk the lock holds without the note.
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _owner(path: Path) -> str:
    """Return the note of the process that holds a lock, or nothing if there is none to read."""
    with suppress(OSError), open(path, "rb") as file:  # Windows does not let others read it.
        return file.read(200).decode(errors="replace").strip()
    return ""
