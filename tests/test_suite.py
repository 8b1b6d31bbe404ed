"""The tests themselves: they leave nothing behind, and run where SIGINT is ignored."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from leftovers import Leftovers

def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Leftovers(Path(__file__).parent, patience=0))
"""
ORPHAN = """
import subprocess

def test_leaves_an_orphan():
    subprocess.run(["sh", "-c", "sleep 600 & echo $! > pid"], stdout=subprocess.DEVNULL)
"""
CHILD = """
import subprocess

def test_leaves_a_child():
    with open("pid", "w") as file:
        file.write(str(subprocess.Popen(["sleep", "600"]).pid))
"""


def run_pytest(directory: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run tests of their own, with the plugin that looks for leftovers alone."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_inner.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for on Linux")
@pytest.mark.parametrize("words", [[], ["-n", "1"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("source", [ORPHAN, CHILD], ids=["orphan", "child"])
def test_a_process_that_is_left_fails_the_run_and_is_ended(
    tmp_path: Path, source: str, words: list[str]
) -> None:
    done = run_pytest(tmp_path, source, *words)
    pid = (tmp_path / "pid").read_text().strip()
    name = re.search(r"def (\w+)", source)[1]
    line = f"process {pid}: sleep 600, started in test_inner.py::{name} (call)"
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert line in done.stdout.splitlines()
    processes.wait_until(lambda: not processes.is_alive(int(pid)), "its end")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is asked which files are new")
def test_a_file_that_is_left_in_the_repository_fails_the_run(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/log/\n__pycache__/\n")
    source = """
from pathlib import Path

def test_leaves_files():
    if not Path("log").exists():
        Path("log").mkdir()
        Path("log/a").touch()
        Path("b").touch()
"""
    first, second = (run_pytest(tmp_path, source) for _ in range(2))
    assert first.returncode == 1, first.stdout
    assert first.stdout.splitlines()[-3:-1] == ["file b", "file log/"]
    assert second.returncode == 0, second.stdout


@pytest.mark.slow
def test_tests_of_signals_run_where_sigint_is_ignored() -> None:
    """As in what a shell script starts with ``&``."""
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "pytest", "-q"]
    command += ["-p", "no:cacheprovider", "tests/test_download.py", "-k", "goes_on_where and 2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
