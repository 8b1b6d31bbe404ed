"""The benchmarks: their help, and the comparison of pretraining in small."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import NO_DROPOUT
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness, pretraining
from benchmarks.plain_gpt import PlainGPT
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.runtime import device as devices

ROOT = Path(__file__).parents[2]
MODULES = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "\ndef run(" in path.read_text()  # those that measure
]


def test_there_are_benchmarks() -> None:
    assert {
        "generation",
        "optimizer",
        "pretraining",
        "sizes",
        "startup",
        "text",
        "training",
    } <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_benchmark_runs_nothing(
    name: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")

    def not_reached(*_: object) -> int:
        raise AssertionError("the benchmark was run")

    monkeypatch.setattr(module, "run", not_reached)
    with pytest.raises(SystemExit) as caught:
        module.main([flag])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ")
    assert "--json FILE" in shown
    assert str(module.__doc__).splitlines()[0] in shown


TINY = ("--n_layer", "1", "--n_embd", "8", "--n_head", "2", "--n_ctx", "6", "--n_vocab", "11")
FEW = ("--windows", "4", "--memory_batch", "2", "--trials", "1", "--rounds", "1")


class _InThisProcess:
    """Answers as a benchmark's process would, without starting one."""

    def __init__(self, start: Callable[..., harness.Answer], *arguments: Any) -> None:
        self._answer = start(*arguments)

    def ask(self, *request: Any) -> Any:
        return self._answer(*request)

    def seconds(self, *request: Any) -> float:
        return float(self.ask(*request))

    def close(self) -> None:
        pass


def compare_in_small(path: Path, *flags: str) -> dict[str, Any]:
    """Run the benchmark of pretraining in a tiny size, and return its figures."""
    words = [*TINY, *FEW, *flags, "--device", "cpu", "--json", str(path)]
    assert pretraining.main(words) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.usefixtures("one_thread", "transformers")
def test_pretraining_is_compared_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretraining, "Worker", _InThisProcess)
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: None)  # It cannot be undone.
    flags = ("--precision", "fp32", "--no_compile", "--batches", "1", "2")
    found = compare_in_small(tmp_path / "a.json", *flags)
    speeds = {}
    for side in (pretraining.OURS, pretraining.TRANSFORMERS, pretraining.PLAIN):
        figures = found[f"fp32 {side}"]
        tried = {name: found[f"tried fp32 {side}, batch {name}"] for name in (1, 2)}
        best = max(tried, key=tried.__getitem__)
        assert figures["way"] == f"{side}, batch {best}"
        speeds[side] = figures["tokens_per_second"]
        limit = found["fp32 limit by torch.mm, tokens/s"]
        assert figures["share of limit by torch.mm"] == pytest.approx(speeds[side] / limit)
        assert found[f"fp32 peak GiB, {side}, batch 2"] > 0
    ours = speeds.pop(pretraining.OURS)
    assert found["fp32 gpt1, times the better peer"] == pytest.approx(ours / max(speeds.values()))
    assert "fp32 gpt1, share of the best limit" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("transformers")
def test_pretraining_is_compared_in_processes_of_their_own(tmp_path: Path) -> None:
    flags = ("--precision", "fp32", "--no_compile", "--batches", "2", "--no_memory")
    found = compare_in_small(tmp_path / "a.json", *flags)
    assert found["fp32 gpt1"]["way"] == "gpt1, batch 2"


@pytest.mark.usefixtures("one_thread", "transformers")
def test_without_a_compiler_the_eager_model_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutCompiler(_InThisProcess):
        def __init__(self, start: Callable[..., harness.Answer], *arguments: Any) -> None:
            way = arguments[1]
            if not way.compiled:
                super().__init__(start, *arguments)
            else:
                self._answer = lambda work: "No working C++ compiler found"

    monkeypatch.setattr(pretraining, "Worker", WithoutCompiler)
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: None)
    found = compare_in_small(
        tmp_path / "a.json", "--precision", "fp32", "--batches", "2", "--no_memory"
    )
    assert found["tried fp32 plain PyTorch, compiled, batch 2"] == "No working C++ compiler found"
    assert found["fp32 plain PyTorch"]["way"] == "plain PyTorch, batch 2"


def test_the_plain_model_does_the_same_work() -> None:
    """The losses and the gradients of the same weights are equal, without dropout."""
    config = ModelConfig(
        n_vocab=11, n_special=0, n_ctx=6, n_embd=8, n_head=2, n_layer=2, **NO_DROPOUT
    )
    ours = DoubleHeadsModel(config)
    ours.init_parameters(torch.Generator().manual_seed(0))
    ours = ours.double().train()
    plain = PlainGPT(ours).double().train()
    windows = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(1))
    expected, _ = ours.text_losses(windows)
    found = plain(windows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)  # plain rounds to float32
    expected.backward()
    found.backward()
    assert ours.we.grad is not None
    theirs = torch.cat([plain.tokens.weight.grad, plain.positions.weight.grad])
    torch.testing.assert_close(theirs, ours.we.grad, rtol=1e-4, atol=1e-7)


def test_the_products_of_a_training_step_are_counted() -> None:
    """torch's own counter finds the count, apart from the half of attention that is not seen."""
    config = ModelConfig(
        n_vocab=11, n_special=0, n_ctx=6, n_embd=8, n_head=2, n_layer=2, **NO_DROPOUT
    )
    ours = DoubleHeadsModel(config)
    ours.init_parameters()
    windows = torch.randint(0, 11, (3, 6))
    with FlopCounterMode(display=False) as counter:
        PlainGPT(ours)(windows).backward()
    products = counter.get_flop_counts()["Global"]
    names = ("mm", "addmm")
    linear = sum(n for op, n in products.items() if str(op).split(".")[-1] in names)
    D, L, T = config.n_embd, config.n_layer, config.n_ctx
    attention = 3 * 2 * L * 2 * D * (T + 1) / 2
    assert linear == round((pretraining.flop_per_token(config) - attention) * windows.numel())
