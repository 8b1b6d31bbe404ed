"""Check that the tests leave no process running and no file in the repository.

Linux gives a process whose parent has ended to its nearest living ancestor that asked for such
orphans (a "child subreaper"), or else to process 1. pytest's main process asks for them, and so
everything that a test starts stays among the descendants of pytest until it ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest

PATIENCE = 60.0  # seconds that ending processes get before they count as left
# What Python, make and the tools for development write; git ignores all of it.
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", ".venv"}
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class Leftovers:
    """A pytest plugin that fails a run which leaves a process or a file behind, and names it.

    Only the main process of a run should have it: with pytest-xdist that is the one that hands
    out the tests. Processes are looked for on Linux only, files only in a git repository.

    Args:
        root: the repository.
        patience: seconds to wait for processes that are ending.
    """

    def __init__(self, root: Path, patience: float = PATIENCE) -> None:
        self.root, self.patience = root, patience
        self.files = untracked_files(root)
        self.found: list[str] = []
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Look for leftovers when all tests and all workers of pytest-xdist are done."""
        left = self._processes_left()
        self.found = [f"process {describe(pid)}" for pid in left]
        kill(left)
        self.found += [f"file {path}" for path in sorted(untracked_files(self.root) - self.files)]
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the processes and files found; processes have been killed by then, files stay.

        A file may come from another program that ran in the repository, such as a training run.
        """
        if self.found:
            terminalreporter.section("left behind by the tests", red=True, bold=True)
            terminalreporter.write_line("\n".join(self.found))

    def _processes_left(self) -> list[int]:
        end = time.monotonic() + self.patience
        while (left := running_descendants(os.getpid())) and time.monotonic() < end:
            time.sleep(0.05)
        return left


def running_descendants(ancestor: int) -> list[int]:
    """Return the running descendants of a process, without the helpers of multiprocessing.

    The helpers, a fork server and a resource tracker, end with the process that started them.
    """
    children: dict[int, list[int]] = {}
    ended = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            children.setdefault(int(parent), []).append(pid)
            if state in "ZX":
                ended.add(pid)
    found = children.get(ancestor, [])
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    helpers = {
        getattr(forkserver._forkserver, "_forkserver_pid", None),  # type: ignore[attr-defined]
        getattr(resource_tracker._resource_tracker, "_pid", None),
    }
    return [pid for pid in found if pid not in ended | helpers]


def describe(pid: int) -> str:
    """Describe a process: its id, its command line, and the test during which it was started."""
    command, test = "(has ended)", ""
    with suppress(OSError):
        place = Path("/proc", str(pid))
        command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        variables = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        names = [text for text in variables if text.startswith("PYTEST_CURRENT_TEST=")]
        test = f", started in {names[0].partition('=')[2]}" if names else ""
    return f"{pid}: {command.strip()}{test}"


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def untracked_files(root: Path) -> set[str]:
    """Return files that git does not track, including ignored ones but not caches."""
    if shutil.which("git") is None:
        return set()
    command = ["git", "status", "--porcelain", "-z", "--untracked-files", "--ignored=matching"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    entries = [entry for entry in done.stdout.split("\0") if entry[:2] in ("??", "!!")]
    paths = {entry[3:] for entry in entries}
    return {path for path in paths if not CACHES & set(Path(path).parts)}
