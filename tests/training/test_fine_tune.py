"""Fine-tuning from Python: the same run as from the command line, and what it gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import gpt1
from gpt1.commands import train
from gpt1.datasets.story_cloze import TEST_CSV, read_cloze
from gpt1.results import submissions
from gpt1.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {"n_iter": 2, "n_batch": 8, "n_gpu": 1, "device": "cpu", "lr": 1e-3}


@pytest.fixture
def places(task: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The arguments that name the tiny task; runs write into an empty directory."""
    monkeypatch.chdir(tmp_path)
    return {"data_dir": str(task.data_dir), "model_dir": str(task.model_dir)}


def test_fine_tune_score_and_save_in_six_lines(
    task: tiny.Tiny, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = list(zip(*read_cloze(task.data_dir / TEST_CSV)[:3], strict=True))

    result = gpt1.fine_tune("rocstories", verbose=False, **SETTINGS, **places)
    chosen = result.model.predict(examples)
    result.model.save("my_model")

    assert chosen == submissions.read_submission("submission/rocstories/ROCStories.tsv")
    assert chosen == result.predictions["ROCStories"].tolist()
    assert gpt1.load_pretrained("my_model").predict(examples) == chosen
    assert gpt1.load_pretrained("save/rocstories").predict(examples) == chosen
    assert not result.model.module.training
    assert isinstance(result.model, gpt1.LanguageModel)
    assert isinstance(result.model.log_likelihood("Anna ran."), float)


def test_the_result_has_the_figures_of_the_log(places: dict[str, str]) -> None:
    result = gpt1.fine_tune(verbose=False, **SETTINGS, **places)
    rows = [json.loads(line) for line in Path("log/rocstories.jsonl").read_text().splitlines()]
    assert result.history == [
        {name: value for name, value in row.items() if name != "time"} for row in rows[1:]
    ]
    assert [row["n_epochs"] for row in result.history] == [1, 2]
    best = max(row["va_acc"] for row in result.history)
    assert result.metrics["valid_accuracy"] == best
    assert set(result.metrics) == {"valid_accuracy", "test_accuracy"}


def test_the_run_is_that_of_the_command_line(places: dict[str, str]) -> None:
    gpt1.fine_tune(verbose=False, **SETTINGS, **places, desc="python")
    flags = {**SETTINGS, **places, "desc": "flags"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert train.main([*words, "--submit", "--quiet"]) == 0
    best = [Path("save", desc, "best_params.jl").read_bytes() for desc in ("python", "flags")]
    assert best[0] == best[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_iter": -1}, "n_iter=-1: must be at least 0"),
        ({"epochs": 3}, "epochs: there is no such argument"),
        ({"n_batch": 64}, "fewer than a batch of n_batch=64 * n_gpu=1; make the batch smaller"),
        ({"n_embd": 32}, "n_embd=32: "),
        ({"analysis": True, "submit": False}, "analysis: needs the run's own predictions; give"),
        ({"data_dir": "nowhere"}, "or name their directory with data_dir"),
    ],
)
def test_errors_speak_of_arguments(
    places: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        gpt1.fine_tune(verbose=False, **{**SETTINGS, **places, **changes})
    assert expected in str(caught.value)
    assert "--" not in str(caught.value)
