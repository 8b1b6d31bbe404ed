"""Predictions of a whole split: the same for any batches, with costs as torch computes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import pack
from gpt1.inference.prediction import evaluating, mean_cross_entropy, predict_logits
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.ranks import Ranks
from gpt1.settings.training import Settings
from gpt1.tasks import ACCURACY, ChoiceIndex
from gpt1.training import prepare

ALONE = Ranks(0, 1, torch.device("cpu"))
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model_and_test(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DoubleHeadsModel, EncodedSplit]:
    """Return the tiny model with larger classifier weights, and the 24 test stories."""
    task_files = tiny.write_tiny(tmp_path_factory.mktemp("tiny"))
    settings, sources = Settings(), task_files.sources()
    task = prepare.load_data(settings, sources, verbose=False)
    settings, config = prepare.resolve(settings, sources, task)
    model = prepare.build_model(settings, sources, config, np.random.RandomState(0))
    with torch.no_grad():
        model.clf.w.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    return model, task.predicted["ROCStories"]


# ------------------------------------------------------------------------- mean_cross_entropy


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_cost_is_torchs_cross_entropy(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((37, 2)) * scale).astype(np.float32)
    labels = rng.integers(0, 2, 37).astype(np.int32)
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(labels).long()
    expected = F.cross_entropy(z, y).item()
    assert mean_cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_cost_and_accuracy_by_hand() -> None:
    logits = np.array([[0, 0], [0, math.log(3)], [1e4, 0], [1, 1 + 2**-20]], dtype=np.float32)
    labels = np.array([0, 1, 0, 0], dtype=np.int32)
    expected = (math.log(2) + math.log(4 / 3) + 0 + math.log(2)) / 4
    assert mean_cross_entropy(logits, labels) == pytest.approx(expected, abs=1e-6)
    # A tie counts as the first choice, as NumPy's argmax has it.
    assert ACCURACY.compute(ChoiceIndex().decide(logits), labels) == 75


def test_the_cost_leaves_its_arguments_alone() -> None:
    logits = np.array([[1, 2]], dtype=np.float32)
    mean_cross_entropy(logits, np.array([0], dtype=np.int32))
    assert logits.tolist() == [[1, 2]]


# ------------------------------------------------------------------------------- predict_logits


def one_by_one(model: DoubleHeadsModel, split: EncodedSplit, share_prefix: bool) -> np.ndarray:
    rows = []
    model.eval()
    for i in range(split.n_examples):
        story = split.take(slice(i, i + 1))
        batch = pack(story, model.config.clf_token, share_prefix=share_prefix)
        rows.append(model.clf_logits(batch).detach().numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("n_batch", [1, 7, 8, 24, 1000])
@pytest.mark.parametrize("share_prefix", [False, True])
def test_logits_do_not_depend_on_the_batches(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit], n_batch: int, share_prefix: bool
) -> None:
    """24 stories make three batches of 7 and one of 3, which is predicted too and in its place."""
    model, split = model_and_test
    logits = predict_logits(model, split, ALONE, n_batch=n_batch)
    assert logits.shape == (24, 2)
    assert logits.dtype == np.float32
    assert np.ptp(logits) > 0.5  # so that differences would show
    expected = one_by_one(model, split, share_prefix)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_stories_or_none(model_and_test: tuple[DoubleHeadsModel, EncodedSplit], n: int) -> None:
    model, split = model_and_test
    logits = predict_logits(model, split.take(slice(0, n)), ALONE, n_batch=2)
    assert logits.shape == (n, 2)


@pytest.mark.parametrize("training", [True, False])
def test_there_is_no_dropout_and_the_mode_is_restored(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit], training: bool
) -> None:
    model, split = model_and_test
    assert model.config.embd_pdrop > 0
    model.train(training)
    first = predict_logits(model, split, ALONE, n_batch=8)
    again = predict_logits(model, split, ALONE, n_batch=8)
    assert np.array_equal(first, again)
    assert all(module.training == training for module in model.modules())


def test_the_mode_is_restored_after_an_error_too(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit],
) -> None:
    model, _ = model_and_test
    model.train()
    with pytest.raises(KeyboardInterrupt), evaluating(model):  # noqa: PT012
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt
    assert model.training
    assert torch.is_grad_enabled()


def test_no_gradients_and_no_random_numbers_are_used(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit],
) -> None:
    model, split = model_and_test
    model.train()
    before = torch.get_rng_state()
    predict_logits(model, split, ALONE, n_batch=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_bf16_is_near_and_the_parameters_stay_as_they_are(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit],
) -> None:
    model, split = model_and_test
    exact = predict_logits(model, split, ALONE, n_batch=8)
    rough = predict_logits(model, split, ALONE, n_batch=8, precision="bf16")
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.3
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_process_predicts_its_part_only(
    model_and_test: tuple[DoubleHeadsModel, EncodedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, split = model_and_test
    whole = predict_logits(model, split, ALONE, n_batch=5)
    monkeypatch.setattr(Ranks, "gather", lambda self, part: part)
    parts = [
        predict_logits(model, split, Ranks(rank, 3, torch.device("cpu")), n_batch=5)
        for rank in range(3)
    ]
    assert [len(part) for part in parts] == [8, 8, 8]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=TOLERANCE)
