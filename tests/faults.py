"""A machine in trouble, for real: the limits that Linux sets to a process, and a file that fails.

The trouble lasts for the block of each context; what was opened or allocated before still works.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
    """Let no file grow beyond ``n_bytes`` within the block, as on a full disk."""
    with _limited(resource.RLIMIT_FSIZE, n_bytes):
        yield


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own at ``place``; skip the test where this is not allowed.

    Args:
        place: the directory to make.
        size: as for the option of tmpfs, such as ``500k``.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a small disk, and may not mount one here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def no_more_open_files() -> Iterator[None]:
    """Let no file be opened within the block, as if the process had too many open files."""
    with _limited(resource.RLIMIT_NOFILE, next_descriptor()):
        yield


def next_descriptor() -> int:
    """Return the lowest number that no open file has, which the next open file will get."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@contextmanager
def little_memory(n_bytes: int) -> Iterator[None]:
    """Let the process allocate at most ``n_bytes`` more memory within the block."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + n_bytes):
        yield


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Let nobody read a file within the block; a superuser becomes another user meanwhile."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)
