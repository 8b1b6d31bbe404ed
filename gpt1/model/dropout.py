"""Dropout with masks that are drawn fast on a CPU.

Masks take most of the random numbers of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_VALUES = 1 << 16  # of the 16 random bits that each element of a mask takes on a CPU
_ROWS = 1024  # rows of a matrix that are processed at a time, and stay in the processor's cache


def keep_mask(shape: Sequence[int], p: float, like: Tensor) -> Tensor:
    """Return a random mask for inverted dropout: 0 with probability p, else 1 / (1 - p).

    On the CPU an element takes 16 random bits of torch's generator, and four elements are drawn at
    a time; ``bernoulli_`` would take 53 bits for one element at a time. The probability of 0 is
    then p rounded to a multiple of 2**-16, so that the mean of an element is 1 within 1e-5.

    Args:
        shape: the shape of the mask.
        p: the dropout rate, in [0, 1).
        like: a tensor whose type and device the mask gets.
    """
    if like.device.type != "cpu":
        return (
            torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)
        )
    return drawn_mask(shape, p).to(like.dtype).mul_(1 / (1 - p))


def drawn_mask(shape: Sequence[int], p: float) -> Tensor:
    """Return booleans that are true with probability 1 - p, rounded to a multiple of 2**-16."""
    n = torch.Size(shape).numel()
    dropped = min(round(p * _VALUES), _VALUES - 1)
    words = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return torch.ge(words.view(torch.int16)[:n], dropped - _VALUES // 2).view(torch.Size(shape))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Apply inverted dropout with a mask of :func:`keep_mask`.

    Args:
        x: any shape.
        p: the dropout rate, in [0, 1).
        training: False returns x itself.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":  # One fused kernel is faster.
        return torch.nn.functional.dropout(x, p)
    return x * keep_mask(x.shape, p, x)


class _DroppedMatrix(torch.autograd.Function):
    """Dropout of a whole matrix.

    The mask is kept for the backward pass; it takes one byte per element.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, p: float) -> Tensor:
        ctx.value = 1 / (1 - p)
        kept = torch.empty(w.shape, dtype=torch.bool)
        dropped = torch.empty_like(w)
        for rows in _row_slices(w):
            kept[rows] = mask = drawn_mask(w[rows].shape, p)
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
    """Return slices of the rows of a matrix that fit in the processor's cache.

    Four elements are drawn from one random number. A slice has a multiple of four elements, so the
    masks of the slices are those of the whole matrix.
    """
    return [slice(begin, begin + _ROWS) for begin in range(0, len(matrix), _ROWS)]


def dropped_matrix(w: Tensor, p: float, training: bool) -> Tensor:
    """Apply dropout with rate ``p`` to a whole parameter [n, m]; in evaluation return it."""
    if not training or p == 0:
        return w
    if w.device.type != "cpu":
        return torch.nn.functional.dropout(w, p)
    dropped: Tensor = _DroppedMatrix.apply(w, p)  # type: ignore[no-untyped-call]
    return dropped
