"""Whole runs on small tasks of classes, letters and grades: log, submissions and analysis."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from small_tasks import COLOURS, LETTERS, LIKENESS

import gpt1
from gpt1.commands import analysis, train
from gpt1.datasets import TASKS
from gpt1.results import submissions
from gpt1.results.log_lines import read_run_log
from gpt1.tasks import Task

TASKS_BY_NAME = {task.name: task for task in (COLOURS, LETTERS, LIKENESS)}
EVERY = pytest.mark.parametrize("task", TASKS_BY_NAME.values(), ids=TASKS_BY_NAME)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(
    task: Task, files: tiny.Tiny, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str | int | bool]:
    """Let the task stand in for a known one, and return the flags of a short run on it."""
    monkeypatch.setitem(TASKS, "rocstories", task)
    monkeypatch.setitem(TASKS, task.name, task)
    places = {"data_dir": ".", "model_dir": str(files.model_dir), "device": "cpu"}
    return {**places, "desc": "mine", "n_iter": 2, "n_batch": 4, "n_gpu": 1, "lr": 1e-3}


@EVERY
def test_every_split_gets_a_submission_that_analysis_knows(
    task: Task,
    files: tiny.Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = gpt1.fine_tune(verbose=False, probs=True, **flags(task, files, monkeypatch))
    stems, metric = (task.title, f"{task.title}.dev"), task.metrics[0]
    assert tuple(result.predictions) == stems
    assert result.metrics == {f"valid_{metric.title}": result.best_score}
    for stem, predictions in result.predictions.items():
        for path in (Path("submission/mine", f"{stem}.tsv"), Path("submission", f"{stem}.tsv")):
            assert submissions.read_submission(path, task.target) == predictions.tolist()
            record = submissions.read_record(path)
            assert record is not None
            assert (record.dataset, record.split) == (task.name, stem)
            assert (record.metric, record.valid_score) == (metric.title, result.best_score)
        probs = submissions.read_probs(f"submission/mine/{stem}.probs.tsv", task.target)
        assert probs.predictions.tolist() == predictions.tolist()
        assert probs.probs.shape == (len(predictions), len(task.target.columns))

    names = [
        f"{part}_{each}" for each in ("cost", *(m.name for m in task.metrics)) for part in "tv"
    ]
    log = read_run_log("log/mine.jsonl")
    expected = [name.replace("t_", "tr_", 1).replace("v_", "va_", 1) for name in names]
    assert list(log.evaluations[0].figures) == expected
    assert max(line.valid_score for line in log.evaluations) == result.best_score

    words = [f"submission/mine/{task.title}.dev.tsv", "--log", "log/mine.jsonl", "--data_dir", "."]
    assert analysis.main(words) == 0
    name = metric.title.capitalize()
    assert capsys.readouterr().out.startswith(
        f"{task.title} Valid {name}: {result.best_score:.2f}\n"
        f"{task.title}.dev {name}:   {result.best_score:.2f}\n\nRun: mine\n{task.title}.dev: "
    )


@EVERY
def test_a_run_prints_six_columns_and_the_report_on_the_validation_split(
    task: Task,
    files: tiny.Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = flags(task, files, monkeypatch).items()
    words = [word for name, value in found for word in (f"--{name}", str(value))]
    assert train.main([*words, "--submit", "--analysis"]) == 0
    out, err = capsys.readouterr()
    line = r"\d+ \d+ \d+\.\d{3} \d+\.\d{3} -?\d+\.\d{2} -?\d+\.\d{2}\n"
    name = task.metrics[0].title
    assert re.match(rf"({line}){{2}}{task.title} Valid {name.capitalize()}: -?\d+\.\d\d\n", out)
    assert f"\n{task.title}.dev: " in out
    assert re.search(rf"best after epoch [12]: valid {name} -?\d+\.\d\d %\n", err)
    assert f"next: gpt1 analysis submission/mine/{task.title}.dev.tsv --log log/mine.jsonl" in err


def test_a_run_without_epochs_has_no_score(
    files: tiny.Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**flags(COLOURS, files, monkeypatch), "n_iter": 0}
    gpt1.fine_tune(verbose=False, **changes)
    text = Path("submission/mine/Colours.dev.run.json").read_text()
    assert json.loads(text)["valid_score"] is None
    assert submissions.read_record("submission/mine/Colours.dev.tsv") is not None
