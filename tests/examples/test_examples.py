"""The programs and the notebook in ``examples/`` run, on the tiny task in the place of the demo."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

import gpt1

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the demo is the tiny task."""
    directory = tmp_path_factory.mktemp("examples")
    task = tiny.write_tiny(directory / "tiny")
    shutil.copytree(task.data_dir, directory / "data" / "demo")
    shutil.copytree(task.model_dir, directory / "model" / "demo")
    return directory


def run(script: str, *words: str, directory: Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *words], cwd=directory, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fine_tuned(directory: Path) -> str:
    return run("fine_tune.py", "--n_iter", "2", "--out", "out/tuned", directory=directory)


def test_fine_tune(fine_tuned: str, directory: Path) -> None:
    lines = fine_tuned.splitlines()
    assert re.fullmatch(r"epoch 2: validation accuracy \d+\.\d\d %", lines[-3])
    assert "'test_accuracy': " in lines[-2]
    assert lines[-1].startswith("Ada made a kite.")
    assert gpt1.load_pretrained(directory / "out" / "tuned").has_choice_head


@pytest.mark.usefixtures("fine_tuned")
def test_score(directory: Path) -> None:
    shutil.copy(ROOT / "data" / "demo" / "example.csv", directory)
    out = run("score.py", "example.csv", "--model", "out/tuned", directory=directory)
    lines = out.splitlines()
    assert len(lines) == len((directory / "example.csv").read_text("utf-8").splitlines()) - 1
    assert all(re.match(r"(0\.[5-9]\d|1\.00)  \S", line) for line in lines)


def test_generate(directory: Path) -> None:
    words = ["Anna had a kite.", "Ben", "--max_new_tokens", "4"]
    lines = run("generate.py", *words, directory=directory).splitlines()
    found = [
        re.fullmatch(r"([a-z ]+) \(-\d+\.\d nats\): (Anna had a kite\.|Ben) .*", line)
        for line in lines
    ]
    assert [match and match[1] for match in found] == [
        way for way in ("likeliest", "sampled", "beam search") for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("script", "metrics", "lines"),
    [
        ("classify.py", ["valid_accuracy"], r"(good|bad) \(\d\.\d\d\): (Irene|Jack) was .*"),
        ("entail.py", ["valid_f1"], r"(yes|no): (Irene|Jack) had .* -> .*"),
        ("compare.py", ["valid_pearson"], r"[1-3]\.\d\d: (Ada|Ben) had a .* / .*"),
        ("choose.py", ["valid_accuracy"], r"(Grace|Henry) had a \w+\. It was a \w+\."),
    ],
)
def test_a_task_of_ones_own(directory: Path, script: str, metrics: list[str], lines: str) -> None:
    scores, *found = run(script, "--n_iter", "1", directory=directory).splitlines()[-3:]
    assert list(ast.literal_eval(scores)) == metrics
    assert [bool(re.fullmatch(lines, line)) for line in found] == [True, True]


def test_no_example_is_left_out() -> None:
    """Each file in the directory has its test here."""
    tested = {"fine_tune.py", "score.py", "generate.py", "quickstart.ipynb"}
    tested |= {"classify.py", "entail.py", "compare.py", "choose.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested


def notebook() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLES / "quickstart.ipynb").read_text("utf-8"))
    return loaded


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_the_cells_of_the_notebook_run_in_order(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "model"):
        shutil.copytree(directory / name, tmp_path / name)
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")  # where Jupyter starts
    names: dict[str, Any] = {}
    for cell in notebook()["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert Path.cwd() == tmp_path
    assert gpt1.load_pretrained(tmp_path / "out" / "my_model").has_choice_head
    assert names["result"].metrics["test_accuracy"] >= 0
