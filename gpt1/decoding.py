"""Next-token logits one step at a time: each token is computed once, keys and values are kept.

Axes: B prompts, R rows of a cache (R / B copies of each prompt), Q tokens in a call, T cache slots,
L layers, D width, H heads, K head size, V pieces of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1.model import LN_EPSILON, Block, DoubleHeadsModel, LayerNorm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Cache:
    """Keys and values of all layers. Prompts of a batch end in one slot: padding is on the left.

    Attributes:
        keys, values: [L, R, H, T, K].
        start: [R], the first slot that is not padding.
        n_prompt: slots of the longest prompt.
        length: slots in use.
    """

    def __init__(self, shape: tuple[int, ...], start: Tensor) -> None:
        self.keys, self.values = (torch.empty(shape, device=start.device) for _ in range(2))
        self.start = start
        self.n_prompt = self.length = 0
        self._is_padded = bool(start.any())

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, H, Q, K] after the slots in use, once for each copy of a prompt.

        Returns:
            All keys and values of the layer, [R, H, slots, K].
        """
        slots = slice(self.length, self.length + k.shape[2])
        for cache, new in ((self.keys, k), (self.values, v)):
            copies = cache[layer].view(len(new), -1, *cache.shape[2:])  # [B, R / B, H, T, K]
            copies[:, :, :, slots] = new[:, None]
        return self.keys[layer, :, :, : slots.stop], self.values[layer, :, :, : slots.stop]

    def visible(self) -> Tensor | None:
        """[R, 1, 1, T so far + 1], what the next token sees, or None if that is everything."""
        if not self._is_padded:
            return None
        slots = torch.arange(self.length + 1, device=self.start.device)
        return (slots >= self.start[:, None])[:, None, None]

    @torch.inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row ``rows[i]`` holds; both are copies of one prompt."""
        own = slice(self.n_prompt, self.length)  # the prompt's slots are the same in all copies
        for cache in (self.keys, self.values):
            cache[:, :, :, own] = cache[:, rows, :, own]


class Decoder:
    """A model made ready for generation: what it computes is that of its language-model head.

    The softmax of the model runs over special and position rows of ``we``, too; here they have
    no logits, so that they are never produced. After changing the model make a new decoder.

    Args:
        model: any mode; there is no dropout here.
        precision: ``fp32``, or ``bf16`` for products with parameters in bfloat16; attention,
            sums and norms stay in float32.

    Raises:
        ValueError: another precision.
    """

    def __init__(self, model: DoubleHeadsModel, precision: str = "fp32") -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
        self.config = model.config
        self._dtype = DTYPES[precision]
        self._we = model.we.detach().float()
        self._head = _Linear(self._we[: self.config.n_vocab].T, None, self._dtype)
        self._layers = [_Layer(cast(Block, block), self._dtype) for block in model.h]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._we.device

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[Sequence[int]], n_new: int, copies: int = 1
    ) -> tuple[Cache, Tensor]:
        """Read prompts into a new cache.

        Args:
            prompts: B lists of token ids, special tokens allowed, none empty.
            n_new: steps that the cache has room for.
            copies: rows of the cache for each prompt, one after another.

        Returns:
            The cache, and the logits after each row's prompt, [R, V], float32.

        Raises:
            ValueError: a prompt is empty, has no room for ``n_new`` tokens in ``n_ctx``, or holds
                an id that is neither a piece's nor a special token's.
        """
        config = self.config
        lengths = [len(prompt) for prompt in prompts]
        Q = max(lengths)
        if min(lengths) < 1 or Q + n_new > config.n_ctx:
            raise ValueError(f"{min(lengths)} to {Q} + {n_new} tokens, n_ctx is {config.n_ctx}")
        if max(map(max, prompts)) >= config.n_vocab + config.n_special:
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
        """Append one token [R] to each row; the logits after it, [R, V], float32."""
        return self._forward(tokens[:, None], cache.start, cache, cache.visible())

    def _forward(self, ids: Tensor, start: Tensor, cache: Cache, visible: Tensor | None) -> Tensor:
        """Tokens [B, Q] for the next slots to the logits after the last of them, [B, V]."""
        slots = torch.arange(cache.length, cache.length + ids.shape[1], device=ids.device)
        positions = (slots - start[:, None]).clamp(min=0)
        first_position = self.config.n_vocab + self.config.n_special
        x = F.embedding(ids, self._we) + F.embedding(first_position + positions, self._we)
        for index, layer in enumerate(self._layers):
            x = layer(x, index, cache, visible)
        cache.length += ids.shape[1]
        return self._head(x[:, -1])


def _visible_in_prompts(start: Tensor, Q: int) -> Tensor:
    """[B, 1, Q, Q]: what each slot of the prompts sees; padding sees itself, and is not seen."""
    slots = torch.arange(Q, device=start.device)
    causal = slots <= slots[:, None]
    seen = (slots >= start[:, None])[:, None, None]  # [B, 1, 1, Q]
    return causal & seen | (slots == slots[:, None])


class _Layer:
    """One :class:`gpt1.model.Block` over a cache."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attn, mlp = block.attn, block.mlp
        self.n_head = attn.n_head
        self.activation = mlp.activation
        self.attn_in, self.attn_out, self.mlp_in, self.mlp_out = (
            _Linear(conv.w.detach(), conv.b.detach(), dtype)
            for conv in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)
        )
        self.norm_1, self.norm_2 = _Norm(block.ln_1), _Norm(block.ln_2)

    def __call__(self, x: Tensor, index: int, cache: Cache, visible: Tensor | None) -> Tensor:
        """[B, Q, D] to [B, Q, D]; ``visible`` is None, or [B, 1, Q, slots]."""
        qkv = self.attn_in(x).view(*x.shape[:2], 3, self.n_head, -1)  # [B, Q, 3, H, K]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, Q, K]
        all_k, all_v = cache.append(index, k, v)
        if cache.length > 0:  # else these are the prompts, in the cache perhaps several times
            k, v = all_k, all_v
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        n = self.norm_1(x + self.attn_out(a.transpose(1, 2).flatten(2)))
        return self.norm_2(n + self.mlp_out(self.activation(self.mlp_in(n))))


class _Norm:
    """A :class:`gpt1.model.LayerNorm`."""

    def __init__(self, norm: LayerNorm) -> None:
        self.g, self.b = norm.g.detach().float(), norm.b.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, LN_EPSILON)


class _Linear:
    """``x @ w + b`` for any [..., n_in] in float32; the product is done in ``dtype``.

    With few rows the time goes into reading w, and for that the CPU's usual routine is slow in
    either layout: oneDNN's, with a copy of w in its own layout, reads at the memory's speed.
    """

    def __init__(self, w: Tensor, b: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        w = w.to(dtype)
        packed = _pack(w)
        self.is_packed = packed is not None
        self.w = w.T if packed is None else packed
        self.b = None if b is None else b.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.is_packed:
            x = torch.ops.mkldnn._linear_pointwise(x, self.w, self.b, "none", [], "")
        else:
            x = F.linear(x, self.w, self.b)
        return x.float()


def _pack(w: Tensor) -> Tensor | None:
    """w [n_in, n_out] in oneDNN's layout, None where torch or the machine has none for it."""
    if w.device.type != "cpu":
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(w.T)
    except (AttributeError, RuntimeError):  # a torch or a machine that cannot, or not this type
        return None
    return packed
