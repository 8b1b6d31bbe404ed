"""Compare the whole program with a whole run of the original, on the real data.

The reference values (``rocstories_run.*``) were printed by the running original on the real
CSVs with dropout 0, from a small stand-in checkpoint in the released layout.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import assert_within

from gpt1.commands import train
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import Stopped
from gpt1.training.loop import Trainer
from gpt1.weights import jl, parameters
from gpt1.weights.released import load_released

SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 3}
FLAGS = [
    *("--dataset", "rocstories", "--submit", "--analysis", "--n_embd", "48", "--n_head", "4"),
    *("--n_layer", "3", "--n_transfer", "3", "--lr", "2e-3", "--embd_pdrop", "0"),
    *("--attn_pdrop", "0", "--resid_pdrop", "0", "--clf_pdrop", "0", "--device", "cpu"),
    # The original split words by the spaCy of the day it ran, 3.8.18: 3 texts differ from 2.0.
    *("--spacy_rules", "installed"),
    "--quiet",
]


@dataclass
class Run:
    """The files of a run."""

    directory: Path
    stdout: str

    def lines(self, name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def golden(references_dir: Path) -> dict[str, np.ndarray]:
    with np.load(references_dir / "rocstories_run.npz") as values:
        return dict(values)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def flags(
    rocstories_dir: Path,
    released_dir: Path,
    references_dir: Path,
    golden: dict[str, np.ndarray],
    directory: Path,
) -> list[str]:
    """The flags of the reference run without directories; it starts from the same parameters."""
    checkpoint = directory / "model"
    maker = [sys.executable, references_dir / "make_checkpoint.py", checkpoint]
    sizes = ["--n_embd", "48", "--n_layer", "3", "--seed", "1234", "--scale", "0.08"]
    subprocess.run([*maker, *sizes], check=True)
    start = directory / "start.jl"
    n_ctx = int(golden["n_ctx"])
    released = load_released(
        checkpoint, special=golden["special"], n_ctx=n_ctx, n_transfer=SIZES["n_layer"]
    )
    drawn = {"clf/w": golden["clf_w"], "clf/b": golden["clf_b"]}
    names = parameters.parameter_shapes(ModelConfig(n_ctx=n_ctx, **SIZES))
    jl.write_jl(start, [(released | drawn)[name] for name in names])
    places = ["--data_dir", rocstories_dir, "--model_dir", released_dir, "--init_params", start]
    return [*FLAGS, *map(str, places)]


def results(directory: Path) -> list[str]:
    """Return the flags that put all results of a run into a directory."""
    kinds = ("log", "save", "submission")
    return [word for kind in kinds for word in (f"--{kind}_dir", str(directory / kind))]


@pytest.fixture(scope="module")
def run(flags: list[str], directory: Path) -> Run:
    """The whole reference run."""
    command = [sys.executable, "-m", "gpt1.train", *flags, *results(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Run(directory, done.stdout)


@pytest.mark.golden
def test_the_first_updates_are_the_originals(
    flags: list[str],
    golden: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Eight updates of the reference run, few enough to be made on many kinds of processor."""
    update = Trainer._update

    def update_or_stop(trainer: Trainer, number: int, *rest: Any) -> None:
        if number == 9:
            raise Stopped(signal.SIGTERM, "after eight updates")
        update(trainer, number, *rest)

    monkeypatch.setattr(Trainer, "_update", update_or_stop)
    assert train.main([*flags, *results(tmp_path)]) == 128 + signal.SIGTERM
    updates = Run(tmp_path, "").lines("log/rocstories.updates.jsonl")
    costs = [line["clf_cost"] for line in updates]
    assert len(costs) == 8
    assert_within(costs, golden["train_costs"][:8], 1e-5, "classification costs")


def test_every_classification_cost_is_the_originals(run: Run, golden: dict[str, np.ndarray]):
    updates = run.lines("log/rocstories.updates.jsonl")
    assert [line["n_updates"] for line in updates] == list(range(1, 139))
    costs = [line["clf_cost"] for line in updates]
    assert_within(costs, golden["train_costs"], 1e-4, "classification costs")


def test_logged_figures_are_the_originals(run: Run, references_dir: Path):
    ours = run.lines("log/rocstories.jsonl")
    theirs = [
        json.loads(line)
        for line in (references_dir / "rocstories_run.jsonl").read_text().splitlines()
    ]
    assert len(ours) == len(theirs) == 4
    for flag, value in theirs[0].items():
        if flag not in ("time", "data_dir", "log_dir", "save_dir", "submission_dir") and (
            not flag.endswith("_path")
        ):
            assert ours[0][flag] == value, flag
    for own, other in zip(ours[1:], theirs[1:], strict=True):
        assert own.keys() == other.keys()
        assert (own["n_epochs"], own["n_updates"]) == (other["n_epochs"], other["n_updates"])
        for figure, tolerance in (("cost", 1e-4), ("acc", 0.3)):
            for split in ("tr", "va"):
                name = f"{split}_{figure}"
                assert_within(own[name], other[name], tolerance, name)


def test_submission_is_the_originals(run: Run, references_dir: Path):
    ours = (run.directory / "submission/ROCStories.tsv").read_text().splitlines()
    theirs = (references_dir / "rocstories_run.tsv").read_text().splitlines()
    assert ours[0] == theirs[0]
    assert len(ours) == len(theirs) == 1872
    equal = sum(own == other for own, other in zip(ours[1:], theirs[1:], strict=True))
    assert equal / 1871 >= 0.995


def test_best_parameters_are_a_list_that_plain_joblib_reads(run: Run):
    import joblib

    params = joblib.load(run.directory / "save/rocstories/best_params.jl")
    shapes = parameters.parameter_shapes(ModelConfig(n_ctx=77, **SIZES))
    assert [p.shape for p in params] == list(shapes.values())
    assert all(p.dtype == np.float32 for p in params)


def test_last_parameters_are_the_originals(run: Run, golden: dict[str, np.ndarray]):
    """The best parameters are an earlier epoch's; those of the end are in the checkpoint."""
    from gpt1.training import checkpoint

    newest = checkpoint.checkpoints(run.directory / "save/rocstories")[-1]
    state, _ = checkpoint.load(newest)
    assert state.n_updates == 138
    compared = 0
    for key, value in golden.items():
        if not key.startswith("final/") or "clf/b" in key:
            continue
        name = key.removeprefix("final/model/").removesuffix(":0").replace("/", ".")
        name = "model." + name.replace("h0.", "h.0.").replace("h2.", "h.2.")
        ours = state.tensors[name].numpy()
        theirs = value.reshape(ours.shape)
        if name.endswith("c_attn.b"):  # The keys' part is rounding noise: docs/fidelity.md.
            ours, theirs = (np.delete(each, np.s_[48:96]) for each in (ours, theirs))
        assert_within(ours, theirs, 1e-3, name)
        compared += 1
    assert compared >= 10


def test_printed_lines(run: Run):
    printed = run.stdout.splitlines()
    logged = run.lines("log/rocstories.jsonl")[1:]
    names = ("n_epochs", "n_updates", "tr_cost", "va_cost", "tr_acc", "va_acc")
    form = "%d %d %.3f %.3f %.2f %.2f"
    assert printed[:3] == [form % tuple(line[name] for name in names) for line in logged]
    best = max(line["va_acc"] for line in logged)
    assert printed[3] == f"ROCStories Valid Accuracy: {best:.2f}"
    assert printed[4].startswith("ROCStories Test Accuracy:  ")


def test_main_is_what_the_module_runs():
    assert train.main(["--n_iter", "none"]) == 2
