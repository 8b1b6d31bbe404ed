"""Choose the next token: greedily, by sampling or by beam search.

Axes: B prompts, R rows (R / B continuations of each prompt), n_vocab tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.inference.decoding import Decoder

_NO_BEAM = -1e9  # initial log-probability of all beams but the first: they are copies of it


class Beams(NamedTuple):
    """The best continuations of each prompt, best first.

    tokens: [B, num_beams, n_new].
    log_probs: [B, num_beams], the log-probability of the whole continuation, in nats.
    """

    tokens: Tensor
    log_probs: Tensor


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that have been used less likely (Keskar et al., CTRL, section 4.1).

    Args:
        scores: logits or log-probabilities, [R, n_vocab].
        seen: bool [R, n_vocab], the tokens that have been used.
        penalty: divides a positive score and multiplies a negative one; 1 changes nothing.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Set all but the k highest scores of each row [R, n_vocab] to -infinity.

    Scores that equal the k-th highest are kept.
    """
    lowest = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < lowest, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens of each row whose probabilities sum to p; set others to -infinity.

    The likeliest token is always kept (Holtzman et al., The Curious Case of Neural Text
    Degeneration).

    Args:
        scores: logits, [R, n_vocab].
        p: the sum of probabilities, from 0 to 1.
    """
    ascending, order = scores.sort(-1)
    # A token is dropped if the tokens that are likelier than it have a probability of at least p.
    total = ascending.softmax(-1).cumsum(-1)  # of each token and all less likely ones
    dropped = total <= 1 - p
    dropped[:, -1] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the probabilities with which tokens are sampled, float64 [R, n_vocab] on the CPU.

    ``temperature`` is applied first, then ``top_k``, then ``top_p`` to the remaining tokens.

    Args:
        logits: [R, n_vocab].
        temperature: divides the logits; above 0.
        top_k: number of tokens to draw from [all].
        top_p: draw from the fewest tokens whose probabilities sum to this number [all].
    """
    scores = logits.cpu().double()
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        scores = keep_top_k(scores, top_k)
    if top_p is not None and top_p < 1:
        scores = keep_top_p(scores, top_p)
    return scores.softmax(-1)


def pick(p: Tensor, u: Tensor) -> Tensor:
    """Draw a token from each row of probabilities.

    Args:
        p: [R, n_vocab].
        u: [R], uniform random numbers from [0, 1).

    Returns:
        int64 [R].
    """
    cumulative = p.cumsum(-1)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]


def draws(
    seed: int, prompts: Sequence[int], samples: Sequence[int], n_new: int
) -> npt.NDArray[np.float64]:
    """Return uniform random numbers from [0, 1), one row per sample of each prompt.

    A row depends only on the seed, the number of the prompt and the number of the sample.

    Args:
        seed: the seed.
        prompts: numbers of the prompts.
        samples: numbers of the samples of each prompt.
        n_new: random numbers per row.

    Returns:
        [R, n_new]; all samples of the first prompt come first.
    """
    keys = [[seed, prompt, sample] for prompt in prompts for sample in samples]
    return np.stack([np.random.default_rng(key).random(n_new) for key in keys])


def one_by_one(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    *,
    u: npt.NDArray[np.float64] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> Iterator[Tensor]:
    """Generate greedily or by sampling, and yield the tokens of each step.

    Args:
        decoder: the model.
        prompts: B lists of token ids.
        n_new: number of tokens to generate per continuation.
        u: [R, n_new], uniform random numbers from [0, 1), with which R / B continuations of each
            prompt are sampled. If None, each prompt has one continuation, of the likeliest token
            at each step.
        temperature, top_k, top_p: see :func:`probabilities`.
        repetition_penalty: see :func:`penalise`; the tokens of the prompt count as used.

    Yields:
        int64 [R] on the CPU, ``n_new`` times.
    """
    copies = 1 if u is None else len(u) // len(prompts)
    cache, logits = decoder.prefill(prompts, n_new, copies)
    seen = _seen(decoder, prompts, copies)
    for step in range(n_new):
        if repetition_penalty != 1:
            logits = penalise(logits, seen, repetition_penalty)
        if u is None:
            tokens = logits.argmax(-1)
        else:
            p = probabilities(logits, temperature, top_k, top_p)
            tokens = pick(p, torch.from_numpy(u[:, step])).to(decoder.device)
        yield tokens.cpu()
        if step + 1 < n_new:
            seen = seen.scatter(1, tokens[:, None], True)
            logits = decoder.step(cache, tokens)


def beam_search(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    *,
    num_beams: int,
    repetition_penalty: float = 1.0,
) -> Beams:
    """Generate by beam search: keep the likeliest partial continuations (beams) in each step.

    Args:
        decoder: the model.
        prompts: B lists of token ids.
        n_new: number of tokens to generate per continuation.
        num_beams: number of beams per prompt.
        repetition_penalty: see :func:`penalise`, which is applied to log-probabilities here.
    """
    B, n_vocab = len(prompts), decoder.config.n_vocab
    cache, logits = decoder.prefill(prompts, n_new, num_beams)
    seen = _seen(decoder, prompts, num_beams)
    first_row = torch.arange(0, B * num_beams, num_beams, device=decoder.device)[:, None]
    tokens = torch.empty(B * num_beams, 0, dtype=torch.long, device=decoder.device)
    totals = torch.full((B, num_beams), _NO_BEAM, device=decoder.device)
    totals[:, 0] = 0
    for step in range(n_new):
        log_probs = logits.log_softmax(-1)
        if repetition_penalty != 1:
            log_probs = penalise(log_probs, seen, repetition_penalty)
        candidates = totals[..., None] + log_probs.view(B, num_beams, n_vocab)
        totals, best = candidates.flatten(1).topk(num_beams)
        parents = (first_row + best // n_vocab).flatten()  # [R], the row that each beam extends
        new = (best % n_vocab).flatten()
        tokens = torch.cat([tokens[parents], new[:, None]], 1)
        if step + 1 < n_new:
            seen = seen[parents].scatter(1, new[:, None], True)
            cache.reorder(parents)
            logits = decoder.step(cache, new)
    return Beams(tokens.view(B, num_beams, n_new).cpu(), totals.cpu())


def _seen(decoder: Decoder, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
    """Return the tokens of each row's prompt, without special tokens, as bool [R, n_vocab]."""
    n_vocab = decoder.config.n_vocab
    seen = torch.zeros(len(prompts), n_vocab, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[[i for i in prompt if i < n_vocab]] = True
    return seen.repeat_interleave(copies, 0).to(decoder.device)
