"""Every shape of task against an independent computation in float64.

The states are those of transformers' ``OpenAIGPTModel`` with the same weights, each sequence alone
and without padding; sequences, heads and losses are worked out in NumPy here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import torch
from peers import SMALL, their_model
from torch import nn

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import pack
from gpt1.model.transformer import Classifier, DoubleHeadsModel, ModelConfig
from gpt1.tasks import (
    ChoiceIndex,
    Choices,
    Classes,
    Classification,
    Entailment,
    Grades,
    Layout,
    Similarity,
    Target,
)
from gpt1.text_utils.special import SpecialTokens

CONFIG = replace(SMALL, n_vocab=11, n_ctx=30)
SPECIAL = SpecialTokens.after(CONFIG.n_vocab)
START, DELIMITER, CLASSIFY = SPECIAL.start, SPECIAL.delimiter, SPECIAL.classify
LM_COEF = 0.5
EXACT = 1e-9  # in float64, with values near 1: a million roundings
FAR = 1e-3  # a deviation is noticed if it is so much larger

Texts = Sequence[Sequence[int]]


class Shape(NamedTuple):
    """A layout, a target, and examples with labels; an empty text is a missing answer."""

    layout: Layout
    target: Target
    examples: list[Texts]
    labels: list[float]


def random_texts(seed: int, *lengths: int) -> Texts:
    generator = np.random.RandomState(seed)
    return [generator.randint(0, CONFIG.n_vocab, length).tolist() for length in lengths]


SHAPES = {
    "classification": Shape(
        Classification(),
        Classes(("a", "b", "c")),
        [random_texts(1, 4), random_texts(2, 9), random_texts(3, 1)],
        [0, 2, 1],
    ),
    "entailment": Shape(
        Entailment(),
        Classes(("a", "b", "c")),
        [random_texts(1, 4, 3), random_texts(2, 1, 7), random_texts(3, 6, 2)],
        [1, 0, 2],
    ),
    "similarity": Shape(
        Similarity(),
        Classes(("0", "1")),
        [random_texts(1, 4, 3), random_texts(2, 1, 7), random_texts(3, 6, 2)],
        [1, 0, 0],
    ),
    "grades": Shape(
        Similarity(),
        Grades(),
        [random_texts(1, 4, 3), random_texts(2, 1, 7), random_texts(3, 6, 2)],
        [0.375, 5.0, 3.25],  # exact in float32
    ),
    "choice": Shape(
        Choices(has_question=True),
        ChoiceIndex(("A", "B", "C", "D")),
        [random_texts(1, 5, 3, 2, 4, 1, 3), random_texts(2, 2, 1, 5, 1, 2, 2)],
        [3, 0],
    ),
    "missing answers": Shape(
        Choices(),
        ChoiceIndex(),
        [random_texts(1, 5, 0, 4, 0, 3), random_texts(2, 2, 5, 1, 2, 0)],
        [1, 0],
    ),
}


def sequences_of(name: str, texts: Texts) -> list[list[int]]:
    """Return the sequences of an example by the paper's figure 1; none is cut here."""
    if name == "classification":
        return [[START, *texts[0], CLASSIFY]]
    if name == "entailment":
        return [[START, *texts[0], DELIMITER, *texts[1], CLASSIFY]]
    if name in ("similarity", "grades"):
        orders = [(texts[0], texts[1]), (texts[1], texts[0])]
        return [[START, *one, DELIMITER, *two, CLASSIFY] for one, two in orders]
    context, *answers = texts
    if name == "choice":
        context = [*context, *answers.pop(0)]
    return [[START, *context, DELIMITER, *answer, CLASSIFY] for answer in answers if answer]


class Expected(NamedTuple):
    """States [n sequences, D] and language-model losses of each example, logits, and losses."""

    states: list[np.ndarray]
    lm: list[np.ndarray]
    logits: list[np.ndarray]
    clf: np.ndarray
    total: float


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def wanted(name: str, labels: Sequence[float]) -> list[np.ndarray]:
    """Return the probabilities of the outcomes that each label stands for."""
    found = []
    for label, texts in zip(labels, SHAPES[name].examples, strict=True):
        if name == "grades":
            low = min(int(label), 4)
            row = np.zeros(6)
            row[[low, low + 1]] = 1 - (label - low), label - low
        elif name == "missing answers":  # the label counts the columns, also those left empty
            row = np.eye(4)[int(label)][[bool(answer) for answer in texts[1:]]]
        else:
            row = np.eye({"similarity": 2, "choice": 4}.get(name, 3))[int(label)]
        found.append(row)
    return found


def compute(name: str, ours: DoubleHeadsModel, transformers: Any) -> Expected:
    """Compute an example at a time, by transformers and NumPy alone."""
    theirs = their_model(lambda config: transformers.OpenAIGPTModel(config).double(), ours)
    we, w, b = (p.detach().numpy() for p in (ours.we, ours.clf.w, ours.clf.b))
    states, lms, logits = [], [], []
    for texts in SHAPES[name].examples:
        own, lm = [], []
        for ids in sequences_of(name, texts):
            with torch.no_grad():
                h = theirs(input_ids=torch.tensor([ids]))[0][0].numpy()
            own.append(h[-1])
            of_next = log_softmax(h[:-1] @ we.T)[np.arange(len(ids) - 1), ids[1:]]
            lm.append(-of_next.mean())
        states.append(np.array(own))
        lms.append(np.array(lm))
        is_choice = name in ("choice", "missing answers")
        logits.append((own @ w + b).squeeze(-1) if is_choice else np.sum(own, 0) @ w + b)
    targets = wanted(name, SHAPES[name].labels)
    clf = [-(y * log_softmax(z)).sum() for y, z in zip(targets, logits, strict=True)]
    total = np.mean(clf) + LM_COEF * np.concatenate(lms).mean()
    return Expected(states, lms, logits, np.array(clf), float(total))


def split_of(shape: Shape) -> EncodedSplit:
    sequences = (shape.layout.sequences(each, SPECIAL, CONFIG.n_ctx) for each in shape.examples)
    targets = shape.target.encode(shape.labels)
    return replace(EncodedSplit.of(sequences, SPECIAL), targets=targets)


def our_model(shape: Shape, **changes: Any) -> DoubleHeadsModel:
    config = replace(CONFIG, n_classes=shape.target.n_outputs, **changes)
    return reference.random_model(config, std=0.25)


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


every_shape = pytest.mark.parametrize("name", SHAPES)
sharing = pytest.mark.parametrize("share_prefix", [False, True], ids=["unshared", "shared"])


def difference(found: torch.Tensor, expected: Any) -> float:
    return float(np.abs(found.detach().double().numpy() - np.asarray(expected)).max())


@every_shape
@sharing
def test_logits_and_losses_are_those_of_an_independent_computation(
    name: str, share_prefix: bool, transformers: Any
) -> None:
    shape = SHAPES[name]
    model = our_model(shape)
    expected = compute(name, model, transformers)
    batch = pack(split_of(shape), CLASSIFY, share_prefix=share_prefix)
    assert (batch.segments is not None) == (share_prefix and isinstance(shape.layout, Choices))
    for logits in (model.clf_logits(batch), model.train().clf_logits(batch)):
        for row, right in zip(logits, expected.logits, strict=True):
            assert difference(row[row.isfinite()], right) < EXACT
    losses = model.losses(batch, LM_COEF)
    assert losses.lm is not None
    assert difference(losses.clf, expected.clf) < EXACT
    assert difference(losses.lm[losses.lm > 0], np.concatenate(expected.lm)) < EXACT
    assert difference(losses.total, expected.total) < EXACT


def loss_and_gradients(
    model: DoubleHeadsModel, shape: Shape, *, share_prefix: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = pack(split_of(shape), CLASSIFY, share_prefix=share_prefix)
    total = model.losses(batch, LM_COEF).total
    return total, list(torch.autograd.grad(total, list(model.parameters())))


@every_shape
@sharing
def test_gradients_are_finite_differences(name: str, share_prefix: bool) -> None:
    """The derivative along a random direction of every parameter, by a step up and a step down.

    With a step of 1e-4 the error of a central difference is 1e-8 of the third derivative, and the
    rounding of a loss near 5 divided by the step is below 1e-11.
    """
    shape = SHAPES[name]
    model = our_model(shape)
    _, gradients = loss_and_gradients(model, shape, share_prefix=share_prefix)
    generator, step = torch.Generator().manual_seed(0), 1e-4
    batch = pack(split_of(shape), CLASSIFY, share_prefix=share_prefix)
    for (which, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        values = []
        for sign in (1, -2):  # up by one step, then down to one below the start
            with torch.no_grad():
                p += sign * step * direction
                values.append(model.losses(batch, LM_COEF).total.item())
        with torch.no_grad():
            p += step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), abs=2e-6), which


@every_shape
def test_float32_stays_within_the_rounding_of_its_sums(name: str) -> None:
    """A sum of n products is the exact sum with factors off by at most n half-roundings each.

    The longest sum of the model has 4 D = 48 products. The loss then moves by at most 48 *
    ``EPS32`` / 2 of the sum of all |parameter * derivative|, for each layer that follows once more.
    """
    shape = SHAPES[name]
    model = our_model(shape)
    exact, gradients = loss_and_gradients(model, shape)
    moved = sum(
        (g * p).abs().sum().item() for g, p in zip(gradients, model.parameters(), strict=True)
    )
    bound = 4 * CONFIG.n_embd * reference.EPS32 / 2 * moved * (CONFIG.n_layer + 1)
    rough, rough_gradients = loss_and_gradients(model.float(), shape)
    assert rough.dtype == torch.float32
    assert abs(rough.item() - exact.item()) < bound < FAR
    largest = max(g.abs().max().item() for g in gradients)
    for found, right in zip(rough_gradients, gradients, strict=True):
        assert (found.double() - right).abs().max().item() < bound * max(1.0, largest)


# ------------------------------------------------------------------------- what is not shared


def test_an_answer_that_is_missing_changes_nothing() -> None:
    """Two examples of two and three answers are the same with and without empty columns."""
    shape = SHAPES["missing answers"]
    model = our_model(shape)
    gaps = pack(split_of(shape), CLASSIFY, share_prefix=True)
    assert gaps.n_sequences == 5
    assert gaps.present is not None
    logits = model.clf_logits(gaps)
    assert logits.isinf().tolist() == (~gaps.present).tolist()
    total = model.losses(gaps, 0.0).total
    parts = []
    for texts, label in zip(shape.examples, shape.labels, strict=True):
        kept = [texts[0], *(answer for answer in texts[1:] if answer)]
        place = kept[1:].index(texts[1 + int(label)])
        alone = Shape(shape.layout, shape.target, [kept], [place])
        batch = pack(split_of(alone), CLASSIFY, share_prefix=True)
        assert batch.present is None
        parts.append(model.losses(batch, 0.0).total)
    assert difference(total, torch.stack(parts).mean().item()) < EXACT
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


@sharing
def test_prefixes_are_shared_by_answers_and_not_by_orders(share_prefix: bool) -> None:
    counts = {}
    for name in ("choice", "similarity"):
        split = split_of(SHAPES[name])
        batch = pack(split, CLASSIFY, share_prefix=share_prefix)
        counts[name] = len(batch.tokens) - int(split.lengths.sum())
    contexts = [2 + len(texts[0]) + len(texts[1]) for texts in SHAPES["choice"].examples]
    assert counts["similarity"] == 0
    saved = 3 * sum(contexts)
    assert counts["choice"] <= -saved if share_prefix else counts["choice"] == 0


# ----------------------------------------------------------------------------- deviations


@pytest.fixture
def similar(transformers: Any) -> tuple[DoubleHeadsModel, torch.Tensor, Expected]:
    """The model, its logits and the independent computation for the shape similarity."""
    model = our_model(SHAPES["similarity"])
    expected = compute("similarity", model, transformers)
    batch = pack(split_of(SHAPES["similarity"]), CLASSIFY, share_prefix=False)
    logits = model.clf_logits(batch)
    assert difference(logits, expected.logits) < EXACT
    return model, logits, expected


def test_similarity_reads_both_orders(similar: tuple[Any, torch.Tensor, Expected]) -> None:
    model, logits, expected = similar
    w, b = model.clf.w.detach().numpy(), model.clf.b.detach().numpy()
    for order in (0, 1):
        assert difference(logits, [h[order] @ w + b for h in expected.states]) > FAR


def test_states_are_added_and_not_averaged(similar: tuple[Any, torch.Tensor, Expected]) -> None:
    model, logits, expected = similar
    w, b = model.clf.w.detach().numpy(), model.clf.b.detach().numpy()
    assert difference(logits, [h.mean(0) @ w + b for h in expected.states]) > FAR


def test_grades_are_neither_hard_classes_nor_a_regression() -> None:
    shape = SHAPES["grades"]
    model = our_model(shape)
    batch = pack(split_of(shape), CLASSIFY, share_prefix=False)
    losses = model.losses(batch, 0.0)
    log_p = log_softmax(model.clf_logits(batch).detach().numpy())
    labels = np.array(shape.labels)
    hard = -log_p[np.arange(len(labels)), labels.round().astype(int)]
    assert difference(losses.clf, hard) > FAR
    regression = (np.exp(log_p) @ np.arange(6) - labels) ** 2
    assert difference(losses.clf, regression) > FAR


@pytest.mark.parametrize("n_classes", [1, 12])
def test_the_sequences_of_an_example_share_one_dropout_mask(n_classes: int) -> None:
    """With an identity in place of the matrix the mask can be read from the logits."""
    config = ModelConfig(n_vocab=5, n_ctx=8, n_embd=12, n_head=3, n_classes=12, clf_pdrop=0.5)
    head = Classifier(config).double().train()
    h = torch.rand(40, 2, 12, dtype=torch.float64) + 0.5
    torch.manual_seed(0)
    if n_classes == 12:
        with torch.no_grad():
            head.w.copy_(torch.eye(12))
            head.b.zero_()
        kept = head(h) / h.sum(1) / 2
    else:
        kept = torch.empty(40, 12, dtype=torch.float64)
        head.w, head.b = nn.Parameter(torch.ones(12, 1).double()), nn.Parameter(torch.zeros(1))
        logits = head(torch.ones(40, 2, 12, dtype=torch.float64))
        assert torch.equal(logits[:, 0], logits[:, 1])  # the same mask for both
        assert len(set(logits[:, 0].tolist())) > 3
        return
    # Each place is kept in both sequences or in none; with a mask of its own for each sequence a
    # fourth of the places would be kept in one only.
    assert set(kept.round(decimals=9).unique().tolist()) == {0.0, 1.0}
    assert 0.3 < kept.mean() < 0.7


@every_shape
def test_the_language_model_loss_is_the_mean_of_sequences_and_not_of_tokens(
    name: str, transformers: Any
) -> None:
    shape = SHAPES[name]
    model = our_model(shape)
    expected = compute(name, model, transformers)
    batch = pack(split_of(shape), CLASSIFY, share_prefix=False)
    with_lm, without = (model.losses(batch, coef).total for coef in (1.0, 0.0))
    lm = np.concatenate(expected.lm)
    lengths = split_of(shape).lengths
    per_token = (lm * (lengths[lengths > 0] - 1)).sum() / (lengths[lengths > 0] - 1).sum()
    assert difference(with_lm - without, lm.mean()) < EXACT
    assert difference(with_lm - without, per_token) > FAR
