"""Compare the model with the running original, a plain transcription, and transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from cloze import EncodedCloze, lay_out
from padded import Padded
from peers import NO_DROPOUT, SMALL, their_model
from reference import assert_within
from torch import Tensor, nn

from gpt1.batches.packing import Batch, pack
from gpt1.inference.attention import attention_maps
from gpt1.inference.decoding import Cached, Decoder
from gpt1.inference.prediction import evaluating, predict_logits
from gpt1.model import transformer as gpt1_model
from gpt1.model.contexts import Attend, ClassifyOnly, Packed
from gpt1.model.dropout import dropout
from gpt1.model.transformer import (
    Block,
    Conv1D,
    DoubleHeadsModel,
    LayerNorm,
    ModelConfig,
    linear_layers,
)
from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.ranks import Ranks
from gpt1.text_utils.special import SpecialTokens

SHARING = pytest.mark.parametrize("share_prefix", [False, True], ids=["unshared", "shared"])


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


def arrays_of(
    stories: list[list[int]], endings1: list[list[int]], endings2: list[list[int]]
) -> Padded:
    """Return arrays of the given token ids, for SMALL's vocabulary, with alternating labels."""
    split = EncodedCloze(stories, endings1, endings2, [i % 2 for i in range(len(stories))])
    return lay_out(split, SpecialTokens.after(SMALL.n_vocab), n_ctx=SMALL.n_ctx)


def some_arrays() -> Padded:
    return arrays_of(
        stories=[[1, 2, 3, 0, 5], [4, 4], [6]],
        endings1=[[2, 2, 1], [3, 0, 2, 6, 5, 1], [0, 5]],
        endings2=[[2, 6], [3, 1], [1]],
    )


def packed(arrays: Padded, *, share_prefix: bool = False) -> Batch:
    return pack(arrays.encoded(), SMALL.clf_token, share_prefix=share_prefix)


def padded(rows: Tensor, arrays: Padded) -> Tensor:
    """Put packed rows [N, D] of single sequences into [B * S, T, D], with zeros on padding."""
    mask = torch.from_numpy(arrays.M).bool()
    grid = rows.new_zeros(*mask.shape, rows.shape[-1])
    grid[mask] = rows
    return grid.flatten(0, 1)


def gradients(model: DoubleHeadsModel, value: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for name, p, grad in zip(names, model.parameters(), grads, strict=True)
    }


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=tolerance)


# ------------------------------------------------------------------- the running original

# Forty roundings of a number near 1, or ten of one near 4: logits and losses are of that size,
# and there are some twenty sums between the embedding and a loss.
FORWARD = 5e-6
# Six updates make twenty times that of it, which the test of rounded gradients shows.
SIX_UPDATES = 1e-4


def backward(model: DoubleHeadsModel, case: reference.Case, update: int, share: bool) -> Tensor:
    """Compute the gradients of one update; return logits, clf and lm losses, [n, 5]."""
    found = []
    for tower in case.towers(update):
        batch = pack(tower.encoded(), case.config.clf_token, share_prefix=share)
        logits = model.clf_logits(batch)
        losses = model.losses(batch, case.cfg["lm_coef"])
        (losses.total / case.cfg["n_gpu"]).backward()
        lm = torch.full_like(logits, torch.nan) if losses.lm is None else losses.lm
        found.append(torch.cat([logits, losses.clf[:, None], lm], 1).detach())
    return torch.cat(found)


@pytest.mark.golden
@SHARING
@pytest.mark.parametrize("name", reference.CASES)
def test_first_step_is_the_originals(golden_dir: Path, name: str, share_prefix: bool) -> None:
    case = reference.Case(golden_dir, name)
    model = case.model()
    found = backward(model, case, 0, share_prefix)
    assert_within(found[:, :2], case["logits"][0], FORWARD, "logits")
    assert_within(found[:, 2], case["clf_losses"][0], FORWARD, "classification losses")
    if case.cfg["lm_coef"]:
        lm_losses = found[:, 3:].reshape(-1)
        assert_within(lm_losses, case["lm_losses"][0], FORWARD, "language-model losses")
    expected, tolerance = case.values("grad0"), case.gradient_tolerance()
    for parameter_name, p in model.named_parameters():
        assert p.grad is not None
        assert_within(p.grad, expected[parameter_name], tolerance[parameter_name], parameter_name)


def adam(model: DoubleHeadsModel, case: reference.Case) -> OpenAIAdam:
    return OpenAIAdam(model.parameters(), **case.optimizer())


def comparable(name: str, case: reference.Case) -> Tensor:
    """Return the elements of a parameter whose true gradient is not 0.

    Adam makes steps of full size from a gradient that is only a rounding error. Three gradients are
    0: the middle third of each ``c_attn.b``, because a shift of all keys cancels in the softmax of
    attention; ``clf.b``, because a shift of both logits cancels in the choice; and the last
    ``ln_2.b`` if there is no language-model loss (``no_lm``), for the same reason.
    """
    shape = case.values("init")[name].shape
    counts = torch.ones(shape, dtype=torch.bool)
    if name.endswith("c_attn.b"):
        counts[shape[0] // 3 : 2 * shape[0] // 3] = False
    last_bias = f"h.{case.config.n_layer - 1}.ln_2.b"
    if name == "clf.b" or (name == last_bias and not case.cfg["lm_coef"]):
        counts[:] = False
    return counts


def assert_costs_are_near(case: reference.Case, update: int, found: Tensor) -> None:
    """Check that the results of :func:`backward` before an update are the original's."""
    logits = torch.from_numpy(case["logits"][update])
    # clf.b, moved by noise, shifts both logits alike: only their difference is compared.
    differences = found[:, 0] - found[:, 1], logits[:, 0] - logits[:, 1]
    assert_within(*differences, SIX_UPDATES, "differences of logits")
    assert_within(found[:, 2], case["clf_losses"][update], SIX_UPDATES, "classification losses")
    if case.cfg["lm_coef"]:
        lm_losses = found[:, 3:].reshape(-1)
        assert_within(lm_losses, case["lm_losses"][update], SIX_UPDATES, "language-model losses")


def assert_parameters_are_near(case: reference.Case, model: DoubleHeadsModel) -> None:
    """Check that all but a hundredth of each parameter's elements, or all but one, are the same.

    Adam divides the step of an element by the size of its gradient. If the gradient is no larger
    than its rounding error, the step may have either sign. No element differs by more than the
    sum of all steps.
    """
    expected = case.values("after6")
    for name, p in model.named_parameters():
        counts = comparable(name, case)
        found, right = p.detach()[counts].double(), expected[name][counts].double()
        few = max(1, len(found) // 100)
        near = (found - right).abs().argsort()[: max(0, len(found) - few)]
        assert_within(found[near], right[near], SIX_UPDATES, name)
        assert_within(found, right, 2 * 6 * case.cfg["lr"], name)


@pytest.mark.golden
@SHARING
@pytest.mark.parametrize("name", reference.CASES)
def test_six_updates_are_the_originals(golden_dir: Path, name: str, share_prefix: bool) -> None:
    case = reference.Case(golden_dir, name)
    model = case.model()
    optimizer = adam(model, case)
    for update in range(6):
        found = backward(model, case, update, share_prefix)
        assert_costs_are_near(case, update, found)
        optimizer.step()
        optimizer.zero_grad()
    assert_parameters_are_near(case, model)


@pytest.mark.parametrize("name", reference.CASES)
def test_rounded_gradients_stay_within_the_tolerance_of_six_updates(
    golden_dir: Path, name: str
) -> None:
    """Compute in float64, and add an error of float32's size to every gradient of every update.

    The error is uniform, up to a quarter of the tolerance of the first gradients, which is two
    roundings of the largest sum of absolute terms.
    """
    case = reference.Case(golden_dir, name)
    model, tolerance = case.model().double(), case.gradient_tolerance()
    optimizer = adam(model, case)
    for update in range(6):
        assert_costs_are_near(case, update, backward(model, case, update, False))
        for parameter_name, p in model.named_parameters():
            assert p.grad is not None
            error = torch.rand_like(p) * 2 - 1
            # What no term touches, a row of an unused token or an idle unit, is exactly 0.
            p.grad += error * tolerance[parameter_name] / 4 * (p.grad != 0)
        optimizer.step()
        optimizer.zero_grad()
    assert_parameters_are_near(case, model)


@pytest.mark.golden
def test_one_update_is_the_originals(golden_dir: Path) -> None:
    case = reference.Case(golden_dir, "base")
    model = case.model()
    optimizer = adam(model, case)
    backward(model, case, 0, False)
    optimizer.step()
    expected, tolerance = case.after_one_update(), case.one_update_tolerance()
    for name, p in model.named_parameters():
        assert_within(p, expected[name], tolerance[name], name)


# ---------------------------------------------------------------- the plain transcription


@SHARING
@pytest.mark.parametrize("afn", ["gelu", "relu", "swish"])
def test_equals_the_transcription_in_float64(afn: str, share_prefix: bool) -> None:
    config = replace(SMALL, afn=afn)
    model, arrays = reference.random_model(config), some_arrays()
    expected = reference.run(reference.params_of(model), arrays, config)
    batch = packed(arrays, share_prefix=share_prefix)
    assert_close(model.clf_logits(batch), expected.logits, 1e-12)
    if not share_prefix:
        real = torch.from_numpy(arrays.M).bool()
        assert_close(model.hidden_states(batch), expected.h[real], 1e-12)
    losses = model.losses(batch, 0.5)
    assert losses.lm is not None
    clf = reference.clf_losses(expected.logits, torch.from_numpy(arrays.Y).long())
    # Losses are taken in float32 whatever the model's type.
    assert_close(losses.lm.double(), expected.lm, 1e-6)
    assert_close(losses.clf.double(), clf, 1e-6)
    assert_close(losses.total.double(), reference.total_loss(clf, expected.lm, 0.5), 1e-6)


@pytest.mark.parametrize("length", [2, 3, 9, 24])
def test_hidden_states_are_those_of_transformers(length: int) -> None:
    """Return ``OpenAIGPTModel`` with the same weights; its gelu is the tanh form, its mask -1e4."""
    transformers = pytest.importorskip("transformers")
    config = replace(SMALL, n_ctx=24)
    model = reference.random_model(config, std=0.15).float()
    theirs = their_model(transformers.OpenAIGPTModel, model)
    generator = np.random.RandomState(length)
    lengths = np.array([[length, max(2, length // 2)], [max(2, length - 1), 2]])
    arrays = arrays_of_lengths(lengths, generator)
    with torch.no_grad():
        states = theirs(input_ids=torch.from_numpy(arrays.X[..., 0]).flatten(0, 1).long())[0]
        found = padded(model.hidden_states(packed(arrays)), arrays)
    real = torch.from_numpy(arrays.M).bool().flatten(0, 1)
    assert_close(found[real], states[real], 1e-5)
    assert states[real].abs().max() > 0.5  # The states are not all 0.


@SHARING
def test_choices_are_those_of_transformers_double_heads(share_prefix: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model, arrays = reference.random_model(SMALL, std=0.15).float(), some_arrays()
    theirs = their_model(transformers.OpenAIGPTDoubleHeadsModel, model)
    with torch.no_grad():
        theirs.multiple_choice_head.summary.weight.copy_(model.clf.w.T)
        theirs.multiple_choice_head.summary.bias.copy_(model.clf.b)
        tokens = torch.from_numpy(arrays.X[..., 0]).long()
        last = torch.from_numpy(arrays.M.sum(-1)).long() - 1
        expected = theirs(input_ids=tokens, mc_token_ids=last).mc_logits
        found = model.clf_logits(packed(arrays, share_prefix=share_prefix))
    assert_close(found, expected, 1e-5)


def arrays_of_lengths(lengths: np.ndarray, generator: np.random.RandomState) -> Padded:
    """Draw tokens [B, S, T, 2] of the given lengths [B, S]; the last one is ``_classify_``."""
    B, C = lengths.shape
    T = int(lengths.max())
    X = np.zeros((B, C, T, 2), dtype=np.int32)
    X[..., 1] = SMALL.clf_token + 1 + np.arange(T)
    M = (np.arange(T) < lengths[..., None]).astype(np.float32)
    X[..., 0] = generator.randint(0, SMALL.clf_token, (B, C, T)) * M
    for b, c in np.ndindex(B, C):
        X[b, c, lengths[b, c] - 1, 0] = SMALL.clf_token
    return Padded(X, M, np.zeros(B, dtype=np.int32))


# -------------------------------------------------------------------------- shared prefixes

STORIES: dict[str, tuple[list[list[int]], list[list[int]], list[list[int]]]] = {
    "same first tokens": ([[1, 2]], [[3, 4, 5]], [[3, 4, 6, 0]]),
    "one ending begins the other": ([[1, 2]], [[3, 4]], [[3, 4, 5, 5]]),
    "identical endings": ([[1, 2]], [[3, 4]], [[3, 4]]),
    "endings of one token": ([[5]], [[3]], [[4]]),
    "no ending": ([[5, 6]], [[]], [[4]]),
    "no story": ([[]], [[2, 3]], [[4]]),
    "lengths differ": (
        [[1], [2, 3, 4, 5, 6, 0], [0, 0]],
        [[3], [2, 1, 1, 6, 5], [4, 4, 4]],
        [[4, 5, 6, 1], [2], [4, 4, 5]],
    ),
}


def unlike_from_the_start() -> Padded:
    """Return arrays whose choices have no common prefix, which a story never gives."""
    arrays = arrays_of([[1, 2]], [[3, 4]], [[3, 5]])
    arrays.X[0, 1, 0, 0] = 6
    return arrays


def classify_within() -> Padded:
    """Return arrays with a ``_classify_`` in the common prefix, which is then the first one."""
    arrays = arrays_of([[1, 2, 3]], [[3, 4]], [[3, 5, 5]])
    arrays.X[0, :, 2, 0] = SMALL.clf_token
    return arrays


@pytest.mark.parametrize("kind", [*STORIES, "unlike from the start", "classify within"])
def test_sharing_prefixes_changes_no_number(kind: str) -> None:
    special = {
        "unlike from the start": unlike_from_the_start,
        "classify within": classify_within,
    }
    arrays = special[kind]() if kind in special else arrays_of(*STORIES[kind])
    model = reference.random_model(SMALL, seed=1)
    plain, shared = packed(arrays), packed(arrays, share_prefix=True)
    assert_close(model.clf_logits(shared), model.clf_logits(plain), 1e-10)

    weights = torch.linspace(-1, 2, arrays.M[..., 0].size, dtype=torch.float64)
    by_choice = [
        gradients(model, model.clf_logits(batch).reshape(-1) @ weights) for batch in (plain, shared)
    ]
    by_loss = [gradients(model, model.losses(batch, 0.5).total) for batch in (plain, shared)]
    for name in by_choice[0]:
        assert_close(by_choice[1][name], by_choice[0][name], 1e-10)
        assert_close(by_loss[1][name], by_loss[0][name], 1e-6)  # losses are taken in float32
    found, expected = model.losses(shared, 0.5), model.losses(plain, 0.5)
    assert found.lm is not None
    assert expected.lm is not None
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-6)


def test_sharing_prefixes_does_share() -> None:
    """The comparison above would show nothing if both batches were equal."""
    for kind, stories in STORIES.items():
        arrays = arrays_of(*stories)
        assert len(packed(arrays, share_prefix=True).tokens) < len(packed(arrays).tokens), kind


# ---------------------------------------------------------------------------------- dropout


def dropping(**rates: float) -> tuple[DoubleHeadsModel, Padded]:
    """Return a float64 model in training mode with the given dropout rates only, and stories."""
    config = replace(SMALL, **rates)
    return reference.random_model(config).train(), some_arrays()


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the inputs and outputs of ``module`` within the block."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    try:
        yield seen
    finally:
        handle.remove()


def recorded_mask(module: nn.Module, inner: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the factor between the output of ``inner`` and what ``module`` made of it."""
    with recorded(module) as outer_calls, recorded(inner) as inner_calls:
        run()
    return (outer_calls[0][1] / inner_calls[0][1]).detach()


def assert_inverted_mask(mask: Tensor, rate: float) -> None:
    """Check that every entry is 0 or 1 / (1 - rate), about as often as expected."""
    kept = mask != 0
    assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - rate)), 1e-9)
    share, n = kept.double().mean().item(), kept.numel()
    assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / n) ** 0.5


def test_no_dropout_in_evaluation() -> None:
    rates = dict.fromkeys(NO_DROPOUT, 0.5)
    model, arrays = dropping(**rates)
    expected = reference.run(reference.params_of(model), arrays, model.config)
    assert_close(model.eval().clf_logits(packed(arrays)), expected.logits, 1e-12)
    assert_close(model.losses(packed(arrays), 0.5).lm.double(), expected.lm, 1e-6)
    assert (model.train().clf_logits(packed(arrays)) - expected.logits).abs().max() > 1e-2


def test_embedding_dropout_is_one_mask_for_input_and_output() -> None:
    model, arrays = dropping(embd_pdrop=0.4)
    torch.manual_seed(5)
    dropped = dropout(model.we.detach(), 0.4, training=True)  # the first thing a step draws
    assert_inverted_mask(dropped / model.we.detach(), 0.4)

    def drop(place: str, x: Tensor) -> Tensor:
        return dropped if place == "we" else x

    expected = reference.run(reference.params_of(model), arrays, model.config, drop)
    torch.manual_seed(5)
    losses = model.losses(packed(arrays), 0.5)
    assert losses.lm is not None
    assert_close(losses.lm.double(), expected.lm, 2e-6)
    torch.manual_seed(5)
    assert_close(model.clf_logits(packed(arrays)), expected.logits, 1e-12)


def test_embedding_dropout_is_the_same_wherever_a_row_is_used() -> None:
    model, arrays = dropping(embd_pdrop=0.5)
    with torch.no_grad():
        model.we[model.config.clf_token + 1 :] = 0  # positions: the input is the token's row
    batch = packed(arrays)
    with recorded(model.h[0]) as calls:
        model.hidden_states(batch)
    x = calls[0][0].detach()
    of_token: dict[int, Tensor] = {}
    for row, token in zip(x, batch.tokens.tolist(), strict=True):
        torch.testing.assert_close(row, of_token.setdefault(token, row), rtol=0, atol=0)
    assert len(of_token) < len(batch.tokens)
    masks = torch.stack([row / model.we[token].detach() for token, row in of_token.items()])
    assert_inverted_mask(masks, 0.5)


def test_attention_dropout_is_on_the_softmaxed_weights() -> None:
    """With equal scores and values of 1, position n sums n + 1 weights of 1 / (n + 1)."""
    model, arrays = dropping(attn_pdrop=0.5)
    attention, D = model.h[0].attn, model.config.n_embd
    with torch.no_grad():
        attention.c_attn.w.zero_()
        attention.c_attn.b.zero_()
        attention.c_attn.b[2 * D :] = 1
    batch = packed(arrays)
    with recorded(attention.c_proj) as calls:
        for _ in range(40):
            model.hidden_states(batch)
    n_seen = batch.positions - model.config.clf_token
    sums = torch.stack([given for given, _ in calls])  # [40, N, D]
    kept = sums * n_seen[:, None] * 0.5
    assert_close(kept, kept.round(), 1e-9)  # whole numbers of kept weights, not renormalised
    by_head = kept.unflatten(-1, (model.config.n_head, -1))
    assert (by_head == by_head[..., :1]).all()  # a weight is kept or dropped for a whole head
    assert (by_head[..., 0, 0] != by_head[..., 1, 0]).any()
    share = (kept[..., :: D // model.config.n_head].sum() / (n_seen.sum() * 40 * 3)).item()
    n = int(n_seen.sum()) * 40 * 3
    assert abs(share - 0.5) < 5 * 0.5 / n**0.5


def test_residual_dropout_is_after_both_projections_of_every_layer() -> None:
    """The result follows from the masks at these two places and no others."""
    model, arrays = dropping(resid_pdrop=0.3)
    batch = packed(arrays)
    places = {
        f"h{i}/{part}/out": (module, module.c_proj)
        for i, layer in enumerate(model.h)
        for part, module in (("attn", layer.attn), ("mlp", layer.mlp))
    }
    masks: dict[str, Tensor] = {}

    def run_from(place_index: int) -> Tensor:
        if place_index == len(places):
            return model.clf_logits(batch)
        name = list(places)[place_index]
        module, inner = places[name]
        out: list[Tensor] = []
        masks[name] = recorded_mask(module, inner, lambda: out.append(run_from(place_index + 1)))
        return out[0]

    logits = run_from(0)
    for mask in masks.values():
        assert_inverted_mask(mask, 0.3)
    distinct = list(masks.values())
    for i, mask in enumerate(distinct):
        assert all((mask != other).any() for other in distinct[:i])

    def drop(place: str, x: Tensor) -> Tensor:
        return x * padded(masks[place], arrays) if place in masks else x

    expected = reference.run(reference.params_of(model), arrays, model.config, drop)
    assert_close(logits, expected.logits, 1e-10)


def test_classifier_dropout_is_one_mask_a_story() -> None:
    model, _ = dropping(clf_pdrop=0.5)
    arrays = arrays_of([[1, 2]] * 8, [[3, 4]] * 8, [[3, 4]] * 8)  # all choices identical
    logits = model.clf_logits(packed(arrays)).detach()
    torch.testing.assert_close(logits[:, 0], logits[:, 1], rtol=0, atol=1e-12)
    assert len(logits[:, 0].unique()) == 8  # 12 places: a chance of 2^-12 that two masks agree

    h = torch.ones(2000, 2, model.config.n_embd, dtype=torch.float64)
    with torch.no_grad():
        model.clf.w.zero_()[0] = 1
        model.clf.b.zero_()
    assert_inverted_mask(model.clf(h)[:, 0], 0.5)


def test_dropout_keeps_the_mean() -> None:
    """With inverted dropout the mean logits of a linear head do not change."""
    model, _ = dropping(clf_pdrop=0.3)
    h = torch.randn(1, 2, model.config.n_embd, dtype=torch.float64)
    with torch.no_grad():
        dropped = model.clf(h.expand(20000, -1, -1))
        plain = model.eval().clf(h)[0]
    error = dropped.std(0) / 20000**0.5
    assert ((dropped.mean(0) - plain).abs() < 5 * error).all()


def test_choices_packed_apart_have_their_own_masks() -> None:
    """In the original the two sequences of a story share only the mask of ``we``."""
    model, _ = dropping(resid_pdrop=0.5)
    logits = model.clf_logits(packed(arrays_of([[1, 2]], [[3, 4]], [[3, 4]])))
    assert (logits[0, 0] - logits[0, 1]).abs() > 1e-3


# ------------------------------------------------------------------------------------- loss


def test_without_lm_coef_the_language_model_is_left_out() -> None:
    model, arrays = reference.random_model(SMALL), some_arrays()
    batch = packed(arrays)
    losses = model.losses(batch, 0.0)
    assert losses.lm is None
    torch.testing.assert_close(losses.total, losses.clf.mean())
    losses.total.backward()
    grad = model.we.grad
    assert grad is not None
    used = torch.zeros(SMALL.n_rows, dtype=torch.bool)
    used[batch.tokens] = True
    used[batch.positions] = True
    assert not grad[~used].any()
    assert not used.all()
    with_lm = gradients(model, model.losses(batch, 0.5).total)["we"]
    assert (with_lm[~used].abs().amax(-1) > 0).all()  # the softmax's share of unused rows


def test_total_is_the_mean_choice_loss_and_lm_coef_times_the_mean_lm_loss() -> None:
    model, arrays = reference.random_model(SMALL), some_arrays()
    for lm_coef in (0.25, 0.5, 2.0):
        losses = model(packed(arrays), lm_coef)
        assert losses.clf.shape == (3,)
        assert losses.lm.shape == (3, 2)
        expected = losses.clf.mean() + lm_coef * losses.lm.mean()
        torch.testing.assert_close(losses.total.double(), expected.double(), rtol=1e-6, atol=0)


def test_losses_need_labels() -> None:
    model, arrays = reference.random_model(SMALL), some_arrays()
    with pytest.raises(ValueError, match="targets"):
        model.losses(packed(arrays._replace(Y=None)), 0.5)


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 100])
def test_cross_entropy_by_chunks_is_torchs(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The loss and both gradients are right for one chunk of 17 rows and for several chunks."""
    monkeypatch.setattr(gpt1_model._WeightedCrossEntropy, "ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(17, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (17,), generator=generator)
    weights = torch.rand(17, generator=generator)
    ce = F.cross_entropy(h @ w.T, targets, reduction="none")
    expected = (ce * weights).sum()
    total, each = gpt1_model._WeightedCrossEntropy.apply(h, w, targets, weights)
    assert_close(each.double(), ce, 1e-6)
    assert_close(total.double(), expected, 1e-5)
    assert not each.requires_grad
    found = torch.autograd.grad(3 * total, [h, w])
    for one, other in zip(found, torch.autograd.grad(3 * expected, [h, w]), strict=True):
        assert_close(one, other, 1e-5)


def test_cross_entropy_of_far_apart_logits_is_finite() -> None:
    h = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    w = torch.eye(2, requires_grad=True)
    weights = torch.ones(1)
    total, _ = gpt1_model._WeightedCrossEntropy.apply(h, w, torch.tensor([1]), weights)
    total.backward()
    assert total.item() == 1000
    assert h.grad is not None
    assert h.grad.tolist() == [[1, -1]]


def test_cross_entropy_over_the_first_rows() -> None:
    """The other rows get a gradient of 0, and a second backward pass is refused."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 6, 6, 2])
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    total, _ = gpt1_model._WeightedCrossEntropy.apply(h, w, targets, weights, 7)
    expected = F.cross_entropy(h @ w[:7].T, targets)
    assert_close(total, expected, 1e-12)
    found = torch.autograd.grad(total, [h, w], retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected, [h, w]), strict=True):
        assert_close(one, other, 1e-12)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, [h, w])


def cross_entropy_gradient(
    h: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the float32 gradient of ``w`` for the mean cost, with products in ``dtype``."""
    w = w.clone().requires_grad_()
    weights = torch.full((len(h),), 1 / len(h))
    total, _ = gpt1_model._WeightedCrossEntropy.apply(h.to(dtype), w, targets, weights)
    (gradient,) = torch.autograd.grad(total, w)
    assert gradient.dtype == torch.float32
    return gradient


def test_a_gradient_in_bfloat16_is_as_good_at_64_chunks_as_at_one() -> None:
    """Rows that are repeated 64 times have the same mean cost and the same gradient.

    bfloat16 has 8 significant bits: rounding changes a value by a share of at most u = 2**-8.
    The logits z are rounded, which changes a probability p by a share of at most 2 u max|z| to
    first order. The product of p and its weight is rounded, and so is the product with the rows of
    h. None of these errors depends on the number of chunks. A sum in bfloat16 would be rounded once
    more for each chunk, by a share of the whole sum so far.
    """
    D, V, chunks = 16, 40, 64
    rows = gpt1_model._WeightedCrossEntropy.ROWS
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(rows, D, generator=generator).bfloat16().float()
    w = (torch.randn(V, D, generator=generator) / 10).bfloat16().float()
    targets = torch.randint(0, V, (rows,), generator=generator)

    many = h.repeat(chunks, 1), w, targets.repeat(chunks)
    found = cross_entropy_gradient(*many, torch.bfloat16)
    exact = cross_entropy_gradient(*many, torch.float32)

    u, z = 2.0**-8, h @ w.T
    p = z.softmax(-1)
    d = (p - F.one_hot(targets, V)) / rows
    bound = ((2 * u * z.abs().max() * p / rows + u * d.abs()).T @ h) + u * exact.abs()
    # Both are sums of 512 and then 64 terms in float32, and the bound is of first order in u.
    slack = 1.05
    assert ((found - exact).abs() <= slack * bound).all()
    # Nothing is lost between the chunks: 64 equal sums of 8 significant bits are exact in float32.
    assert torch.equal(found, cross_entropy_gradient(h, w, targets, torch.bfloat16))


# ------------------------------------------------------------------------- parts, one by one


def test_layer_norm_has_its_epsilon_under_the_root() -> None:
    norm = LayerNorm(4).double()
    with torch.no_grad():
        norm.g.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.b.copy_(torch.tensor([0.5, 0.0, -0.5, 1.0]))
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64) * 1e-3
    centred = x - x.mean()
    expected = centred / ((centred**2).mean() + 1e-5).sqrt() * norm.g + norm.b
    assert_close(norm(x), expected, 1e-12)


def test_gelu_is_the_tanh_form() -> None:
    x = torch.tensor([-2.5, 0.5, 2.5], dtype=torch.float64)
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    found = gpt1_model.ACTIVATIONS["gelu"](x)
    assert_close(found, 0.5 * x * (1 + torch.tanh(inner)), 1e-12)
    assert (found - F.gelu(x)).abs().max() > 1e-4


def test_input_is_token_row_plus_position_row_unscaled() -> None:
    model, arrays = reference.random_model(replace(SMALL, n_layer=0)), some_arrays()
    batch = packed(arrays)
    expected = model.we[batch.tokens] + model.we[batch.positions]
    torch.testing.assert_close(model.hidden_states(batch), expected, rtol=0, atol=0)


def test_blocks_normalise_after_each_sum() -> None:
    """The last state of every token has the mean and variance of the last layer norm."""
    model = reference.random_model(SMALL)
    with torch.no_grad():
        model.h[-1].ln_2.g.fill_(1)
        model.h[-1].ln_2.b.zero_()
    h = model.hidden_states(packed(some_arrays()))
    assert_close(h.mean(-1), torch.zeros(len(h), dtype=torch.float64), 1e-10)
    assert_close(h.var(-1, unbiased=False), torch.ones(len(h), dtype=torch.float64), 1e-3)


def test_fresh_parameters() -> None:
    config = ModelConfig(n_vocab=500, n_ctx=30, n_embd=48, n_head=4, n_layer=2)
    model = DoubleHeadsModel(config)
    model.init_parameters(torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if name.endswith(".b"):
            assert not p.any(), name
        elif name.endswith(".g"):
            assert (p == 1).all(), name
        else:
            n = p.numel()
            assert abs(p.mean()) < 5 * 0.02 / n**0.5, name
            assert abs(p.std() - 0.02) < 5 * 0.02 / (2 * n) ** 0.5, name
    again = DoubleHeadsModel(config)
    again.init_parameters(torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_vocab", 0),
        ("n_special", 1),
        ("n_special", -3),
        ("n_ctx", 0),
        ("n_embd", 0),
        ("n_head", 0),
        ("n_head", 5),
        ("n_layer", -1),
        ("embd_pdrop", 1.0),
        ("attn_pdrop", -0.1),
        ("resid_pdrop", float("nan")),
        ("clf_pdrop", 1.5),
        ("afn", "erf"),
    ],
)
def test_config_refuses_what_makes_no_model(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{field: value})


def test_config_of_the_paper() -> None:
    config = ModelConfig(n_ctx=77)
    assert config.n_rows == 40478 + 3 + 77
    assert config.clf_token == 40480
    assert (config.n_embd, config.n_head, config.n_layer, config.afn) == (768, 12, 12, "gelu")
    assert {getattr(config, name) for name in NO_DROPOUT} == {0.1}


def test_a_model_without_special_tokens_has_no_classify_token() -> None:
    """Otherwise the last token of the vocabulary would count as ``_classify_``."""
    config = replace(SMALL, n_special=0)
    assert (config.first_position, config.n_rows) == (7, 31)
    with pytest.raises(ValueError, match="no _classify_ token"):
        _ = config.clf_token


# ----------------------------------------------------------------------- one layer, many uses


def test_every_use_computes_the_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, prediction, generation and attention maps differ only in their contexts."""
    model, batch = reference.random_model(SMALL).float(), packed(some_arrays(), share_prefix=True)
    ids, used = [1, 2, 3], []
    original = Block.forward

    def forward(block: Block, x: Tensor, attend: Attend) -> Tensor:
        used.append(type(attend))
        return original(block, x, attend)

    monkeypatch.setattr(Block, "forward", forward)
    decoder = Decoder(model)
    cache, _ = decoder.prefill([ids], 1)
    decoder.step(cache, torch.tensor([4]))
    assert used == [Cached] * 4
    for run, contexts in (
        (lambda: model.losses(batch, 0.5), [Packed, Packed]),
        (lambda: model.clf_logits(batch), [Packed, ClassifyOnly]),
        (lambda: model.train().clf_logits(batch), [Packed, Packed]),
        (lambda: model.sequence_states(torch.tensor([ids])), [Packed, Packed]),
        (lambda: attention_maps(model, ids), [Packed, Packed]),
    ):
        used.clear()
        run()
        assert used == contexts


def test_plain_sequences_need_no_choices() -> None:
    """Plain sequences have the same states, masks and gradients as those sequences in a batch."""
    rates = dict.fromkeys(NO_DROPOUT, 0.2)
    model, _ = dropping(**rates)
    arrays = arrays_of_lengths(np.full((3, 2), 9), np.random.RandomState(0))
    tokens = torch.from_numpy(arrays.X[..., 0]).flatten(0, 1).long()
    torch.manual_seed(5)
    expected = model.hidden_states(packed(arrays)).view(6, 9, -1)
    torch.manual_seed(5)
    found = model.sequence_states(tokens)
    assert_close(found, expected, 0)
    weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
    by_batch = gradients(model, (expected * weights).sum())
    for name, gradient in gradients(model, (found * weights).sum()).items():
        assert_close(gradient, by_batch[name], 1e-12)


def test_linear_layers_have_the_same_outputs() -> None:
    model, arrays = reference.random_model(SMALL), some_arrays()
    linear = linear_layers(model)
    kinds = [type(module) for module in linear.modules()]
    assert kinds.count(nn.Linear) == 4 * SMALL.n_layer
    assert Conv1D not in kinds
    for share_prefix in (False, True):
        batch = packed(arrays, share_prefix=share_prefix)
        assert_close(linear.hidden_states(batch), model.hidden_states(batch), 1e-12)
        assert_close(linear.clf_logits(batch), model.clf_logits(batch), 1e-12)
        one, other = (gradients(each, each.losses(batch, 0.5).total) for each in (linear, model))
        assert_close(one["h.0.attn.c_attn.weight"].T, other["h.0.attn.c_attn.w"], 1e-6)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())


def test_what_replaces_a_linear_layer_needs_nothing_but_a_forward_method() -> None:
    """A quantiser replaces the modules whose class is exactly ``nn.Linear``."""

    class Quantised(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.scale = layer.weight.detach().abs().max() / 127
            self.levels = (layer.weight.detach() / self.scale).round().to(torch.int8)
            self.bias = layer.bias

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.levels * self.scale, self.bias)

    model, batch = reference.random_model(SMALL), packed(some_arrays(), share_prefix=True)
    quantised = linear_layers(model)
    for parent in list(quantised.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Quantised(child))
    h, expected = quantised.hidden_states(batch), model.hidden_states(batch)
    assert 1e-4 < (h - expected).norm() / expected.norm() < 0.1
    logits = quantised.clf_logits(batch)
    assert_close(logits, quantised.clf(h[batch.clf_rows]), 1e-12)


# ------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode(training: bool) -> None:
    model = reference.random_model(SMALL).train(training)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert all(module.training is training for module in model.modules())
    assert torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training is training


def test_predicting_uses_no_dropout_and_leaves_training_on() -> None:
    model, arrays = dropping(**dict.fromkeys(NO_DROPOUT, 0.5))
    model.float()
    process = Ranks(0, 1, torch.device("cpu"))
    expected = reference.run(reference.params_of(model), arrays, model.config).logits
    for n_batch in (1, 2, 3, 8):  # the last, smaller batch is predicted too
        logits = predict_logits(model, arrays.encoded(), process, n_batch=n_batch)
        assert_close(torch.from_numpy(logits), expected, 2e-5)
    assert model.training
