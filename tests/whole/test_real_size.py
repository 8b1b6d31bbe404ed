"""The whole program at the paper's size, 116 million parameters, with random weights."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from released import write_released

N_VOCAB = 40478


@pytest.mark.slow
def test_real_size_loads_trains_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = tiny.write_tiny(tmp_path)
    pad_vocabulary(task.model_dir / "encoder_bpe_40000.json")
    (task.model_dir / "gpt1_config.json").unlink()  # This model has the usual 12 heads.
    write_released(task.model_dir)
    flags = ["--n_iter", "1", "--n_gpu", "1", "--n_batch", "16", "--device", "cpu", "--submit"]
    places = [f"--{kind}_dir={tmp_path / kind}" for kind in ("log", "save", "submission")]
    command = [sys.executable, "-m", "gpt1.train", *task.flags, *flags, *places]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    settings, *lines = (tmp_path / "log/rocstories.jsonl").read_text().splitlines()
    assert {name: json.loads(settings)[name] for name in ("n_embd", "n_layer", "n_head")} == {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    }
    (figures,) = map(json.loads, lines)
    assert figures["n_updates"] == tiny.N_TRAIN // 16
    assert math.isfinite(figures["va_cost"])
    submission = (tmp_path / "submission/ROCStories.tsv").read_text().splitlines()
    assert len(submission) == 1 + tiny.N_TEST
    bytes_of_parameters = (tmp_path / "save/rocstories/best_params.jl").stat().st_size
    assert bytes_of_parameters > 4 * 116e6
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"\nreal size: peak memory of the largest process {peak:.1f} GiB")


def pad_vocabulary(path: Path) -> None:
    """Add letters that no text uses until there are as many tokens as in the released files."""
    encoder = json.loads(path.read_text())
    encoder |= {f"{chr(0x10000 + i)}</w>": i for i in range(len(encoder), N_VOCAB)}
    path.write_text(json.dumps(encoder))
