"""Each device computes what the model is in float64, and no update waits for a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.training import draw_stories
from gpt1.inference.decoding import Decoder
from gpt1.inference.prediction import predict_logits
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.settings.training import Settings
from gpt1.training.fine_tuning import tower_batches, tower_gradients
from gpt1.training.pretraining import window_gradients
from gpt1.training.runs import make_optimizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CONFIG = ModelConfig(
    n_vocab=50,
    n_ctx=77,
    n_embd=32,
    n_head=4,
    n_layer=2,
    embd_pdrop=0,
    attn_pdrop=0,
    resid_pdrop=0,
    clf_pdrop=0,
)
STORIES = draw_stories(4, seed=0, n_vocab=CONFIG.n_vocab)
# Sums of some hundred float32 terms below 1 are wrong by about 1e-6.
ERROR = {"rtol": 0.0, "atol": 1e-5}


def model_on(
    device: str, dtype: torch.dtype = torch.float32, config: ModelConfig = CONFIG
) -> DoubleHeadsModel:
    model = DoubleHeadsModel(config)
    model.init_parameters(torch.Generator().manual_seed(1))
    return model.to(torch.device(device), dtype)


def ranks_of(model: DoubleHeadsModel) -> Ranks:
    return Ranks(0, 1, model.we.device)


def add_gradients(model: DoubleHeadsModel, *, share_prefix: bool) -> Tensor:
    """Compute the gradients of two towers in the model; return the costs."""
    ranks = ranks_of(model)
    batches = tower_batches(STORIES, CONFIG.clf_token, ranks, n_towers=2, share_prefix=share_prefix)
    return tower_gradients(Replica(model, ranks), batches, seeds=range(2), lm_coef=0.5)


def assert_same_gradients(found: DoubleHeadsModel, expected: DoubleHeadsModel) -> None:
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
            continue
        assert p.grad is not None
        torch.testing.assert_close(p.grad.cpu().double(), q.grad, **ERROR)


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_fine_tuning_are_those_of_float64(device: str, share_prefix: bool) -> None:
    model, exact = model_on(device), model_on("cpu", torch.float64)
    costs = add_gradients(model, share_prefix=share_prefix)
    expected = add_gradients(exact, share_prefix=False)
    torch.testing.assert_close(costs.cpu(), expected, **ERROR)
    assert_same_gradients(model, exact)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_pretraining_are_those_of_float64(device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    windows = torch.randint(0, CONFIG.n_vocab, (2, 3, 20), generator=generator)
    found = []
    for model in (model_on(device), model_on("cpu", torch.float64)):
        model.clf.requires_grad_(False)
        window_gradients(Replica(model, ranks_of(model)), list(windows), seeds=range(2))
        found.append(model)
    assert_same_gradients(*found)


@pytest.mark.parametrize("device", DEVICES)
def test_predictions_are_those_of_float64(device: str) -> None:
    found = [
        predict_logits(model, STORIES, ranks_of(model), n_batch=3)
        for model in (model_on(device), model_on("cpu", torch.float64))
    ]
    torch.testing.assert_close(*map(torch.from_numpy, found), **ERROR)


@pytest.mark.parametrize("device", DEVICES)
def test_logits_of_generation_are_those_of_float64(device: str) -> None:
    exact = model_on("cpu", torch.float64).eval()
    decoder = Decoder(model_on(device))
    cache, first = decoder.prefill([[1, 2, 3], [4]], n_new=1)
    second = decoder.step(cache, torch.tensor([5, 6], device=device))
    for row, text in enumerate(([1, 2, 3, 5], [4, 6])):
        with torch.no_grad():
            states = exact.sequence_states(torch.tensor([text]))[0, -2:]
            expected = states @ exact.we[: CONFIG.n_vocab].T
        torch.testing.assert_close(first[row].cpu().double(), expected[0], **ERROR)
        torch.testing.assert_close(second[row].cpu().double(), expected[1], **ERROR)


@pytest.mark.gpu
@pytest.mark.parametrize("share_prefix", [False, True])
def test_compiled_layers_compute_the_same_on_a_gpu(share_prefix: bool) -> None:
    model, exact = model_on("cuda"), model_on("cpu", torch.float64)
    model.compile_layers()
    add_gradients(model, share_prefix=share_prefix)
    add_gradients(exact, share_prefix=False)
    assert_same_gradients(model, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("share_prefix", [False, True])
def test_an_update_does_not_wait_for_the_gpu(share_prefix: bool) -> None:
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), 0.1)
    model = model_on("cuda", config=replace(CONFIG, **rates)).train()
    optimizer = make_optimizer(model, Settings(), n_updates=2)
    try:
        for mode in ("default", "error"):  # The first update allocates memory.
            torch.cuda.set_sync_debug_mode(mode)
            add_gradients(model, share_prefix=share_prefix)
            optimizer.measure()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
