"""Which parameters a run takes from the checkpoint and which are fresh, by the original's rule.

The original lists the parameters of the model (``we``, twelve arrays for each layer, two of the
classifier) and of the checkpoint (the same without the classifier). It cuts both lists after
``1 + 12 * n_transfer`` entries, or before the first where ``n_transfer`` is -1, and assigns what
is left pairwise. Neither the depth of the model nor its number of heads enters the rule.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from released import released_layout, write_released

from gpt1.batches.task_data import TaskData
from gpt1.commands import train
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.errors import InputError
from gpt1.settings.training import Settings
from gpt1.training import prepare
from gpt1.training.sources import Sources
from gpt1.weights import hub, jl, parameters
from gpt1.weights.conversion import convert
from gpt1.weights.released import load_released, read_shapes

N_EMBD, N_HEAD, DEPTH, N_POSITIONS, N_VOCAB, N_CTX = 12, 3, 3, 16, 11, 8
LAYOUTS = ("released", "hub")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of three layers whose values, of spread 1, no fresh parameter can be.

    Attributes:
        sources: the paths of the checkpoint.
        layers: the arrays of the layers in the original's order, twelve per layer.
        tokens: [N_VOCAB, N_EMBD].
        positions: [N_POSITIONS, N_EMBD].
    """

    sources: Sources
    layers: list[np.ndarray]
    tokens: np.ndarray
    positions: np.ndarray

    def resolved(self, **flags: Any) -> tuple[Settings, DoubleHeadsModel]:
        """The settings that a run would use, and the model that its training would start with."""
        nothing: Any = None  # arrays of the data are not looked at
        task = TaskData(
            task=ROCSTORIES,
            train=nothing,
            valid=nothing,
            predicted={"ROCStories": nothing},
            labels={"ROCStories": None},
            n_vocab=N_VOCAB,
            n_ctx=N_CTX,
        )
        settings, config = prepare.resolve(Settings(**flags), self.sources, task)
        stream = np.random.RandomState(settings.seed)
        return settings, prepare.build_model(settings, self.sources, config, stream)


@pytest.fixture(scope="module", params=LAYOUTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Checkpoint:
    directory = tmp_path_factory.mktemp("checkpoint")
    sizes = {"n_embd": N_EMBD, "n_layer": DEPTH, "n_ctx": N_POSITIONS, "n_vocab": N_VOCAB}
    flat = write_released(directory, **sizes, n_head=N_HEAD, std=1.0)
    shapes = released_layout(**sizes)
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    arrays = [p.reshape(s) for p, s in zip(np.split(flat, ends), shapes, strict=True)]
    positions, tokens, *layers = arrays
    sources = Sources(
        data_dir=directory,
        model_dir=directory,
        encoder_path=directory / "encoder.json",
        bpe_path=directory / "merges.bpe",
        demo=False,
    )
    if request.param == "hub":
        sources.encoder_path.touch()
        sources.bpe_path.touch()
        sources = replace(sources, model_dir=directory / "hub")
        names = list(parameters.parameter_shapes(model_config(DEPTH)))[1:-2]
        we = np.concatenate([tokens, positions])
        hub.write_hub(
            sources.model_dir,
            {"we": we, **dict(zip(names, layers, strict=True))},
            (sources.encoder_path, sources.bpe_path),
            replace(model_config(DEPTH), n_special=0, n_ctx=N_POSITIONS),
        )
    return Checkpoint(sources, layers, tokens, positions)


def model_config(n_layer: int) -> prepare.ModelConfig:
    return prepare.ModelConfig(
        n_vocab=N_VOCAB, n_ctx=N_CTX, n_embd=N_EMBD, n_head=N_HEAD, n_layer=n_layer
    )


def assigned_by_the_original(n_layer: int, n_transfer: int) -> set[int]:
    """Return the indices of the model's parameters that come from the checkpoint."""
    n = 0 if n_transfer == -1 else 1 + 12 * n_transfer
    of_model, of_file = range(1 + 12 * n_layer + 2), range(1 + 12 * DEPTH)
    return {i for i, _ in zip(of_model[:n], of_file[:n], strict=False)}


@pytest.mark.parametrize(
    ("n_layer", "n_transfer", "used"),
    [
        *((1, -1, -1), (1, 0, 0), (1, 1, 1), (1, None, 1)),
        *((3, -1, -1), (3, 0, 0), (3, 2, 2), (3, 3, 3), (3, None, 3)),
        *((5, -1, -1), (5, 0, 0), (5, 2, 2), (5, 3, 3), (5, None, 3)),
        *((None, 2, 2), (None, None, 3)),
    ],
)
def test_each_array_is_the_checkpoints_or_fresh_as_in_the_original(
    checkpoint: Checkpoint, n_layer: int | None, n_transfer: int | None, used: int
) -> None:
    settings, model = checkpoint.resolved(n_layer=n_layer, n_transfer=n_transfer)
    depth = n_layer or DEPTH
    assert (settings.n_transfer, settings.n_layer, settings.n_head) == (used, depth, N_HEAD)
    special = (np.random.RandomState(42).randn(3, N_EMBD) * 0.02).astype(np.float32)
    we = np.concatenate([checkpoint.tokens, special, checkpoint.positions[:N_CTX]])
    fresh = DoubleHeadsModel(model_config(depth))
    fresh.init_parameters(torch.Generator().manual_seed(42))
    taken = assigned_by_the_original(depth, used)
    own = parameters.to_list(model)
    assert len(own) == 1 + 12 * depth + 2
    for i, (array, drawn) in enumerate(zip(own, parameters.to_list(fresh), strict=True)):
        expected = [we, *checkpoint.layers][i] if i in taken else drawn
        np.testing.assert_array_equal(array, expected, err_msg=f"parameter {i}")


@pytest.mark.parametrize(
    ("n_layer", "n_transfer", "most"), [(1, 2, 1), (3, 4, 3), (5, 4, 3), (5, 6, 3), (None, 4, 3)]
)
def test_more_layers_than_model_or_checkpoint_has_are_refused(
    checkpoint: Checkpoint, n_layer: int | None, n_transfer: int, most: int
) -> None:
    """The original would stop with an error about shapes, or take fewer layers than requested."""
    message = rf"--n_transfer {n_transfer}: .* {n_layer or 3} layers, .* 3; give at most {most}$"
    with pytest.raises(InputError, match=message):
        checkpoint.resolved(n_layer=n_layer, n_transfer=n_transfer)


def test_any_number_of_heads_that_divides_the_width_may_be_given(checkpoint: Checkpoint) -> None:
    for n_head in (1, 2, 4, 6, 12):
        settings, model = checkpoint.resolved(n_head=n_head)
        assert settings.n_head == model.config.n_head == n_head
        start = parameters.to_list(model)[1:-2]
        assert all(map(np.array_equal, start, checkpoint.layers))
    with pytest.raises(InputError, match="--n_head 5: does not divide the width 12"):
        checkpoint.resolved(n_head=5)


def test_the_width_must_be_the_checkpoints_unless_nothing_is_taken(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"--n_embd 24: .* has 12; leave it out"):
        checkpoint.resolved(n_embd=24, n_transfer=0)
    assert checkpoint.resolved(n_embd=24, n_transfer=-1)[1].config.n_embd == 24


def test_a_model_is_not_built_before_the_number_of_layers_is_decided(
    checkpoint: Checkpoint,
) -> None:
    _, model = checkpoint.resolved()
    stream = np.random.RandomState(0)
    with pytest.raises(ValueError, match="n_transfer must be a number"):
        prepare.build_model(Settings(), checkpoint.sources, model.config, stream)


# ------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    """The tiny task, with its model, two layers of four heads, in both layouts."""
    task = tiny.write_tiny(tmp_path_factory.mktemp("tiny"))
    convert(task.model_dir, task.directory / "hub", "hub")
    return task


@dataclass(frozen=True)
class Run:
    """A run of two epochs on the tiny task, whose directories no other run uses."""

    task: tiny.Tiny
    layout: str
    directory: Path

    def main(self, *words: str) -> int:
        kinds = ("log", "save", "submission")
        places = [f"--{kind}_dir={self.directory / kind}" for kind in kinds]
        model_dir = self.task.directory / ("hub" if self.layout == "hub" else "model")
        flags = ["--data_dir", str(self.task.data_dir), "--model_dir", str(model_dir)]
        how = [
            "--submit",
            "--quiet",
            "--device",
            "cpu",
            "--n_batch",
            "2",
            "--n_iter",
            "2",
            "--lr",
            "1e-3",
        ]
        return train.main([*flags, *places, *how, *words])

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.directory / "log" / name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    @property
    def best(self) -> Path:
        return self.directory / "save/rocstories/best_params.jl"


@pytest.fixture(params=LAYOUTS)
def run(request: pytest.FixtureRequest, task: tiny.Tiny, tmp_path: Path) -> Run:
    return Run(task, request.param, tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "n_layer", "n_transfer", "n_head"),
    [
        (["--n_layer", "1"], 1, 1, 4),
        (["--n_layer", "4"], 4, 2, 4),
        (["--n_layer", "4", "--n_transfer", "1"], 4, 1, 4),
        (["--n_head", "8"], 2, 2, 8),
        (["--n_head", "2", "--n_transfer", "-1"], 2, -1, 2),
    ],
)
def test_a_whole_run_says_what_it_used(
    run: Run,
    words: list[str],
    n_layer: int,
    n_transfer: int,
    n_head: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main(*words) == 0
    first, *evaluations = run.lines("rocstories.jsonl")
    used = [first[name] for name in ("n_embd", "n_head", "n_layer", "n_transfer")]
    assert used == [tiny.N_EMBD, n_head, n_layer, n_transfer]
    assert len(evaluations) == 2
    assert len(jl.read_jl(run.best)) == 3 + 12 * n_layer
    submission = next((run.directory / "submission").rglob("ROCStories.tsv")).read_text()
    assert len(submission.splitlines()) == 1 + tiny.N_TEST
    note = capsys.readouterr().err
    if n_head == tiny.N_HEAD or n_transfer == -1:
        assert note == ""
    else:
        name = "config.json" if run.layout == "hub" else "gpt1_config.json"
        assert note.startswith("gpt1 train: --n_head 8: according to ")
        assert note.endswith(f"/{name} the layers that are taken were trained with 4 heads\n")


def test_a_whole_run_starts_with_the_layers_that_it_names(run: Run) -> None:
    """The whole program is run: without epochs, the kept parameters are the initial ones."""
    model_dir = run.task.model_dir
    n_ctx = read_shapes(model_dir).n_ctx
    special = np.zeros((3, tiny.N_EMBD), np.float32)
    released = load_released(model_dir, special=special, n_ctx=n_ctx, n_transfer=2)
    for n_layer, n_transfer in ((1, 1), (2, 1), (4, 2)):
        words = ["--n_layer", str(n_layer), "--n_transfer", str(n_transfer)]
        assert run.main("--n_iter", "0", *words) == 0
        own = jl.read_jl(run.best)
        equal = [
            np.array_equal(*pair)
            for pair in zip(own[1:], list(released.values())[1:], strict=False)
        ]
        assert equal == [i < 12 * n_transfer for i in range(min(24, 12 * n_layer + 2))]


def test_another_number_of_heads_computes_something_else(task: tiny.Tiny, tmp_path: Path) -> None:
    costs = []
    for n_head in ("4", "2"):
        run = Run(task, "released", tmp_path / n_head)
        assert run.main("--n_head", n_head, "--n_iter", "1") == 0
        costs.append(run.lines("rocstories.updates.jsonl")[0]["lm_cost"])
    assert abs(costs[0] - costs[1]) > 1e-4


def test_resuming_compares_the_number_of_layers_that_was_used(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main("--n_layer", "4") == 0
    capsys.readouterr()
    assert run.main("--resume", "--n_layer", "4", "--n_transfer", "2") == 0
    assert "--resume: going on after update 8 of 8" in capsys.readouterr().err
    assert run.main("--resume", "--n_layer", "4", "--n_transfer", "1") == 2
    assert "--resume: n_transfer was 2 in " in capsys.readouterr().err
    assert run.main("--resume", "--n_layer", "3") == 2
    assert "--resume: model was " in capsys.readouterr().err


def full_list(run: Run) -> Path:
    """Write a file with all parameters of the tiny model and return its path."""
    assert run.main("--n_iter", "0") == 0
    return run.best.rename(run.directory / "listed.jl")


def test_a_full_list_fixes_the_layers_but_not_the_heads(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = full_list(run)
    start = ["--n_iter", "0", "--init_params", str(listed)]
    assert run.main(*start, "--n_layer", "3") == 2
    said = f"--n_layer 3: {listed}, which gives every parameter, has 2; leave it out"
    assert said in capsys.readouterr().err
    assert run.main(*start, "--n_layer", "2", "--n_head", "2") == 0
    assert "--n_head 2: according to " in capsys.readouterr().err
    assert run.lines("rocstories.jsonl")[0]["n_head"] == 2
    assert all(map(np.array_equal, jl.read_jl(run.best), jl.read_jl(listed)))


def test_beside_a_full_list_the_number_of_layers_to_take_has_no_effect_and_is_not_logged(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = full_list(run)
    start = ["--n_iter", "0", "--init_params", str(listed)]
    for n_transfer in ("-1", "1", "3"):
        assert run.main(*start, "--n_transfer", n_transfer) == 0
        note = f"--n_transfer {n_transfer} has no effect: --init_params gives all 2 layers"
        assert capsys.readouterr().err == f"gpt1 train: {note}\n"
        assert run.lines("rocstories.jsonl")[0]["n_transfer"] == 2
        assert all(map(np.array_equal, jl.read_jl(run.best), jl.read_jl(listed)))
