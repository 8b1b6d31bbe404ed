"""Every command in the README and the docs runs as printed, offline, on a small demo.

A task so small that a run takes a second replaces the demo. The commands of a page run
one after another in one directory, after those of the README, as a reader would type them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from gpt1.datasets import story_cloze as datasets

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PROGRAMS = {"make", "git", "cp", "pip", "uv"}  # run by hand, or by CI itself
# Commands that need hours, gigabytes or the network: only their flags are parsed.
FLAGS_ONLY = re.compile(r"scripts/stress\.py|benchmarks\.|gpt1[. ]download")
FLAGS_MISSING = re.compile(r"(there is no such|unrecognized argument|error: argument)")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in one of these languages; "" is no language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[str]:
    """Return the commands in a page's plain blocks, without output and other programs."""
    found = []
    for block in blocks(page, "", "bash", "console"):
        if "<<'" in block:  # The shell writes a file: the block is one command.
            found.append(block)
            continue
        joined = re.sub(r"\\\n\s*", " ", block)
        found += [line.strip() for line in joined.splitlines() if line.strip()]
    return [line for line in found if not line.startswith("#")]


def test_there_are_commands_to_run() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like the repository's root, with a small demo, after the README's commands."""
    place = tmp_path_factory.mktemp("readme")
    task = tiny.write_tiny(tmp_path_factory.mktemp("task"))
    csv = task.data_dir / datasets.VALIDATION_CSV
    with open(csv, "a", encoding="utf-8", newline="") as file:  # as long as the name in the pages
        file.write("long" + ",anna had a big big big big big kite" * 4 + ",anna ran,ben ran,1\r\n")
    shutil.copytree(task.data_dir, place / "data/demo")
    shutil.copytree(task.model_dir, place / "model/demo")
    shutil.copy(ROOT / "data/demo/example.csv", place / "data/demo")
    (place / "scripts").symlink_to(ROOT / "scripts")
    with _chdir(place):
        run_page(PAGES[0])
    return place


@pytest.fixture
def place(after_readme: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that directory for one page; it is the current directory."""
    place = shutil.copytree(after_readme, tmp_path / "root", symlinks=True)
    with _chdir(place):
        yield place


@contextlib.contextmanager
def _chdir(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_every_command_runs(page: Path, place: Path) -> None:
    """What they write, git ignores."""
    run_page(page)
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {path.name for path in place.iterdir()} <= {"data", "model", "scripts", *ignored}


@pytest.mark.slow
def test_the_readmes_commands_leave_what_it_says(place: Path) -> None:
    for name in re.findall(r"`((?:log|save|submission)/[\w./]+)`", PAGES[0].read_text()):
        assert (place / name).exists(), name


def run_page(page: Path) -> None:
    """Run the commands of a page, then its Python blocks."""
    for command in commands(page):
        run(command)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


def run(command: str) -> None:
    """Run a command; in this process if it is one of gpt1's, so that torch is imported once."""
    if "<<'" in command:
        text = re.search(r"cat > (\S+) <<'(\w+)'\n(.*?)^\2\n(.*)", command, re.S | re.M)
        assert text, command
        made = re.search(r"^mkdir -p (\S+)$", command, re.M)
        if made:
            Path(made[1]).mkdir(exist_ok=True)
        Path(text[1]).write_text(text[3])
        for line in text[4].splitlines():
            run(line)
        return
    words = shlex.split(command, comments=True)
    if words[:2] == ["make", "train"]:
        recipe = re.search(
            r"^train:.*\n\t\$\(VENV\)/bin/(.*)", (ROOT / "Makefile").read_text(), re.M
        )
        assert recipe
        words = recipe[1].split()
    if not words or words[0] in OTHER_PROGRAMS:
        return
    if any("torchrun" in word for word in words[:2]):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        begin = next(i for i, word in enumerate(words) if "torchrun" in word)
        command_line = [sys.executable, "-m", "torch.distributed.run", *words[begin + 1 :]]
        for _ in range(2):  # Another program may take the free port that torchrun has found.
            done = subprocess.run(command_line, env=environment, capture_output=True, text=True)
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        return
    assert run_ours(words, command) == 0, command


def run_ours(words: list[str], command: str) -> int:
    """Return the exit status of one of the project's programs; words may be patterns of files."""
    words = [
        found
        for word in words
        for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    program, *rest = words
    if Path(program).name.startswith("python"):
        if rest[0] == "-m":
            program, rest = rest[1], rest[2:]
            program = "gpt1.commands.cli" if program == "gpt1" else program
        else:
            program, rest = rest[0], rest[1:]
    elif Path(program).name != "gpt1":
        raise AssertionError(f"{command}: which program is this?")
    if Path(program).name == "gpt1":  # also as `python -m gpt1`
        program = "gpt1.commands.cli"
    if FLAGS_ONLY.search(command):
        rest = [*rest, "--help"]
    try:
        if program.startswith(("gpt1", "benchmarks")):
            return int(importlib.import_module(program).main(rest))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [program, *rest])
            patch.syspath_prepend(str(ROOT / "scripts"))
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
