"""What the pages name exists: tests, modules, scripts, flags and files."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gpt1.generate import Options
from gpt1.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_FLAGS = {  # of torchrun, TensorBoard, git and make
    *("--nproc_per_node", "--nnodes", "--node_rank", "--rdzv-backend", "--rdzv-endpoint"),
    *("--rdzv-id", "--standalone", "--max-restarts", "--help", "--version", "--logdir", "--depth"),
    *("--check", "--durations", "--monitor-interval"),
    # of Slurm
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--signal", "--requeue"),
    "--open-mode",
}


def own_flags() -> set[str]:
    """The flags of training, and those that any other program adds in its source."""
    sources = [
        path for room in ("gpt1", "scripts", "benchmarks") for path in (ROOT / room).rglob("*.py")
    ]
    added = re.findall(r"add(?:_argument)?\(\s*\"(--\w+)\"", "".join(map(Path.read_text, sources)))
    names = [*Settings().as_flags(), *(item.name for item in fields(Options))]
    return {f"--{name}" for name in names} | set(added)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_tests_exist(page: Path) -> None:
    for file, test in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text()):
        assert re.search(rf"^def {test}\b", (ROOT / "tests" / file).read_text(), re.M), test


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b((?:scripts|tests|gpt1|docs)/[\w/]+\.\w+)\b", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_flags_exist(page: Path) -> None:
    known = own_flags() | OTHER_FLAGS
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    assert named <= known, named - known
