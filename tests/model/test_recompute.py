"""Layers that are computed again in the backward pass: the same numbers with less memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import Batch, pack
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.results.outputs import Outputs
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Ranks
from gpt1.settings.training import Settings
from gpt1.text_utils.special import SpecialTokens
from gpt1.training import capacity, runs
from gpt1.training.capacity import Attention, Tower, largest_tower, training_memory

ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(n_vocab=40, n_ctx=24, n_embd=16, n_head=4, n_layer=3)
SPECIAL = SpecialTokens.after(CONFIG.n_vocab)


def split_of(lengths: list[list[int]]) -> EncodedSplit:
    rng = np.random.default_rng(0)
    sequences = [
        [[*rng.integers(0, 40, length - 1).tolist(), SPECIAL.classify] for length in each]
        for each in lengths
    ]
    return EncodedSplit.of(sequences, SPECIAL, [0] * len(lengths))


def batch(*, share_prefix: bool) -> Batch:
    return pack(split_of([[24, 20], [7, 9]]), SPECIAL.classify, share_prefix=share_prefix)


def numbers(precision: str, *, recompute: bool, share_prefix: bool) -> list[torch.Tensor]:
    """Return the loss and all gradients, with dropout."""
    model = DoubleHeadsModel(CONFIG).train()
    model.init_parameters(torch.Generator().manual_seed(0))
    model.recompute = recompute
    torch.manual_seed(7)
    with arithmetic(precision, torch.device("cpu")):
        loss = model.losses(batch(share_prefix=share_prefix), 0.5).total
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_numbers_are_the_same_with_the_same_dropout(precision: str, share_prefix: bool) -> None:
    """On a CPU the second computation of a layer has the same bits as the first one."""
    plain, again = (
        numbers(precision, recompute=recompute, share_prefix=share_prefix)
        for recompute in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_only_the_inputs_of_the_layers_are_kept() -> None:
    kept = {}
    for recompute in (False, True):
        model = DoubleHeadsModel(CONFIG).train()
        model.recompute = recompute
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        x = torch.zeros(24, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.transform(x, [runs_plainly] * 3)
        kept[recompute] = sum(sizes)
    assert kept[True] <= 3 * 24 * 16
    assert kept[False] > 10 * kept[True]


class _Plain:
    """An attention context without attention."""

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def __call__(self, q: Any, k: Any, v: torch.Tensor, p: float) -> torch.Tensor:
        return v.flatten(1)


runs_plainly: Any = _Plain()


# -------------------------------------------------------------------------------- estimate


def test_the_largest_tower() -> None:
    split = split_of([[3, 4], [24, 2], [9, 9], [5, 5]])
    assert largest_tower(split, 2) == Tower(26 + 18, 4, 24)
    assert largest_tower(split, 99) == Tower(7 + 26 + 18 + 10, 198, 24)


PEAK = """
import sys, torch
from pathlib import Path
sys.path[:0] = {path!r}
import test_recompute as t
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.device import keep_freed_memory, return_large_blocks
recompute = {recompute}
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
keep_freed_memory()
if recompute:
    return_large_blocks()
torch.set_num_threads(1)
model = DoubleHeadsModel(t.LARGE).train()
model.init_parameters()
model.recompute = recompute
batch = t.pack(t.large_split(), t.SPECIAL.classify, share_prefix=False)
t.numbers("fp32", recompute=recompute, share_prefix=False)
before = peak()
for _ in range(2):
    model.losses(batch, 0.5).total.backward()
print(peak() - before)
"""
LARGE = ModelConfig(n_vocab=40, n_ctx=256, n_embd=32, n_head=4, n_layer=8)


def large_split() -> EncodedSplit:
    return split_of([[256, 256]] * 4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is used")
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_is_near_the_measured_peak(recompute: bool) -> None:
    """The estimate decides between two ways of which one takes several times the memory."""
    code = PEAK.format(path=[str(ROOT), str(ROOT / "tests/model")], recompute=recompute)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    estimate = training_memory(
        LARGE,
        largest_tower(large_split(), 4),
        recompute=recompute,
        precision="fp32",
        attention=Attention.WEIGHTS,
    )
    assert 1 / 1.7 < estimate / int(done.stdout) < 1.7


# -------------------------------------------------------------------------------- decision

ALONE = Ranks(0, 1, torch.device("cpu"))


def decided(monkeypatch: pytest.MonkeyPatch, there: int | None, **settings: Any) -> bool | None:
    monkeypatch.setattr(capacity, "host_memory", lambda: there)
    model: Any = SimpleNamespace(config=LARGE, recompute=False)
    given = Settings(n_batch=4, **settings)
    tower, log = largest_tower(large_split(), 4), Outputs(given).log
    chosen = runs.set_recompute(model, given, log, tower, ALONE, program="gpt1 train")
    assert model.recompute is chosen
    return chosen


def test_it_is_on_where_memory_would_not_suffice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = largest_tower(large_split(), 4)
    needed = training_memory(
        LARGE, tower, recompute=False, precision="fp32", attention=Attention.WEIGHTS
    )
    enough = math.ceil(needed / capacity.USABLE)
    assert decided(monkeypatch, enough) is False
    assert decided(monkeypatch, None) is False
    assert capsys.readouterr().err == ""
    assert decided(monkeypatch, enough // 2) is True
    assert capsys.readouterr().err == (
        "gpt1 train: --recompute is on, because training would take about "
        f"{capacity.shown(needed)} of memory without it, and there are "
        f"{capacity.shown(enough // 2, math.floor)}\n"
    )
    assert decided(monkeypatch, enough // 2, recompute=False) is False
    assert decided(monkeypatch, enough, recompute=True) is True
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert decided(monkeypatch, enough) is True


@pytest.mark.parametrize("recorded", [True, False])
def test_a_resumed_run_does_as_its_log_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: bool
) -> None:
    (tmp_path / "rocstories.jsonl").write_text(f'{{"recompute": {str(recorded).lower()}}}\n')
    there = 1 if not recorded else None
    options = {"log_dir": str(tmp_path), "resume": True}
    assert decided(monkeypatch, there, **options) is recorded
    assert decided(monkeypatch, there, **options | {"resume": False}) is not recorded
    (tmp_path / "rocstories.jsonl").write_text("no JSON\n")
    assert decided(monkeypatch, there, **options) is not recorded
