"""Whole files only: a result appears under its name complete, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from gpt1.errors import Gpt1Error, InputError

_LARGEST_TEXT = 1 << 30


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name when the block ends well.

    The data are on the disk before the rename, so that a crash at any moment leaves either
    the old file or the new one, whole. Missing parent directories are made.

    Args:
        path: the final name.
        mode: ``"wb"`` for bytes, ``"w"`` for UTF-8 text with ``\\n`` line ends. The file's
            ``name`` is its path, for libraries that write by name.

    Raises:
        Gpt1Error: the directory or file cannot be written (disk full, no permission).
    """
    path = Path(path)
    temporary: str | None = None
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with _kept_locked(handle):
            with open(temporary, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        temporary = None
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Gpt1Error(
            f"{path}: cannot be written: {reason}; what stood there before is untouched. "
            "Free space or name another directory."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


@contextmanager
def _kept_locked(handle: int) -> Iterator[None]:
    """Lock a file for as long as it is temporary, which tells it from what a dead process left."""
    try:
        try_lock(handle)
        if os.name != "posix":  # there an open file cannot get another name
            os.close(handle)
        yield
    finally:
        if os.name == "posix":
            os.close(handle)


def remove_leftovers(directory: Path, names: str) -> None:
    """Remove what killed processes left of writing files, but nothing that is being written.

    Args:
        directory: where they are.
        names: a pattern as for :mod:`glob`.
    """
    for temporary in directory.glob(f".{names}.????????"):
        with suppress(OSError), open(temporary, "r+b") as file:
            if try_lock(file):
                temporary.unlink()


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file until it is closed, unless another process has locked it.

    The kernel keeps the lock, so that a dead process holds none. On a file system without such
    locks (some network file systems) nothing is locked.

    Returns:
        Whether no other process holds the lock.
    """
    try:
        return lock_descriptor(file if isinstance(file, int) else file.fileno(), blocking=False)
    except OSError:
        return True


def check_writable(directory: Path) -> None:
    """Make a directory if need be and see whether files can be made in it.

    Raises:
        Gpt1Error: they cannot, before any work has been done for them.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise Gpt1Error(
            f"{directory}: cannot be written: {error.strerror}; name another directory."
        ) from error


def read_text(path: str | Path, what: str) -> str:
    """The text of a UTF-8 file, byte-order mark removed, or an :class:`InputError`.

    Args:
        path: the file, at most a gigabyte: what is larger is none of ours.
        what: what it should be, for the message ("the BPE merges").
    """
    check_regular(path, what)
    if os.path.getsize(path) > _LARGEST_TEXT:
        raise InputError(f"{path}: too large to be {what}; name another file.")
    data = read_bytes(path, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: {what} must be UTF-8 text, but byte "
            f"0x{data[error.start]:02x} is not; save the file as UTF-8."
        ) from error


def read_bytes(path: str | Path, what: str) -> bytes:
    """The bytes of a file, or an :class:`InputError` that says which file is missing."""
    check_regular(path, what)
    try:
        return Path(path).read_bytes()
    except (OSError, MemoryError) as error:
        raise _unreadable(path, what, error) from error


def check_regular(path: str | Path, what: str) -> None:
    """See that there is a file, and that reading it comes to an end.

    Raises:
        InputError: there is none, or it is a directory, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise _unreadable(path, what, error) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path}: {what} cannot be read: this is {kind}; name a file.")


def _unreadable(path: str | Path, what: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
    return InputError(f"{path}: {what} cannot be read: {reason}; name another file.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    """Put the rename itself on the disk, where the system can (Windows cannot)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
