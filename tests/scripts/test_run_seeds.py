"""Runs with several seeds: finished runs are not repeated, and the report is right."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
from small_tasks import LIKENESS

from gpt1.datasets.story_cloze import TEST_CSV, read_cloze
from gpt1.reports.labelled import first_labelled
from gpt1.reports.statistics import bootstrap_interval
from gpt1.results.submissions import read_submission, table
from gpt1.tasks import PEARSON

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_seeds", ROOT / "scripts/run_seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_seeds"] = module  # dataclasses need the module in sys.modules
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiny.Tiny:
    """A tiny task of the test's own, in a current directory where runs compute with one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tiny.write_tiny(tmp_path / "task")


def output(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What was printed on stdout and stderr, without the notes on resuming."""
    out, err = capsys.readouterr()
    return out, "".join(line for line in err.splitlines(True) if not line.startswith("--resume: "))


@pytest.mark.slow
def test_runs_once_and_reports(
    script: ModuleType,
    task: tiny.Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--seeds", "2", "--first", "5", "--n_iter", "1", *task.flags]
    assert script.main(flags) == 0
    shown, told = output(capsys)
    assert told == "seed 5: done\nseed 6: done\n"
    labels = read_cloze(task.data_dir / TEST_CSV).labels
    found = []
    for seed in (5, 6):
        own = read_submission(tmp_path / f"submission/rocstories-seed{seed}/ROCStories.tsv")
        right = sum(a == b for a, b in zip(own, labels, strict=True))
        found.append(100 * right / len(labels))
        assert f"seed {seed}: {found[-1]:.2f}\n" in shown
    assert f"median {statistics.median(found):.2f}, range {min(found):.2f} to" in shown
    assert "needs 6 runs" in shown

    # Finished runs stay, missing runs are made, and runs with other flags are refused.
    first = tmp_path / "submission/rocstories-seed5/ROCStories.tsv"
    stamp = first.stat().st_mtime_ns
    (tmp_path / "submission/rocstories-seed6/ROCStories.tsv").unlink()
    assert script.main(flags) == 0
    again, told = output(capsys)
    assert again == shown
    assert told == "seed 5: done already\nseed 6: done\n"
    assert first.stat().st_mtime_ns == stamp

    # A submission of an earlier run of the name does not count: here the log is begun anew.
    log = tmp_path / "log/rocstories-seed6.jsonl"
    settings, *rest = log.read_text().splitlines()
    settings = json.dumps({**json.loads(settings), "run_id": "another"})
    log.write_text("\n".join([settings, *rest, ""]))
    assert script.main(flags) == 0
    assert output(capsys) == (shown, "seed 5: done already\nseed 6: done\n")
    assert script.main(flags) == 0
    assert output(capsys) == (shown, "seed 5: done already\nseed 6: done already\n")
    assert script.main([*flags, "--lr", "0.5"]) == 2
    assert "made with another lr" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_ends_them_all(
    script: ModuleType,
    task: tiny.Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (task.model_dir / "params_3.npy").write_bytes(b"")
    assert script.main(["--seeds", "2", *task.flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("run_seeds: error: seed 1: ")
    assert "params_3.npy" in message
    assert not (tmp_path / "save/rocstories-seed2").exists()


@pytest.mark.parametrize(
    "flags", [["--seed", "3"], ["--resume"], ["--seeds", "0"], ["--lr", "fast"]]
)
def test_what_it_sets_itself_is_refused(
    script: ModuleType, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_the_interval_of_a_median_holds_it_as_often_as_it_says(script: ModuleType) -> None:
    """Ten values: second to ninth, 1 - 2 * (1 + 10) / 1024 = 97.9 %; five are too few."""
    values = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0, 8.0, 6.0, 10.0]
    assert script.median_interval(values) == (2.0, 9.0)
    assert script.median_interval(values[:5]) is None
    assert script.median_interval(values[:6]) == (1.0, 9.0)
    assert 1 - 2 * sum(math.comb(10, k) for k in range(3)) / 1024 < 0.95  # third to eighth: no


def test_the_report_on_another_metric_has_bootstrap_intervals(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval is that of the run whose score is closest to the median."""
    monkeypatch.chdir(tmp_path)
    split = first_labelled(LIKENESS, LIKENESS.read(tmp_path).predicted)
    rng, runs, found = np.random.default_rng(1), [], []
    for seed, noise in ((1, 0.5), (2, 8.0), (3, 2.0)):
        runs.append(script.SeedRun(seed, split.stem, {"desc": f"x-seed{seed}"}))
        predictions = split.labels + noise * rng.normal(size=len(split.labels))
        path = Path(f"submission/x-seed{seed}/Likeness.dev.tsv")
        path.parent.mkdir(parents=True)
        path.write_text(table([repr(grade) for grade in predictions.tolist()]))
        found.append((PEARSON.compute(predictions, split.labels), predictions))
    scores = [score for score, _ in found]
    (median, typical) = sorted(found, key=lambda pair: pair[0])[1]
    assert PEARSON.resampled is not None
    low, high = bootstrap_interval(PEARSON.resampled(typical, split.labels), 16)
    assert script.report(runs, split).splitlines() == [
        *(f"seed {seed}: {score:.2f}" for seed, score in enumerate(scores, 1)),
        f"median {median:.2f}, range {min(scores):.2f} to {max(scores):.2f} (3 runs)",
        "95 % interval of the median over seeds: needs 6 runs or more",
        f"95 % interval from the choice of the 16 validation examples: {low:.2f} to {high:.2f}",
    ]
