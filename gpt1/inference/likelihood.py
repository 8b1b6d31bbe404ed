"""How likely a model finds texts (paper, section 3.1, equation 1).

Axes: B texts, T positions, D width, n_vocab tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt1.inference.opened import OpenedModel
from gpt1.inference.prediction import evaluating
from gpt1.runtime.errors import InputError

N_BATCH = 8
"""Texts at a time."""


def token_log_likelihoods(
    model: OpenedModel, texts: Sequence[str], *, n_batch: int = N_BATCH
) -> list[list[float]]:
    """Compute the log-probability of each token of each text, given the tokens before it.

    The softmax runs over the rows of the vocabulary. The rows of special tokens and positions, over
    which the loss of the original also runs, are no tokens that a text can have.

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
            _of_text(h[: len(own) - 1], row[1 : len(own)], module.we[: module.config.n_vocab])
            for h, row, own in zip(states, tokens, ids, strict=True)
        ]


def _of_text(h: Tensor, targets: Tensor, rows: Tensor) -> list[float]:
    """Return the log-probability of each target [T - 1] after the states h [T - 1, D]."""
    log_p = (h @ rows.T).float().log_softmax(-1)  # [T - 1, n_vocab]
    found: list[float] = log_p.gather(1, targets[:, None])[:, 0].tolist()
    return found
