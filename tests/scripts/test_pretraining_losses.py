"""The comparison of pretraining with a plain PyTorch model finds equality, and differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_corpus

from benchmarks import pretraining_losses

FLAGS = ["--size=tiny", "--n_ctx=8", "--n_embd=16", "--n_head=4", "--n_batch=3", "--n_gpu=2"]
FLAGS += ["--n_updates=40", "--warmup_updates=5", "--lr=0.01", "--seed=7"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def compare(tmp_path: Path) -> Callable[[], int]:
    """A comparison in small."""
    corpus = small_corpus.write_corpus(tmp_path / "corpus", 80, 10)

    def run() -> int:
        return pretraining_losses.main([f"--corpus={corpus}", *FLAGS])

    return run


def test_both_models_learn_alike(
    compare: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has several epochs and two towers, and the loss falls."""
    assert compare() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first, last = (float(line[1]) for line in (lines[1], lines[10]))
    assert (lines[1][0], lines[10][0]) == ("1", "40")
    assert last < first - 1


@pytest.mark.parametrize("difference", ["decay", "eps", "post-norm"])
def test_a_difference_is_noticed(
    compare: Callable[[], int], difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain model of another kind is farther from gpt1 than rounding goes."""
    from torch import nn, optim

    if difference == "post-norm":

        def forward(self: nn.LayerNorm, x: Any) -> Any:
            return x

        monkeypatch.setattr(nn.LayerNorm, "forward", forward)
        assert compare() == 1
        return

    class Other(optim.AdamW):
        """AdamW's own decay, or an epsilon that is not small."""

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                if difference == "decay":
                    group["weight_decay"] = group["l2"]
                else:
                    group["eps"] = 1e-4
            return super().step(closure)

    monkeypatch.setattr(optim, "AdamW", Other)
    assert compare() == 1
