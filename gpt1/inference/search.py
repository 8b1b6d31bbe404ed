"""Which token comes next: greedy, sampled or by beam search.

Axes: B prompts, R rows (R / B continuations of each prompt), V pieces of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.inference.decoding import Decoder

_NO_BEAM = -1e9  # the score of the copies of a prompt before they differ


class Beams(NamedTuple):
    """The best continuations of each prompt, best first.

    tokens: [B, num_beams, n_new].
    log_probs: [B, num_beams], of the whole continuation, in nats.
    """

    tokens: Tensor
    log_probs: Tensor


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that have been used less likely (Keskar et al., CTRL, section 4.1).

    Args:
        scores: logits or log-probabilities, [R, V].
        seen: [R, V], the tokens to penalise.
        penalty: divides a positive score and multiplies a negative one; 1 changes nothing.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """The k highest of each row [R, V], and what equals the last of them; others -infinity."""
    lowest = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < lowest, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """The fewest tokens of each row [R, V] whose probabilities reach p; others -infinity.

    The likeliest always stays (Holtzman et al., The Curious Case of Neural Text Degeneration).
    """
    ascending, order = scores.sort(-1)
    # What a token and all less likely ones have together: it goes if the rest reaches p.
    total = ascending.softmax(-1).cumsum(-1)
    goes = total <= 1 - p
    goes[:, -1] = False
    return scores.masked_fill(torch.zeros_like(goes).scatter(1, order, goes), -torch.inf)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What to draw from: logits [R, V] to probabilities [R, V] on the CPU in float64.

    The temperature comes first, then ``top_k``, then ``top_p`` on what that left.
    """
    scores = logits.cpu().double()
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        scores = keep_top_k(scores, top_k)
    if top_p is not None and top_p < 1:
        scores = keep_top_p(scores, top_p)
    return scores.softmax(-1)


def pick(p: Tensor, u: Tensor) -> Tensor:
    """One token of each row of probabilities [R, V], by a number u [R] from [0, 1)."""
    cumulative = p.cumsum(-1)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]


def draws(
    seed: int, prompts: Sequence[int], samples: Sequence[int], n_new: int
) -> npt.NDArray[np.float64]:
    """[R, n_new] numbers from [0, 1), a row for each sample of each prompt.

    A row depends on the seed and on the numbers of its prompt and sample, on no other row.
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
    """The tokens [R] of each of ``n_new`` steps, on the CPU, as they come.

    Args:
        decoder: the model.
        prompts: B lists of token ids.
        n_new: tokens to generate.
        u: [R, n_new], numbers from [0, 1) to draw tokens by; R / B continuations of each prompt.
            Without them, each prompt has one continuation, always the likeliest token.
        temperature, top_k, top_p: see :func:`probabilities`.
        repetition_penalty: see :func:`penalise`; it sees the prompt, too.
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
    """Keep the likeliest beginnings of each prompt at each step.

    Args:
        decoder: the model.
        prompts: B lists of token ids.
        n_new: tokens to generate.
        num_beams: beginnings to keep.
        repetition_penalty: see :func:`penalise`; here for log-probabilities.
    """
    B, V = len(prompts), decoder.config.n_vocab
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
        candidates = totals[..., None] + log_probs.view(B, num_beams, V)
        totals, best = candidates.flatten(1).topk(num_beams)
        parents = (first_row + best // V).flatten()  # [R], the row that each beam goes on from
        new = (best % V).flatten()
        tokens = torch.cat([tokens[parents], new[:, None]], 1)
        if step + 1 < n_new:
            seen = seen[parents].scatter(1, new[:, None], True)
            cache.reorder(parents)
            logits = decoder.step(cache, new)
    return Beams(tokens.view(B, num_beams, n_new).cpu(), totals.cpu())


def _seen(decoder: Decoder, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
    """[R, V]: the pieces in each row's prompt; special tokens are no pieces."""
    V = decoder.config.n_vocab
    seen = torch.zeros(len(prompts), V, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[[i for i in prompt if i < V]] = True
    return seen.repeat_interleave(copies, 0).to(decoder.device)
