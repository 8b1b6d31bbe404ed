"""Locks that let one run at a time write to a directory; a process that ends loses its locks."""

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

    A dead process holds no lock, so a killed run cannot block the next one.
    """

    def take(self, paths: Sequence[Path], name: str) -> None:
        """Lock the files ``paths``, which are made if they are missing.

        Each file holds a note that names the process.

        Args:
            paths: one file for each directory that a run writes to.
            name: the run's name, for the message.

        Raises:
            InputError: another process holds one of the locks; the message names the process.
            Gpt1Error: a file cannot be made.
        """
        for path in paths:
            try:
                file = self.enter_context(path.open("a+b", buffering=0))
            except OSError as error:
                raise Gpt1Error(f"{path}: cannot be made: {error.strerror or error}.") from error
            if not try_lock(file):
                raise InputError(
                    f"--desc {name}: another run of this name is writing to {path.parent}/ "
                    f"({_owner(path) or 'just started'}); wait for its end, or give another --desc"
                )
            with suppress(OSError):  # On a full disk the file is locked without a note.
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _owner(path: Path) -> str:
    """Return the note of the process that holds a lock, or "" if it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:  # Windows forbids reading it.
        return file.read(200).decode(errors="replace").strip()
    return ""
