"""Dropout masks, drawn fast: they are most of the random numbers that a CPU step needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_STEPS = 1 << 16  # a CPU mask takes 16 random bits an element
_ROWS = 1024  # of a matrix under dropout at a time: they stay in the cache from step to step


def keep_mask(shape: Sequence[int], p: float, like: Tensor) -> Tensor:
    """A mask for inverted dropout: 0 with probability p, else 1 / (1 - p).

    On the CPU an element takes 16 random bits of torch's generator, several elements at a time,
    instead of the 53 that ``bernoulli_`` takes one by one. What is kept is
    then p rounded to a multiple of 2**-16, so that the mean is 1 within 1e-5.

    Args:
        shape: of the mask.
        p: rate in [0, 1).
        like: gives type and device.
    """
    if like.device.type != "cpu":
        return (
            torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)
        )
    return _kept(shape, p).to(like.dtype).mul_(1 / (1 - p))


def _kept(shape: Sequence[int], p: float) -> Tensor:
    """Bool: true with probability 1 - p, rounded to a multiple of 2**-16."""
    n = torch.Size(shape).numel()
    dropped = min(round(p * _STEPS), _STEPS - 1)
    words = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return torch.ge(words.view(torch.int16)[:n], dropped - _STEPS // 2).view(torch.Size(shape))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout, as ``torch.nn.functional.dropout`` with masks from :func:`keep_mask`."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":  # one fused kernel
        return torch.nn.functional.dropout(x, p)
    return x * keep_mask(x.shape, p, x)


class _DroppedMatrix(torch.autograd.Function):
    """A whole matrix under one mask, which is kept as one byte an element."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, p: float) -> Tensor:
        ctx.value = 1 / (1 - p)
        kept = torch.empty(w.shape, dtype=torch.bool)
        dropped = torch.empty_like(w)
        for rows in _row_slices(w):
            kept[rows] = mask = _kept(w[rows].shape, p)
            dropped[rows] = mask.to(w.dtype).mul_(ctx.value).mul_(w[rows])
        ctx.save_for_backward(kept)
        return dropped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        dw = torch.empty_like(gradients[0])
        for rows in _row_slices(kept):
            scale = kept[rows].to(dw.dtype).mul_(ctx.value)
            torch.mul(scale, gradients[0][rows], out=dw[rows])
        return dw, None


def _row_slices(matrix: Tensor) -> list[slice]:
    """The rows of a matrix, a cacheful at a time.

    The mask of a slice takes whole words of four elements, as that of the whole would.
    """
    return [slice(begin, begin + _ROWS) for begin in range(0, len(matrix), _ROWS)]


def dropped_matrix(w: Tensor, p: float, training: bool) -> Tensor:
    """A whole parameter, [n, m], under dropout with rate ``p``; without ``training`` itself."""
    if not training or p == 0:
        return w
    if w.device.type != "cpu":
        return torch.nn.functional.dropout(w, p)
    dropped: Tensor = _DroppedMatrix.apply(w, p)  # type: ignore[no-untyped-call]
    return dropped
