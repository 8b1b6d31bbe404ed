"""How likely a model finds texts, and answers to contexts (paper, section 3.1, equation 1).

The softmax runs over the rows of the vocabulary. The rows of special tokens and positions, over
which the loss of the original also runs, are no tokens that a text can have.

Axes: B texts, T positions, n examples, C answers, R tokens to predict, D width, n_vocab tokens of
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import Batch, pack_answers
from gpt1.inference.opened import OpenedModel
from gpt1.inference.prediction import evaluating
from gpt1.model import DoubleHeadsModel
from gpt1.runtime.ahead import made_ahead
from gpt1.runtime.device import arithmetic
from gpt1.runtime.errors import InputError

N_BATCH = 8
"""Texts at a time."""
_ROWS = 512
"""Tokens at a time whose logits, float32 [R, n_vocab], are in memory."""


def token_log_likelihoods(
    model: OpenedModel, texts: Sequence[str], *, n_batch: int = N_BATCH
) -> list[list[float]]:
    """Compute the log-probability of each token of each text, given the tokens before it.

    Args:
        model: the model.
        texts: the texts.
        n_batch: texts at a time.

    Returns:
        For each text the natural logarithms (nats) of the probabilities of all tokens after the
        first, which has no token before it.

    Raises:
        InputError: a text has no tokens, or more than the model has positions.
    """
    ids = model.encode(texts)
    n_ctx = model.module.config.n_ctx
    for number, tokens in enumerate(ids, start=1):
        if not 1 <= len(tokens) <= n_ctx:
            raise InputError(
                f"text {number}: has {len(tokens)} tokens, but must have from 1 to {n_ctx} "
                f"(n_ctx, the positions of {model.source}); "
                f"{'shorten it' if tokens else 'write a word at least'}"
            )
    found: list[list[float]] = [[] for _ in ids]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for begin in range(0, len(ids), n_batch):
        batch = by_length[begin : begin + n_batch]
        for i, values in zip(batch, _of_batch(model, [ids[i] for i in batch]), strict=True):
            found[i] = values
    return found


def _of_batch(model: OpenedModel, ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probabilities of B texts; the padding comes last, where no token sees it."""
    module = model.module
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)  # [B, T]
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
    tokens = tokens.to(module.we.device)
    with evaluating(module):
        states = module.sequence_states(tokens)  # [B, T, D]
        return [
            _log_probs(module, h[: len(own) - 1], row[1 : len(own)]).tolist()
            for h, row, own in zip(states, tokens, ids, strict=True)
        ]


def _log_probs(module: DoubleHeadsModel, h: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target, at least in float32, [R].

    Args:
        module: the model.
        h: [R, D], the states after which the targets are predicted.
        targets: int64 [R], token ids.
    """
    rows = module.we[: module.config.n_vocab]
    found = [h.new_zeros(0, dtype=torch.promote_types(h.dtype, torch.float32))]
    for begin in range(0, len(targets), _ROWS):
        part = slice(begin, begin + _ROWS)
        logits = (h[part] @ rows.T).to(found[0].dtype)
        found.append(logits.log_softmax(-1).gather(1, targets[part, None])[:, 0])
    return torch.cat(found)


def answer_log_likelihoods(
    module: DoubleHeadsModel,
    split: EncodedSplit,
    *,
    n_batch: int = N_BATCH,
    precision: str = "fp32",
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Compute the log-probability of each answer's tokens, given the context of its example.

    The states of a context are computed once for all its answers.

    Args:
        module: the model.
        split: n examples. The first sequence of each is the context, the C others are answers; all
            as in :func:`gpt1.batches.packing.pack_answers`. Context and answer have at most
            ``n_ctx`` tokens together.
        n_batch: examples at a time.
        precision: a value of ``--precision``.
        progress: is called with the number of examples after each batch of them.

    Returns:
        [n, C], the sums over the tokens of the answers in nats; -infinity for an answer that is
        missing.

    Raises:
        ValueError: a context is empty, or context and answer are too long.
    """
    lengths, n_ctx = split.lengths, module.config.n_ctx
    longest = lengths[:, 0] + lengths[:, 1:].max(1, initial=0)
    if (lengths[:, 0] < 1).any() or (longest > n_ctx).any():
        raise ValueError(f"contexts of {lengths[:, 0].min()} tokens or more, n_ctx is {n_ctx}")
    sums = np.zeros((split.n_examples, split.n_sequences - 1))
    # A batch has examples of similar length, so that attention computes less padding.
    by_length = np.argsort(lengths.sum(1), kind="stable")
    begins = range(0, split.n_examples, n_batch)

    def batch_from(begin: int) -> Batch:
        examples = split.take(by_length[begin : begin + n_batch])
        batch = pack_answers(examples, module.config.first_position)
        return batch.pinned_for(module.we.device)

    with (
        evaluating(module),
        arithmetic(precision, module.we.device),
        made_ahead(begins, batch_from) as batches,
    ):
        for begin, batch in batches:
            rows = by_length[begin : begin + n_batch]
            sums[rows] = _of_answers(module, batch)
            if progress is not None:
                progress(len(rows))
    return np.where(lengths[:, 1:] > 0, sums, -np.inf)


def _of_answers(module: DoubleHeadsModel, batch: Batch) -> npt.NDArray[np.float64]:
    """Return the sums of the log-probabilities of the answers' tokens in a batch, [B, S]."""
    there = batch.to(module.we.device)
    h = module.hidden_states(there)[there.lm_rows]
    log_p = _log_probs(module, h, there.lm_targets).cpu().double()  # no GPU of Apple has float64
    is_in = (batch.lm_counts > 0).double()  # [R, S], the answer that has each target
    sums = log_p.new_zeros(batch.n_examples, is_in.shape[1])
    sums.index_add_(0, batch.lm_example, log_p[:, None] * is_in)
    found: npt.NDArray[np.float64] = sums.numpy()
    return found
