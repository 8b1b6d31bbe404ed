"""Attention contexts: everything that differs between the uses of a layer.

There is one layer, :class:`gpt1.model.transformer.Block`. Training, prediction, generation and
attention maps each pass it a context, which decides which rows of the layer's output are computed
and which tokens each of these rows attends to.

Axes: N packed tokens, M rows of a layer's output that are needed, G rows of T positions in the
padded grid that attention works on, Q queries per grid row, D width, H heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1.batches.packing import Batch
from gpt1.model.dropout import drawn_mask, keep_mask


class Attend(Protocol):
    """The attention context of one layer."""

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows of x [N, D] for which the layer's output is needed, [M, D].

        They are all rows unless a context overrides this method.
        """
        return x

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        """Return the attention of each query: the mean of the values it sees, by attention weights.

        Args:
            q: [M, H, K], the queries of the rows that :meth:`rows` selects.
            k, v: [N, H, K], the keys and values of all rows.
            p: dropout rate of the attention weights.

        Returns:
            [M, D], the concatenated heads.
        """
        ...


def heads_first(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshape [G * T, H, K] to [G, H, T, K]; one of the two numbers in ``grid`` may be -1."""
    return x.view(*grid, *x.shape[1:]).transpose(1, 2)


def heads_last(a: Tensor) -> Tensor:
    """Reshape [G, H, T, K] to [G * T, D]."""
    return a.transpose(1, 2).flatten(2).flatten(0, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """Return the mean of the values, weighted by the attention weights under dropout.

    On the CPU torch's fused attention is slow with dropout, and in bfloat16 it is slow in any
    case. Two matrix products then take half the time and are used instead.

    Args:
        q: [G, H, Q, K].
        k, v: [G, H, T, K].
        visible: bool [G, 1, Q, T]; None for the causal mask, with Q = T.
        p: dropout rate of the weights.

    Returns:
        [G, H, Q, K].
    """
    if q.device.type != "cpu" or (p == 0 and q.dtype != torch.bfloat16):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=p
        )
    weights = attention_weights(q, k, visible)
    if p:
        weights = weights * keep_mask(weights.shape, p, weights)
    return torch.matmul(weights.to(v.dtype), v)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) over the visible positions (the original's ``_attn``).

    The score of a position that is not visible is -infinity here and -1e9 in the original; the
    softmax of either is exactly 0.

    Args:
        q: [G, H, Q, K].
        k: [G, H, T, K].
        visible: bool [G, 1, Q, T]; None for the causal mask, with Q = T.

    Returns:
        [G, H, Q, T].
    """
    if visible is None:
        T = q.shape[2]
        visible = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -math.inf)
    scores = (q * k.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return torch.softmax(scores, -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """Return :func:`attention`, on a CPU in less time and memory under the causal mask.

    The dropout masks are the same, so that the results differ by rounding alone.
    """
    is_fused = q.device.type != "cpu" or (p == 0 and q.dtype != torch.bfloat16)
    # torch.compile makes its own kernels of attention(), but cannot look into the function below.
    if is_fused or visible is not None or torch.compiler.is_compiling():
        return attention(q, k, v, visible, p)
    found: Tensor = _CausalAttention.apply(q, k, v, p)  # type: ignore[no-untyped-call]
    return found


class _CausalAttention(torch.autograd.Function):
    """Causal attention, for a few queries of one sequence at a time.

    A query sees half of the positions on average, and nothing is computed for most of the others.
    The attention weights, [G, H, T, T], would be the largest tensors of a training step on long
    sequences. Therefore the backward pass computes them again from the queries and the keys, and
    only the dropout mask is kept, with one byte per weight.
    """

    QUERIES = 128

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        """Return the attention of queries [G, H, T, K], with the arguments of :func:`attention`."""
        G, H, T, K = q.shape
        mask = drawn_mask((G, H, T, T), p) if p else None
        out = q.new_empty(G, T, H, K).transpose(1, 2)  # heads_last need not copy it
        for g, rows, seen in _query_blocks(G, T):
            weights = _weights_of_last(q[g, :, rows], k[g, :, seen])
            if mask is not None:
                weights = weights * mask[g, :, rows, seen]
            out[g, :, rows] = torch.bmm(weights.to(v.dtype), v[g, :, seen])
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = 1 / (1 - p)
        return out.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of queries, keys and values."""
        q, k, v, mask = ctx.saved_tensors
        G, _, T, K = q.shape
        d_out = grads[0] * ctx.scale
        dtype = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v))
        for g, rows, seen in _query_blocks(G, T):
            query, key, value, d = q[g, :, rows], k[g, :, seen], v[g, :, seen], d_out[g, :, rows]
            weights = _weights_of_last(query, key)
            d_weights = torch.bmm(d, value.transpose(1, 2)).to(dtype)
            dropped = weights
            if mask is not None:
                kept = mask[g, :, rows, seen].to(dtype)
                dropped = weights * kept
                d_weights.mul_(kept)
            ds = torch._softmax_backward_data(d_weights, weights, -1, dtype).to(q.dtype)
            dv[g, :, seen].add_(torch.bmm(dropped.to(q.dtype).transpose(1, 2), d))
            dq[g, :, rows] = torch.bmm(ds, key)
            dk[g, :, seen].add_(torch.bmm(ds.transpose(1, 2), query))
        scale = K**-0.5
        return dq.mul_(scale).to(q.dtype), dk.mul_(scale).to(q.dtype), dv.to(q.dtype), None


def _query_blocks(G: int, T: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield a sequence, some of its queries, and the positions that the last one of them sees."""
    size = _CausalAttention.QUERIES
    for g in range(G):
        for begin in range(0, T, size):
            end = min(begin + size, T)
            yield g, slice(begin, end), slice(end)


def _weights_of_last(q: Tensor, k: Tensor) -> Tensor:
    """Return the causal attention weights [H, Q, T] of the last Q of T positions.

    Args:
        q: [H, Q, K].
        k: [H, T, K].
    """
    Q = q.shape[1]
    scores = torch.bmm(q * k.shape[-1] ** -0.5, k.transpose(1, 2))
    scores[:, :, -Q:].add_(torch.full((Q, Q), -math.inf, dtype=q.dtype).triu_(1))
    return torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Packed(Attend):
    """Whole sequences: each token sees itself and the tokens before it in its grid row.

    ``Packed((B, T))`` is the context of B plain sequences of T tokens without padding.

    Attributes:
        grid: (G, T).
        slots: int64 [N], the place of each token in the flattened grid; None if the N tokens
            fill the grid in order.
        visible: bool [G, 1, T, T], which positions each position sees; None for the causal mask.
        attention: the function that is called on the grid, with the arguments and the result of
            :func:`attention`.
    """

    grid: tuple[int, int]
    slots: Tensor | None = None
    visible: Tensor | None = None
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor] = attention

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """Return the context of a batch."""
        is_full = len(batch.slots) == math.prod(batch.grid)
        return cls(batch.grid, None if is_full else batch.slots, batch.visible())

    def pad(self, x: Tensor) -> Tensor:
        """Put [N, H, K] into the grid, [G, H, T, K], with zeros on padding."""
        if self.slots is not None:
            x = x.new_zeros(math.prod(self.grid), *x.shape[1:]).index_copy(0, self.slots, x)
        return heads_first(x, self.grid)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        """Return the attention of every row; see :meth:`Attend.__call__`, here with M = N."""
        a = heads_last(self.attention(self.pad(q), self.pad(k), self.pad(v), self.visible, p))
        return a if self.slots is None else a.index_select(0, self.slots)


@dataclass(frozen=True, eq=False)
class ClassifyOnly(Attend):
    """The last layer of a prediction, of which only the ``_classify_`` rows are needed.

    Attributes:
        packed: the context of the other layers.
        classify: int64 [M], the ``_classify_`` rows, Q of them per grid row.
        visible: bool [G, 1, Q, T], the positions that each of these rows sees.
    """

    packed: Packed
    classify: Tensor
    visible: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """Return the ``_classify_`` rows of x [N, D], [M, D]."""
        return x[self.classify]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        """Return the attention of the ``_classify_`` rows, without dropout.

        See :meth:`Attend.__call__`, here with M = G * Q.
        """
        q = heads_first(q, (self.packed.grid[0], -1))
        k, v = self.packed.pad(k), self.packed.pad(v)
        return heads_last(F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible))
