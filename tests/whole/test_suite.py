"""The tests: `make test` contains those it must, and tests leave no process or file behind."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from gpt1.commands import cli

ROOT = Path(__file__).parents[2]
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
# For each command, a test that runs it successfully.
COMMAND_TESTS = {
    "train": ("test_train", "test_a_whole_run_ends_well_and_is_silent_on_stderr"),
    "pretrain": ("test_pretraining", "test_a_run_learns_and_its_directory_is_a_model"),
    "perplexity": ("test_pretraining", "test_the_perplexity_of_a_text"),
    "analysis": ("test_analysis", "test_script_from_another_directory"),
    "zeroshot": (
        "test_zeroshot_command",
        "test_the_report_has_scores_intervals_and_chance_in_80_columns",
    ),
    "predict": ("test_own_runs", "test_predict_gives_the_submission_and_the_scores"),
    "score": ("test_score", "test_test_set_gets_the_choices_of_the_submission"),
    "corpus": ("test_corpus_command", "test_a_corpus_of_a_folder"),
    "generate": ("test_generate", "test_one_prompt"),
    "download": ("test_download", "test_result_on_stdout_and_silence_on_stderr"),
    "convert": ("test_convert", "test_the_demo_is_converted_and_loads"),
    "plot": ("test_plot", "test_curves"),
    "reproduce": ("test_running", "test_runs_are_made_once_and_reported"),
    "env": ("test_cli", "test_env_shows_versions_and_hardware"),
}


def is_slow(module_name: str, test_name: str) -> bool:
    """Return whether `make test` leaves out a test with all its cases."""
    (path,) = (ROOT / "tests").rglob(f"{module_name}.py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == test_name:
            return "pytest.mark.slow" in map(ast.unparse, node.decorator_list)
    raise AssertionError(f"{module_name}.py has no {test_name}")


def test_every_comparison_and_every_trap_is_in_make_test() -> None:
    """docs/fidelity.md names them all."""
    page = (ROOT / "docs/fidelity.md").read_text()
    named = sorted(set(re.findall(r"\b(test_\w+)\.py::(test_\w+)", page)))
    assert len(named) > 100
    assert [name for name in named if is_slow(*name)] == []


def test_one_test_of_every_command_is_in_make_test() -> None:
    assert COMMAND_TESTS.keys() == cli.COMMANDS.keys()
    assert [name for name in COMMAND_TESTS.values() if is_slow(*name)] == []


def test_what_make_test_leaves_out_is_seen_here() -> None:
    assert is_slow("test_real_size", "test_real_size_loads_trains_and_predicts")


def run_pytest(directory: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a separate pytest that has only the plugin that looks for leftovers."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_inner.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *words]
    # This pytest must not take itself for a worker of pytest-xdist, which variables mark.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=directory, env=own, capture_output=True, text=True)


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
    """A shell script starts programs with ``&`` in this way."""
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "pytest", "-q"]
    command += [
        "-p",
        "no:cacheprovider",
        "tests/commands/test_download.py",
        "-k",
        "goes_on_where and 2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
