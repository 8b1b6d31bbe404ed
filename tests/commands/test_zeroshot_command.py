"""``gpt1 zeroshot``: what it prints, into a pipe too, its file, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_files import write_task
from tiny import Tiny

import gpt1
from gpt1.commands import zeroshot


def status_of(task: Tiny, *words: str) -> int:
    return zeroshot.main([*task.flags, "--device", "cpu", *words])


def test_the_report_has_scores_intervals_and_chance_in_80_columns(
    task: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert status_of(task, "--dataset", "rocstories", "--json", str(file)) == 0
    out, err = capsys.readouterr()
    assert err == f"gpt1 zeroshot: written: {file}\n"
    assert all(len(line) <= 80 for line in out.splitlines())
    result = gpt1.zeroshot("rocstories", model_dir=task.model_dir, data_dir=task.data_dir)
    joined = out.replace("\n  ", " ")
    for stem, name in (("ROCStories", "test"), ("ROCStories.dev", "valid")):
        score = result.metrics[f"{name}_accuracy"]
        n = len(result.predictions[stem])
        assert f"\n{stem}: {round(score * n / 100)} of {n} right, {score:.2f} %; 95 %" in joined
        assert f"\n{stem}: answers drawn at random: accuracy 50.00 %" in joined
    assert "the answer with the highest mean log-probability per token" in joined
    assert json.loads(file.read_text())["metrics"] == result.metrics


def test_the_report_of_classes_has_the_best_class_and_the_threshold(
    task: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path / "cola", "cola")
    words = ["--dataset", "cola", "--data_dir", str(folder)]
    assert status_of(task, *words) == 0
    out = capsys.readouterr().out
    assert "threshold chosen on the training split: " in out
    assert "CoLA: 1 predictions, labels are not known" in out
    assert "CoLA.dev: Matthews " in out
    assert "the best class for all examples: matthews 0.00 %, accuracy 50.00 %" in (
        out.replace("\n  ", " ")
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dataset", "stsb"], "--dataset stsb: its labels are grades"),
        (["--dataset", "rte"], "--template: must be given with --dataset rte"),
        (["--dataset", "sst2", "--template", "{text}"], "--template {text}: must have {label}"),
        (["--dataset", "sst2", "--labels", "a"], "--labels a: has 1 words, but SST-2 has 2"),
        (["--dataset", "own", "--shape", "choice"], "--test_file: must be given with"),
        (["--dataset", "rocstories", "--test_file", "a.csv"], "--test_file: is for --dataset own"),
        (["--dataset", "snli", "--template", "{x} {label}", "--labels", "a,b,c"], "has {x}, but"),
        (["--score", "max"], "--score max: must be one of mean, sum"),
        (["--dataset", "sst2", "--data_dir", "nowhere"], "nowhere/ has no 'train.tsv'"),
        (["--model_dir", "nowhere"], "nowhere"),
        (["--precision", "tf32"], "--precision tf32: needs a CUDA device"),
    ],
)
def test_mistakes_are_one_message_with_status_2(
    task: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert status_of(task, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert err.startswith("gpt1 zeroshot: error: ")
    assert err.count("\n") == 1
