"""A machine in trouble, for real: the limits that Linux sets to a process, and a file that fails.

Each context lets the trouble begin and end; what was opened or allocated before goes on working.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
# Reading at its beginning, where no memory is mapped, is an input/output error. It counts as a
# plain file, so that a symbolic link to it behaves as a file on a failing disk.
FAILING_FILE = Path("/proc/self/mem")


@contextmanager
def _limited(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def short_files(n_bytes: int) -> Iterator[None]:
    """No file can be written beyond so many bytes, as on a full disk."""
    with _limited(resource.RLIMIT_FSIZE, n_bytes):
        yield


@contextmanager
def no_more_open_files() -> Iterator[None]:
    """No file can be opened: there are as many open files as the process may have."""
    with _limited(resource.RLIMIT_NOFILE, next_descriptor()):
        yield


def next_descriptor() -> int:
    """The lowest number that no open file has, which the next one gets."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@contextmanager
def little_memory(n_bytes: int) -> Iterator[None]:
    """The process can have so many bytes of memory more, and no others."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + n_bytes):
        yield


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Nobody may read a file; the superuser, who may read all, becomes another user meanwhile."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)
