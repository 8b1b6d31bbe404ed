"""The faster variants compute the same: shared prefixes, bfloat16, compiled layers."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from padded import Padded
from torch import Tensor

from gpt1.batches.packing import pack
from gpt1.commands.train import main
from gpt1.model import contexts
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig, _WeightedCrossEntropy
from gpt1.runtime.errors import InputError
from gpt1.settings.training import Settings, parse

ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(n_vocab=50, n_ctx=24, n_embd=32, n_head=4, n_layer=2)
DROPOUTS = ["--embd_pdrop", "--attn_pdrop", "--resid_pdrop", "--clf_pdrop"]
NO_DROPOUT = [word for flag in DROPOUTS for word in (flag, "0")]


def stories(n: int = 6) -> Padded:
    """Return random stories whose two choices share a prefix."""
    rng = np.random.default_rng(0)
    X = np.zeros((n, 2, CONFIG.n_ctx, 2), np.int32)
    M = np.zeros((n, 2, CONFIG.n_ctx), np.float32)
    X[..., 1] = CONFIG.n_vocab + CONFIG.n_special + np.arange(CONFIG.n_ctx)
    for i in range(n):
        prefix = rng.integers(1, 50, rng.integers(3, 10)).tolist()
        for c in range(2):
            ids = [50, *prefix, 51, *rng.integers(1, 50, rng.integers(1, 8)).tolist(), 52]
            X[i, c, : len(ids), 0] = ids
            M[i, c, : len(ids)] = 1
    return Padded(X, M, rng.integers(0, 2, n).astype(np.int32))


def fresh_model() -> DoubleHeadsModel:
    model = DoubleHeadsModel(CONFIG)
    model.init_parameters(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.mark.parametrize("share_prefix", [False, True])
def test_bfloat16_is_close_and_keeps_float32_parameters(share_prefix: bool):
    model = fresh_model().eval()
    batch = pack(stories().encoded(), CONFIG.clf_token, share_prefix=share_prefix)
    exact = model.losses(batch, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.losses(batch, 0.5)
        rounded.total.backward()
        logits = model.clf_logits(batch)
    assert rounded.lm is not None
    torch.testing.assert_close(rounded.clf, exact.clf, rtol=0, atol=0.05)
    torch.testing.assert_close(rounded.lm, exact.lm, rtol=0.02, atol=0)
    assert not torch.equal(rounded.clf, exact.clf)  # The layers do compute in bfloat16.
    assert logits.dtype == torch.float32  # The classifier does not.
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_bfloat16_counts_a_token_that_occurs_often():
    """The gradient of a row is a sum over its occurrences, and 256 + 1 is 256 in bfloat16."""
    model = DoubleHeadsModel(replace(CONFIG, n_layer=0)).eval()
    model.init_parameters(torch.Generator().manual_seed(1))
    batch = pack(stories(200).encoded(), CONFIG.clf_token, share_prefix=False)
    with torch.autocast("cpu", torch.bfloat16):
        model.hidden_states(batch).sum().backward()
    ids, counts = torch.cat([batch.tokens, batch.positions]).unique(return_counts=True)
    assert counts.max() == 400  # the first token of each choice
    assert model.we.grad is not None
    assert torch.equal(model.we.grad[ids], counts[:, None].float().expand(-1, CONFIG.n_embd))


def test_bfloat16_does_not_round_the_sum_of_the_heads_gradients(monkeypatch):
    """The gradient of a row that no input uses comes only from the head, as a sum over chunks."""
    monkeypatch.setattr(_WeightedCrossEntropy, "ROWS", 16)
    model = fresh_model().eval()
    batch = pack(stories().encoded(), CONFIG.clf_token, share_prefix=False)
    with torch.autocast("cpu", torch.bfloat16):
        model.losses(batch, 0.5).total.backward()
    assert model.we.grad is not None
    unread = torch.ones(CONFIG.n_rows, dtype=torch.bool)
    unread[torch.cat([batch.tokens, batch.positions])] = False
    gradient = model.we.grad[unread]
    assert len(gradient) > 0
    assert not torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_compute_the_same():
    model = fresh_model().eval()
    batch = pack(stories().encoded(), CONFIG.clf_token, share_prefix=True)
    expected, logits = model.hidden_states(batch), model.clf_logits(batch)
    names = [name for name, _ in model.named_parameters()]
    model.compile_layers()
    torch.testing.assert_close(model.hidden_states(batch), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.clf_logits(batch), logits, rtol=0, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names


def test_fast_stands_for_what_suits_the_device():
    given = parse(["--fast"])
    fast = given.made_fast(has_bf16=True, is_cuda=False)
    assert (fast.precision, fast.share_prefix, fast.compile) == ("bf16", True, False)
    assert given.made_fast(has_bf16=True, is_cuda=True).compile
    assert given.made_fast(has_bf16=False, is_cuda=False).precision == "fp32"
    own = parse(["--fast", "--precision", "fp32"])
    assert own.made_fast(has_bf16=True, is_cuda=False).precision == "fp32"
    assert not Settings().share_prefix


def test_fast_is_recorded_in_the_log(tmp_path: Path):
    task = tiny.write_tiny(tmp_path)
    places = [f"--{kind}_dir={tmp_path / kind}" for kind in ("log", "save", "submission")]
    assert main([*task.flags, *places, "--fast", "--device", "cpu", "--n_gpu", "1"]) == 0
    first, *_ = (tmp_path / "log/rocstories.jsonl").read_text().splitlines()
    assert json.loads(first)["fast"] is True
    assert json.loads(first)["share_prefix"] is True


def test_shared_prefixes_train_to_the_same_parameters_without_dropout(tmp_path: Path):
    from gpt1.weights.jl import read_jl

    task = tiny.write_tiny(tmp_path)
    found = []
    for extra in ([], ["--share_prefix"]):
        places = [f"--{kind}_dir={tmp_path / kind}" for kind in ("log", "save", "submission")]
        flags = ["--submit", "--device", "cpu", "--n_gpu", "1", "--n_iter", "2", *NO_DROPOUT]
        assert main([*task.flags, *places, *flags, *extra]) == 0
        found.append(read_jl(tmp_path / "save/rocstories/best_params.jl"))
    for plain, shared in zip(*(each[:-1] for each in found), strict=True):  # clf/b is noise
        np.testing.assert_allclose(plain, shared, rtol=0, atol=1e-5)


def test_two_runs_are_compared_by_precision_and_by_number_of_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The figures of docs/performance.md and docs/reliability.md come from this script."""
    script = runpy.run_path(str(ROOT / "scripts" / "compare_precision.py"))
    task = tiny.write_tiny(tmp_path)
    flags = [*task.flags, "--device", "cpu", "--n_gpu", "1", "--n_iter", "1", "--lr", "1e-2"]
    assert script["main"]([*flags, "--threads", "1", "1"]) == 0
    same = capsys.readouterr().out
    assert same.startswith("threads 1 against threads 1, 4 updates:\n")
    assert re.findall(r"mean (\S+), at most (\S+)", same) == [("0.00e+00", "0.00e+00")] * 6
    assert "predictions that differ: 0 of 24" in same
    assert script["main"](flags) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("bf16 against fp32, 4 updates:\n")
    assert float(re.findall(r"at most (\S+)", printed)[0]) > 1e-5


def test_a_compared_run_has_its_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    script = runpy.run_path(str(ROOT / "scripts" / "compare_precision.py"))
    before, found = torch.get_num_threads(), []

    def stop(**flags: object) -> None:
        found.append(torch.get_num_threads())
        raise InputError("seen")

    monkeypatch.setitem(script["main"].__globals__, "fine_tune", stop)
    for number in (before + 1, before + 2):
        with pytest.raises(InputError, match="seen"):
            script["main"](["--threads", str(number), "1"])
        assert torch.get_num_threads() == before
    assert found == [before + 1, before + 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--threads", "1", "0"], "at least one thread"), (["--n_iter", "0"], "nothing to compare")],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    script = runpy.run_path(str(ROOT / "scripts" / "compare_precision.py"))
    task = tiny.write_tiny(tmp_path)
    with pytest.raises(SystemExit) as end:
        script["main"]([*task.flags, "--device", "cpu", "--n_gpu", "1", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def heads(dtype: torch.dtype, T: int) -> Tensor:
    """Random queries, keys and values of two sequences, [3, 2 * T, H, K]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2 * T, 3, 4, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("T", [1, 4, 10])
def test_causal_attention_is_attention_in_blocks(
    T: int, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same dropout masks, values and gradients, whether the last block is full or not."""
    monkeypatch.setattr(contexts._CausalAttention, "QUERIES", 4)
    found = []
    for way in (
        lambda q, k, v: contexts.attention(q, k, v, None, p),
        lambda q, k, v: contexts._CausalAttention.apply(q, k, v, p),
    ):
        x = heads(torch.float64, T).requires_grad_()
        torch.manual_seed(0)
        out = contexts.heads_last(way(*(contexts.heads_first(each, (2, T)) for each in x)))
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        found.append((out, x.grad))
    for plain, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, plain, rtol=1e-12, atol=1e-12 * plain.abs().max().item())


def test_causal_attention_keeps_one_byte_per_weight() -> None:
    T, kept = 10, []
    q, k, v = (
        contexts.heads_first(each, (2, T)) for each in heads(torch.float32, T).requires_grad_()
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        contexts.causal_attention(q, k, v, None, 0.1)
    weights = [x for x in kept if x.numel() >= 2 * 3 * T * T]
    assert [(x.dtype, x.shape) for x in weights] == [(torch.bool, (2, 3, T, T))]


def test_pretraining_uses_causal_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        contexts._CausalAttention,
        "apply",
        lambda q, k, v, p: calls.append(p) or torch.zeros_like(q),
    )
    model = DoubleHeadsModel(
        ModelConfig(n_vocab=7, n_special=0, n_ctx=6, n_embd=4, n_head=2, n_layer=2)
    )
    model.init_parameters()
    model.train().text_losses(torch.tensor([[1, 2, 3, 4, 5, 6]]))
    assert calls == [0.1, 0.1]
