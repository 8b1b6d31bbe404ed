"""The benchmark of everything on a GPU: it can be tried without one, and a part ends no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from tiny import N_TEST, Tiny

from benchmarks import gpu
from benchmarks.gpu_data import make_ids, read_ids
from benchmarks.gpu_profile import summarize
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.runtime.errors import InputError
from gpt1.training.prepare import load_data

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"
# Python imports this module at its start. It stands for a machine without these packages.
WITHOUT_TEXT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("spacy", "ftfy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def without_text(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without spaCy and ftfy."""
    place = tmp_path / "missing"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WITHOUT_TEXT)
    paths = os.pathsep.join([str(place), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def test_training_on_ids_needs_no_library_that_reads_text(without_text: dict[str, str]) -> None:
    code = (
        "import benchmarks.gpu, benchmarks.gpu_parts, gpt1.training.runs\n"
        "import gpt1.training.pretraining_runs, gpt1.inference.language_model\n"
        "from gpt1.text_utils import text_standardize\n"
        "assert text_standardize('a—b') == 'a - b'\n"
        "from gpt1.text_utils.words import EnglishWords\n"
        "try:\n    EnglishWords('2.0')\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=without_text, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "No module named 'spacy'\n"), done.stderr


@pytest.mark.slow
def test_the_whole_program_runs_in_small_on_a_cpu(
    task: Tiny, tmp_path: Path, without_text: dict[str, str]
) -> None:
    ids, out = tmp_path / "ids.npz", tmp_path / "out"
    make_ids(ids, task.data_dir, task.model_dir)
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    command = [str(SCRIPT), str(out), str(ids), "--device", "cpu", "--small"]
    command += ["--patience", "100"]  # The machine may be busy.
    done = subprocess.run(command, env=without_text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 1 <= len(list(out.iterdir())) <= 8
    found = json.loads((out / "gpu.json").read_text())
    states = {name: part["state"] for name, part in found["parts"].items()}
    may_be_missing = {"peer": "left out: transformers is not installed"}
    assert {*states} == {*gpu.SECONDS}
    assert {
        name: state
        for name, state in states.items()
        if state not in ("done", may_be_missing.get(name))
    } == {}
    versions = found["figures"]["machine"]["versions of packages"]
    assert (versions["spacy"], versions["ftfy"]) == ("missing", "missing")
    assert found["figures"]["deterministic"]["default flags: the bits are equal"] is True
    assert found["compared"]["fast: seconds without files"] > 0
    assert "the kernels that take longest" in (out / "profile.txt").read_text()


PROGRAMS = {
    "good": "import sys, json; json.dump({'figure': 1.5}, open(sys.argv[1], 'w')); print('ran')",
    "bad": "import sys, json; json.dump({'before': 2}, open(sys.argv[1], 'w')); 1 / 0",
    "endless": "import time; time.sleep(1000)",
    "absent": "import sys; sys.exit('benchmarks.gpu_parts: error: left out: no transformers')",
    "last": "print('ran, too')",
}


def test_a_part_that_fails_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str, args: Namespace, json_path: Path) -> list[str]:
        return [sys.executable, "-c", PROGRAMS[name], str(json_path)]

    monkeypatch.setattr(gpu, "SECONDS", {**dict.fromkeys(PROGRAMS, 1000), "endless": 1})
    monkeypatch.setattr(gpu, "LEAST", 0)
    monkeypatch.setattr(gpu, "command", command)
    out = tmp_path / "out"
    monkeypatch.setattr(gpu, "TOTAL", 10_000)
    given = [str(out), "--device", "cpu", "--small"]
    assert gpu.main(given) == 1
    parts = json.loads((out / "gpu.json").read_text())["parts"]
    assert [part["state"] for part in parts.values()] == [
        "done",
        "failed with exit status 1: ZeroDivisionError: division by zero",
        "stopped after 1 s",
        "left out: no transformers",
        "done",
    ]
    summary = (out / "summary.txt").read_text()
    assert "Traceback (most recent call last)" in summary
    assert "figure: 1.5" in summary
    assert "before: 2" in summary  # What a part measured before its error is kept.
    assert "ran, too" in (out / "logs.txt").read_text()
    assert summary in capsys.readouterr().out
    assert gpu.main([*given, "--parts", "good", "absent"]) == 0


def test_no_part_starts_when_no_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "TOTAL", gpu.LEAST - 1)
    given = [str(tmp_path), "--device", "cpu", "--small", "--parts", "fast"]
    assert gpu.main(given) == 0
    states = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert states["fast"]["state"] == "left out: no time was left"


def test_all_limits_together_leave_nine_minutes_for_the_important_parts() -> None:
    assert gpu.TOTAL <= 9 * 60 - 20
    important = ("machine", "tests", "fast", "default", "pretraining")
    assert [*gpu.SECONDS][:5] == [*important]
    assert sum(gpu.SECONDS[name] for name in important) <= gpu.TOTAL


def test_a_cpu_is_measured_in_small_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "give --small, too" in capsys.readouterr().err
    assert gpu.main(["--device", "cpu", "--small"]) == 2
    assert "OUT_DIR is missing" in capsys.readouterr().err
    assert gpu.main([str(tmp_path), str(tmp_path / "ids.npz"), "--device", "cpu", "--small"]) == 2
    assert "make it with --make_ids" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_ids_has_the_data_without_text(task: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    make_ids(path, task.data_dir, task.model_dir)
    with np.load(path) as arrays:
        assert {array.dtype.kind for array in arrays.values()} <= {"i", "u"}
    whole = load_data(task.settings(), task.sources(), verbose=False)
    found = read_ids(path, (1000, 1000, 1000))
    assert found.sha256() == whole.sha256()
    assert (found.n_vocab, found.n_ctx) == (whole.n_vocab, whole.n_ctx)
    assert found.train.labels is not None
    few = read_ids(path, (3, 2, 1000))
    assert (few.train.n_examples, few.valid.n_examples) == (3, 2)
    assert few.predicted[ROCSTORIES.submission].n_examples == N_TEST
    path.write_bytes(b"no arrays")
    with pytest.raises(InputError, match="cannot be read as a file of ids"):
        read_ids(path, (1, 1, 1))


def test_a_profile_shows_gaps_kernels_and_waits(tmp_path: Path) -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, object]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("kernel", "gemm", 1000, 200),
        event("gpu_memcpy", "copy", 1100, 300),  # overlaps: busy from 1000 to 1400
        event("kernel", "gemm", 1600, 400),  # after a gap of 200
        event("gpu_user_annotation", "step", 1000, 1000),  # no work
        event("cpu_op", "aten::mm", 0, 5000),  # not on the device
        event("cuda_runtime", "cudaStreamSynchronize", 1500, 10),
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = summarize(path, 2, seconds_per_update=0.001, on_gpu=True)
    assert found["seconds per update in which the device was busy"] == pytest.approx(0.0004)
    assert found["share of time without work, without the profiler"] == pytest.approx(0.6)
    assert found["share of time without work, under the profiler"] == pytest.approx(0.2)
    assert found["kernels per update"] == 1.5
    waits = "waits of the program for the GPU (the last one is the profiler's)"
    assert found[waits] == {"cudaStreamSynchronize": 1}
    kernels, _, gaps = found["text"].partition("the longest gaps")
    assert textwrap.dedent(kernels.splitlines()[-4]).split() == ["0.300", "1", "gemm"]
    assert gaps.split()[-2:] == ["0.200", "gemm"]
