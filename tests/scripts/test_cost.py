"""The cost of the paper's pretraining run, worked out from stated rates."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest

from benchmarks import cost
from gpt1.model import ModelConfig
from gpt1.weights.parameters import parameter_shapes

ROOT = Path(__file__).parents[2]


def test_operations_are_those_of_the_matrices_and_of_attention() -> None:
    """Each weight of a matrix multiplies and adds once in the forward pass, twice in the backward.

    The attention of a window is counted pair by pair.
    """
    config = ModelConfig(n_vocab=50, n_special=0, n_ctx=7, n_embd=24, n_head=3, n_layer=2)
    shapes = parameter_shapes(config)
    weights = sum(
        prod(shape) for name, shape in shapes.items() if name[0] == "h" and name[-1] == "w"
    )
    # The last token of a window predicts nothing.
    weights += config.n_vocab * config.n_embd * (config.n_ctx - 1) / config.n_ctx
    pairs = sum(1 for query in range(config.n_ctx) for key in range(config.n_ctx) if key <= query)
    attention = config.n_layer * 2 * pairs * config.n_embd / config.n_ctx
    assert cost.flop_per_token(config) == pytest.approx(6 * (weights + attention))


def test_the_table_follows_from_the_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--words", "1000", "--tokens_per_word", "2", "--n_iter", "3", "--flops", "1e9"]
    flags += ["--utilization", "0.5", "--scaling", "0.8", "--dollars", "4", "--gpus", "1", "4"]
    assert cost.main([*flags, "--json", str(tmp_path / "cost.json")]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["tokens"] == 6000
    assert found["flop"] == 6000 * found["flop_per_token"]
    assert found["hours_1"] == pytest.approx(found["flop"] / 0.5e9 / 3600)
    assert found["hours_4"] == pytest.approx(found["hours_1"] / 4 / 0.8)
    assert found["dollars_4"] == pytest.approx(4 * 4 * found["hours_4"])
    assert found["tokens_per_second_1"] * found["hours_1"] * 3600 == pytest.approx(6000)
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]) == 4


def test_the_page_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main([]) == 0
    assert capsys.readouterr().out in (ROOT / "docs/pretraining.md").read_text()


@pytest.mark.parametrize(
    "words",
    [["--utilization", "1.5"], ["--scaling", "0"], ["--dollars", "-1"], ["--gpus", "0"]],
)
def test_impossible_rates_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cost.main(words)
    assert caught.value.code == 2
