"""Read and write whole files: a result appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from gpt1.runtime.errors import Gpt1Error, InputError

_LARGEST_TEXT = 1 << 30

# Numbers of the errors for which the file itself is to blame; for all others it is the machine.
_FILES_FAULT = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
    *(errno.EACCES, errno.EPERM),
}
_MACHINE_REMEDIES = {
    errno.ENOMEM: "free memory, or allow the process more of it (ulimit -v)",
    errno.EMFILE: "allow the process more open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
}
_CHECK_THE_DISK = "see that the disk or the network file system works"


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Report an :class:`OSError` of the block as a failure to write the file ``path``.

    Args:
        path: the file's final name. The block only prepares, writes or renames that file.

    Raises:
        Gpt1Error: the file or its directory cannot be written (disk full, no permission).
    """
    try:
        yield
    except OSError as error:
        raise Gpt1Error(
            f"{path}: cannot be written: {error.strerror or error}; what stood there before is "
            "untouched. Free space or name another directory."
        ) from error


class _RawOutput(io.FileIO):
    """An open temporary file whose failed writes name the file that it is to become.

    Args:
        temporary: the file's present name.
        path: its final name.
    """

    def __init__(self, temporary: str, path: Path) -> None:
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        """Write as :class:`io.FileIO` does, but raise :class:`Gpt1Error`."""
        with write_errors(self._path):
            return super().write(data)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``, and rename it to ``path`` when the block ends well.

    The data are on the disk before the rename, so that a crash at any moment leaves either
    the old file or the new one, whole. Missing parent directories are made. The file's permissions
    are those of any new file.

    An :class:`OSError` that the block itself raises, for example because it reads another file,
    passes through unchanged. A library that writes by the file's name and not through the file
    object is called within :func:`write_errors`.

    Args:
        path: the final name.
        mode: ``"wb"`` for bytes, ``"w"`` for UTF-8 text with ``\\n`` line ends. The file's
            ``name`` is its path, for libraries that write by name.

    Raises:
        Gpt1Error: the directory or file cannot be written (disk full, no permission).
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _create_temporary(path)
    try:
        with _kept_locked(handle), _open_output(temporary, path, mode) as file:
            yield file
            with write_errors(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()  # Windows renames no open file.
                os.replace(temporary, path)
                _sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _create_temporary(path: Path) -> tuple[int, str]:
    """Create an empty file beside ``path``; return its descriptor and its name.

    Unlike a file of :mod:`tempfile`, it has the permissions that the umask gives a new file. The
    umask itself cannot be read without changing it for all threads.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        with suppress(FileExistsError):
            return os.open(temporary, flags, 0o666), temporary


def _open_output(temporary: str, path: Path, mode: str) -> IO[Any]:
    """Open a temporary file for :func:`atomic_write`, buffered."""
    with write_errors(path):
        buffered = io.BufferedWriter(_RawOutput(temporary, path))
    return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8", newline="\n")


@contextmanager
def _kept_locked(handle: int) -> Iterator[None]:
    """Lock a file while it is temporary, so that :func:`remove_leftovers` does not remove it."""
    try:
        try_lock(handle)
        if os.name != "posix":  # Windows renames no open file.
            os.close(handle)
        yield
    finally:
        if os.name == "posix":
            os.close(handle)


def remove_leftovers(directory: Path, names: str) -> None:
    """Remove temporary files that killed processes left, but none that is being written.

    Args:
        directory: the directory of the files.
        names: a pattern as for :mod:`glob`, for the names that the files were to get.
    """
    for temporary in directory.glob(f".{names}.????????"):
        with suppress(OSError), open(temporary, "r+b") as file:
            if try_lock(file):
                temporary.unlink()


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file until it is closed, unless another process has locked it.

    The kernel frees the locks of a process that ends. On a file system without such locks (some
    network file systems) nothing is locked.

    Returns:
        Whether no other process holds the lock.
    """
    try:
        return lock_descriptor(file if isinstance(file, int) else file.fileno(), blocking=False)
    except OSError:
        return True


def check_writable(directory: Path) -> None:
    """Make a directory if it is missing, and check that files can be made in it.

    Raises:
        Gpt1Error: the directory cannot be made, or no file can be made in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise Gpt1Error(
            f"{directory}: cannot be written: {error.strerror or error}; name another directory."
        ) from error


def read_text(path: str | Path, what: str) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Args:
        path: the file. Files over 1 GiB are rejected.
        what: what the file should be, for messages ("the BPE merges").

    Raises:
        InputError: there is no such file, or it is too large, or it is not UTF-8 text.
        Gpt1Error: the machine cannot read the file (see :func:`unreadable`).
    """
    _check_size(path, what)
    data = read_bytes(path, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _no_utf8(path, what, line, error) from error


def _check_size(path: str | Path, what: str) -> None:
    """Check that a file is regular and not larger than any text that is read whole."""
    check_regular(path, what)
    if os.path.getsize(path) > _LARGEST_TEXT:
        raise InputError(f"{path}: too large to be {what}; name another file.")


def _no_utf8(path: str | Path, what: str, line: int, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{path}, line {line}: {what} must be UTF-8 text, but byte "
        f"0x{error.object[error.start]:02x} is not; save the file as UTF-8."
    )


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the lines of a UTF-8 file as :func:`iter_lines` does; none if the file is empty."""
    return list(iter_lines(path, what))


def iter_lines(path: str | Path, what: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file one after another, without holding the whole file in memory.

    Lines end in LF or CRLF and at no other character, and the last one may lack its end. The
    arguments and the errors are those of :func:`read_text`.
    """
    _check_size(path, what)
    with read_errors(path, what), open(path, "rb") as file:
        for number, data in enumerate(file, 1):
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _no_utf8(path, what, number, error) from error
            line = line.removesuffix("\n").removesuffix("\r")
            if line or data.endswith(b"\n"):
                yield line


def read_bytes(path: str | Path, what: str) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        what: what the file should be, for messages.

    Raises:
        InputError: there is no such file, or it is a directory, a pipe or a device.
        Gpt1Error: the machine cannot read the file (see :func:`unreadable`).
    """
    check_regular(path, what)
    with read_errors(path, what):
        return Path(path).read_bytes()


def check_regular(path: str | Path, what: str) -> None:
    """Check that ``path`` is a regular file, which can be read to its end.

    Raises:
        InputError: there is no such file, or it is a directory, a pipe or a device.
    """
    try:
        with read_errors(path, what):
            mode = os.stat(path).st_mode
    except ValueError as error:  # for a name that no file can have
        raise unreadable(path, what, error) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path}: {what} cannot be read: this is {kind}; name a file.")


@contextmanager
def read_errors(path: str | Path, what: str) -> Iterator[None]:
    """Report an :class:`OSError` or a :class:`MemoryError` of the block as a failure to read.

    Args:
        path: the file. The block only reads that file.
        what: what the file should be, for the message ("the BPE merges").

    Raises:
        Gpt1Error: the file could not be read; an :class:`InputError` if the file is to blame
            (see :func:`unreadable`).
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        raise unreadable(path, what, error) from error


def unreadable(
    path: str | Path, what: str, error: Exception, *, remedy: str = "name another file"
) -> Gpt1Error:
    """Make the error for a file that could not be read.

    Args:
        path: the file.
        what: what the file should be, for the message.
        error: an OSError, a MemoryError, or a ValueError for a name that no file can have.
        remedy: what to do if the file is to blame: it is missing, it is a directory, or the user
            has no permission to read it.

    Returns:
        An :class:`InputError` if the file is to blame. If the machine is (a failing disk, too many
        open files, too little memory), a :class:`Gpt1Error` with a remedy for that.
    """
    out_of_memory = isinstance(error, MemoryError)
    number = errno.ENOMEM if out_of_memory else getattr(error, "errno", None)
    reason = "it does not fit into memory" if out_of_memory else getattr(error, "strerror", None)
    message = f"{path}: {what} cannot be read: {reason or error}; "
    if number is None or number in _FILES_FAULT:
        return InputError(f"{message}{remedy}.")
    return Gpt1Error(f"{message}{_MACHINE_REMEDIES.get(number, _CHECK_THE_DISK)}.")


def _sync_directory(directory: Path) -> None:
    """Write a rename in ``directory`` to the disk, where the system can (Windows cannot)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
