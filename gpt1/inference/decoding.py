"""Next-token logits one generation step at a time, with a cache of keys and values.

Axes: B prompts, R rows of a cache (R / B copies of each prompt), Q tokens per prompt in a call,
T cache slots, L layers, D width, H heads, K head size, n_vocab tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1.model.contexts import Attend, heads_first, heads_last
from gpt1.model.transformer import DoubleHeadsModel, with_products

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Cache:
    """The keys and values of all layers for the tokens so far.

    All prompts end in the same slot: shorter prompts have padding on the left.

    Args:
        shape: the sizes (L, R, H, T, K).
        start: int64 [R], the first slot of each row that is not padding.

    Attributes:
        keys, values: [L, R, H, T, K].
        layers: for each layer, views of its keys and values.
        start: int64 [R], the first slot of each row that is not padding.
        n_prompt: number of slots of the longest prompt.
        length: number of slots in use.
    """

    def __init__(self, shape: tuple[int, ...], start: Tensor) -> None:
        self.keys, self.values = (torch.empty(shape, device=start.device) for _ in range(2))
        self.layers = list(zip(self.keys, self.values, strict=True))
        self.start = start
        self.n_prompt = self.length = 0
        self._is_padded = bool(start.any())

    def visible(self) -> Tensor | None:
        """Return which slots the next token of each row attends to.

        Returns:
            bool [R, 1, 1, length + 1]; None if each row attends to all slots.
        """
        if not self._is_padded:
            return None
        slots = torch.arange(self.length + 1, device=self.start.device)
        return (slots >= self.start[:, None])[:, None, None]

    @torch.inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Replace each row i by row ``rows[i]``, which continues the same prompt.

        Args:
            rows: int64 [R], numbers of rows.
        """
        own = slice(
            self.n_prompt, self.length
        )  # All copies of a prompt have the same prompt slots.
        for cache in (self.keys, self.values):
            cache[:, :, :, own] = cache[:, rows, :, own]


class Decoder:
    """A copy of a model for generation, which computes the logits of the language-model head.

    In training the softmax runs over the special and position rows of ``we`` too. A decoder gives
    them no logits, so that they are never generated. A decoder does not follow later changes of the
    model's parameters.

    Args:
        model: a model in training or evaluation mode; there is no dropout here.
        precision: ``fp32``, or ``bf16`` for products with parameters in bfloat16; attention,
            sums and norms stay in float32.

    Raises:
        ValueError: ``precision`` has another value.
    """

    def __init__(self, model: DoubleHeadsModel, precision: str = "fp32") -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
        dtype = DTYPES[precision]
        self.config = model.config
        prepared = with_products(model, lambda conv: PreparedLinear(conv.w, conv.b, dtype))
        self._model = prepared.float().eval()
        self._head = PreparedLinear(self._model.we[: self.config.n_vocab].T, None, dtype)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._model.we.device

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[Sequence[int]], n_new: int, copies: int = 1
    ) -> tuple[Cache, Tensor]:
        """Compute the keys and values of prompts, in a new cache.

        Args:
            prompts: B lists of token ids, none of them empty. Special tokens are allowed.
            n_new: number of generation steps for which the cache has slots.
            copies: number of rows per prompt, which follow one another in the cache.

        Returns:
            The cache, and the logits after the prompt of each row, float32 [R, n_vocab].

        Raises:
            ValueError: a prompt is empty, a prompt and ``n_new`` tokens are longer than ``n_ctx``,
                or an id is not the id of a token.
        """
        config = self.config
        lengths = [len(prompt) for prompt in prompts]
        Q = max(lengths)
        if min(lengths) < 1 or Q + n_new > config.n_ctx:
            raise ValueError(f"{min(lengths)} to {Q} + {n_new} tokens, n_ctx is {config.n_ctx}")
        if max(map(max, prompts)) >= config.first_position:
            raise ValueError(f"{max(map(max, prompts))} is the id of a position, not of a token")
        ids = torch.tensor([[0] * (Q - len(prompt)) + list(prompt) for prompt in prompts])
        start = (Q - torch.tensor(lengths)).to(self.device)
        rows, H = len(prompts) * copies, config.n_head
        shape = (config.n_layer, rows, H, Q + n_new, config.n_embd // H)
        cache = Cache(shape, start.repeat_interleave(copies))
        logits = self._forward(ids.to(self.device), start, cache, _visible_in_prompts(start, Q))
        cache.n_prompt = Q
        return cache, logits.repeat_interleave(copies, 0)

    @torch.inference_mode()
    def step(self, cache: Cache, tokens: Tensor) -> Tensor:
        """Append a token to each row, and return the logits after it, float32 [R, n_vocab].

        Args:
            cache: the cache, which is changed.
            tokens: int64 [R].
        """
        return self._forward(tokens[:, None], cache.start, cache, cache.visible())

    def _forward(self, ids: Tensor, start: Tensor, cache: Cache, visible: Tensor | None) -> Tensor:
        """Compute tokens [B, Q] in the next slots; return the logits after the last one.

        Args:
            ids: int64 [B, Q], the token ids.
            start: int64 [B], the first slot of each row that is not padding.
            cache: the cache, to which keys and values are written.
            visible: which slots each token attends to; see :class:`Cached`.

        Returns:
            float32 [B, n_vocab].
        """
        B, Q = ids.shape
        slots = torch.arange(cache.length, cache.length + Q, device=ids.device)
        positions = self.config.first_position + (slots - start[:, None]).clamp(min=0)
        x = self._model.embed(self._model.we, ids.flatten(), positions.flatten())
        contexts = [Cached(*layer, cache.length, (B, Q), visible) for layer in cache.layers]
        x = self._model.transform(x, contexts)
        cache.length += Q
        return self._head(x.view(B, Q, -1)[:, -1])


def _visible_in_prompts(start: Tensor, Q: int) -> Tensor:
    """Return which slots each slot of the prompts attends to, bool [B, 1, Q, Q].

    No token attends to padding. A slot of padding attends to itself alone, because the softmax
    needs at least one slot.
    """
    slots = torch.arange(Q, device=start.device)
    causal = slots <= slots[:, None]
    seen = (slots >= start[:, None])[:, None, None]  # [B, 1, 1, Q]
    return causal & seen | (slots == slots[:, None])


@dataclass(eq=False)
class Cached(Attend):
    """The attention of one layer in generation.

    New tokens attend to the tokens in the cache and, as ``visible`` allows, to one another.

    Attributes:
        keys, values: [R, H, T, K], the layer's part of the cache, to which new keys and values
            are written.
        length: number of slots in use before the call.
        grid: the sizes (B, Q). B is R, except that each prompt is computed once and then copied to
            R / B rows of the cache.
        visible: bool [B, 1, Q, slots], which slots each new token attends to; None for all.
    """

    keys: Tensor
    values: Tensor
    length: int
    grid: tuple[int, int]
    visible: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        """Return the attention of the new tokens, without dropout.

        See :meth:`gpt1.model.contexts.Attend.__call__`, here with N = M = B * Q.
        """
        q, k, v = (heads_first(part, self.grid) for part in (q, k, v))
        end = self.length + self.grid[1]
        copies = len(self.keys) // self.grid[0]
        for cache, new in ((self.keys, k), (self.values, v)):
            all_rows = new if copies == 1 else new.repeat_interleave(copies, 0)
            cache[:, :, self.length : end] = all_rows
        if self.length > 0:
            k, v = self.keys[:, :, :end], self.values[:, :, :end]
        return heads_last(F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible))


class PreparedLinear:
    """``x @ w + b`` for rows x in float32; the product is computed in ``dtype``.

    With few rows, most of the time is spent reading w from memory, and torch's usual product on a
    CPU reads it slowly. oneDNN, given a copy of w in oneDNN's own layout, reads it at the speed of
    the memory.

    Args:
        w: [n_in, n_out].
        b: [n_out], or None.
        dtype: the type of the product.
    """

    def __init__(self, w: Tensor, b: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        w = w.detach().to(dtype)
        packed = _pack(w)
        self.is_packed = packed is not None
        self.w = w.T if packed is None else packed
        self.b = None if b is None else b.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map float32 [N, n_in] to float32 [N, n_out]."""
        return self.product(x.to(self.dtype)).float()

    def product(self, x: Tensor) -> Tensor:
        """Map [N, n_in] to [N, n_out], both of type ``dtype``."""
        if self.is_packed:
            made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.w, self.b, "none", [], "")
            return made
        return F.linear(x, self.w, self.b)


def _pack(w: Tensor) -> Tensor | None:
    """Return w [n_in, n_out] in oneDNN's layout; None if torch or the processor lacks oneDNN."""
    if w.device.type != "cpu":
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(w.T)
    except (AttributeError, RuntimeError):  # torch or the processor lacks oneDNN, or the type in it
        return None
    return packed
