"""GPT-1 with a language-model head and a choice head (paper, sections 3.1 and 3.2).

Axes: B stories, C choices (2), N packed tokens, S blocks of T positions, D width, H heads,
K head size, R targets of the language model, V rows of ``we``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1.batches import Batch
from gpt1.dropout import dropout, dropped_matrix, keep_mask

LN_EPSILON = 1e-5
INIT_STD = 0.02

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "swish": F.silu,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and dropout rates of a :class:`DoubleHeadsModel`, under the original's names.

    Attributes:
        n_vocab: BPE pieces in the vocabulary.
        n_special: `_start_`, `_delimiter_`, `_classify_`: the three rows after them.
        n_ctx: position rows, the longest sequence the model takes, in tokens.
        n_embd: width D of the hidden states.
        n_head: attention heads H; divides ``n_embd``.
        n_layer: blocks.
        embd_pdrop, attn_pdrop, resid_pdrop, clf_pdrop: dropout rates in [0, 1).
        afn: activation of the MLP, ``gelu``, ``relu`` or ``swish``.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, a rate is
            outside [0, 1), or the activation is unknown.
    """

    n_vocab: int = 40478
    n_special: int = 3
    n_ctx: int = 512
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    clf_pdrop: float = 0.1
    afn: str = "gelu"

    def __post_init__(self) -> None:
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_layer < 0:
            raise ValueError(f"n_layer must not be negative, but is {self.n_layer}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide n_embd {self.n_embd}")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.afn not in ACTIVATIONS:
            raise ValueError(f"afn must be one of {', '.join(ACTIVATIONS)}, not {self.afn!r}")

    @property
    def n_rows(self) -> int:
        """V, rows of ``we``: vocabulary, special tokens, positions."""
        return self.n_vocab + self.n_special + self.n_ctx

    @property
    def clf_token(self) -> int:
        """Id of ``_classify_``, the last of the special tokens."""
        return self.n_vocab + self.n_special - 1


class Losses(NamedTuple):
    """What a batch costs, before anything is averaged over stories.

    total: the scalar to differentiate, mean(clf) + lm_coef * mean(lm).
    clf: [B] cross entropy of the choice.
    lm: [B, C] language-model loss of each sequence, or None where it is left out.
    """

    total: Tensor
    clf: Tensor
    lm: Tensor | None


class _Layout(NamedTuple):
    """How packed rows [N] stand in the padded grid that attention works on.

    visible [S, 1, T, T] is None for the causal mask alone; dense says that no slot is padding.
    """

    slots: Tensor
    grid: tuple[int, int]
    visible: Tensor | None
    dense: bool

    def pad(self, x: Tensor) -> Tensor:
        """[N, ...] to [S, T, ...], zeros on padding."""
        S, T = self.grid
        if not self.dense:
            x = x.new_zeros(S * T, *x.shape[1:]).index_copy(0, self.slots, x)
        return x.view(S, T, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """[S, T, D] to [N, D]."""
        x = x.reshape(-1, x.shape[-1])
        return x if self.dense else x.index_select(0, self.slots)


class _Readers(NamedTuple):
    """The only rows that a last layer is asked for: rows [S * Q] of [N], Q in each block.

    visible [S, 1, Q, T] says what each of them sees.
    """

    rows: Tensor
    visible: Tensor


class Conv1D(nn.Module):
    """``x @ w + b`` with w stored [n_in, n_out] (the original's ``conv1d`` of width 1)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_in, n_out))
        self.b = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, n_in] to [N, n_out]."""
        return torch.addmm(self.b, x, self.w)


class LayerNorm(nn.Module):
    """The original's ``norm``: gain ``g``, bias ``b``, epsilon 1e-5 under the root."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(n_embd))
        self.b = nn.Parameter(torch.empty(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        """Each row of [N, D] on its own."""
        return F.layer_norm(x, self.g.shape, self.g, self.b, LN_EPSILON)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """Each of [S, H, T, K]: weights over the visible places under dropout p, times v.

    Scores that are not visible count as -infinity here and as -1e9 in the original: the softmax
    of either is exactly 0 there. On the CPU torch's fused attention has slow dropout, and in
    bfloat16 it is slow altogether: two matrix products take half its time.
    """
    if q.device.type != "cpu" or (p == 0 and q.dtype != torch.bfloat16):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=p
        )
    T = q.shape[2]
    if visible is None:
        visible = torch.ones(T, T, dtype=torch.bool).tril()
    bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -math.inf)
    scores = (q * k.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    weights = scores.softmax(-1)
    if p:
        weights = weights * keep_mask(weights.shape, p, weights)
    a: Tensor = weights.to(v.dtype) @ v
    return a


class Attention(nn.Module):
    """Masked multi-head self-attention (the original's ``attn``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.resid_pdrop = config.resid_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        """Packed rows [N, D] to what each takes from the rows it may see, [N, D]."""
        qkv = layout.pad(self.c_attn(x))  # [N, 3D] -> [S, T, 3D]
        q, k, v = (self._split_heads(part) for part in qkv.chunk(3, dim=-1))
        a = _attend(q, k, v, layout.visible, self.attn_pdrop if self.training else 0.0)
        return self._project(layout.unpad(self._merge_heads(a)))

    def for_readers(self, x: Tensor, layout: _Layout, readers: _Readers) -> Tensor:
        """As :meth:`forward`, for the readers' rows only: [N, D] to [S * Q, D]."""
        D = x.shape[1]
        w, b = self.c_attn.w, self.c_attn.b
        q = torch.addmm(b[:D], x[readers.rows], w[:, :D]).view(layout.grid[0], -1, D)
        kv = layout.pad(torch.addmm(b[D:], x, w[:, D:]))  # [S, T, 2D]
        q, k, v = map(self._split_heads, (q, *kv.chunk(2, dim=-1)))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=readers.visible)
        return self._project(self._merge_heads(a).reshape(-1, D))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[S, T, D] -> [S, H, T, K]."""
        return x.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)

    def _merge_heads(self, x: Tensor) -> Tensor:
        """[S, H, T, K] -> [S, T, D]."""
        return x.transpose(1, 2).flatten(2)

    def _project(self, a: Tensor) -> Tensor:
        return dropout(self.c_proj(a), self.resid_pdrop, self.training)


class MLP(nn.Module):
    """The position-wise feed-forward part (the original's ``mlp``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.afn]
        self.resid_pdrop = config.resid_pdrop
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        hidden = self.activation(self.c_fc(x))
        return dropout(self.c_proj(hidden), self.resid_pdrop, self.training)


class Block(nn.Module):
    """One layer, normalised after each residual sum (the original's ``block``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.ln_1 = LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.ln_2 = LayerNorm(config.n_embd)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        """[N, D] to [N, D]."""
        return self._rest(x, self.attn(x, layout))

    def for_readers(self, x: Tensor, layout: _Layout, readers: _Readers) -> Tensor:
        """[N, D] to the readers' rows, [S * Q, D]."""
        return self._rest(x[readers.rows], self.attn.for_readers(x, layout, readers))

    def _rest(self, x: Tensor, a: Tensor) -> Tensor:
        n = self.ln_1(x + a)
        out: Tensor = self.ln_2(n + self.mlp(n))
        return out


class ChoiceHead(nn.Module):
    """One logit a choice from its ``_classify_`` state (the original's ``clf``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.clf_pdrop = config.clf_pdrop
        self.w = nn.Parameter(torch.empty(config.n_embd, 1))
        self.b = nn.Parameter(torch.empty(1))

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, D] to [B, C]; a story's choices share one dropout mask."""
        if self.training and self.clf_pdrop:
            h = h * keep_mask((h.shape[0], 1, h.shape[2]), self.clf_pdrop, h)
        return (h @ self.w + self.b).squeeze(-1)


def _layout_of(batch: Batch) -> _Layout:
    S, T = batch.grid
    return _Layout(batch.slots, batch.grid, batch.visible(), len(batch.slots) == S * T)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products on x are asked for: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _at_least_float32(x: Tensor) -> torch.dtype:
    """The type for sums and exponentials of values such as x."""
    return torch.promote_types(x.dtype, torch.float32)


class _WeightedCrossEntropy(torch.autograd.Function):
    """sum over rows of weight * cross entropy of softmax(h @ w.T), a few rows at a time.

    The logits of a batch are its largest tensor by far ([R, V]: half a gigabyte for 32
    stories), so they exist for one chunk of rows only, and their gradient is taken while
    they are there: the backward pass multiplies by one number.
    """

    ROWS = 512  # at most

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, w: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h [R, D], w [V, D], targets [R], weights [R] to (scalar, [R]).

        The three matrix products are taken in the type of ``h``, everything else in the type of
        ``weights``. The gradient of ``w`` is summed over the chunks at least in float32: the error
        of a sum in bfloat16 would grow with the number of chunks.
        """
        R = h.shape[0]
        matrix = w.to(h.dtype)  # w itself if it has that type
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ce = torch.empty_like(weights)
        dh = torch.empty_like(h) if with_gradient else None
        dw = torch.zeros_like(w, dtype=_at_least_float32(w)) if with_gradient else None
        # One buffer for all chunks: fresh memory of this size costs as much as filling it.
        n_chunks = max(1, math.ceil(R / _WeightedCrossEntropy.ROWS))
        size = math.ceil(R / n_chunks)  # even ones: a short last product would be a slow one
        buffer = h.new_empty(size, w.shape[0])
        is_mixed = dw is not None and dw.dtype != h.dtype
        product = torch.empty_like(matrix) if is_mixed else None
        for begin in range(0, R, size or 1):
            rows = slice(begin, min(begin + size, R))
            target = targets[rows, None]
            logits = torch.mm(h[rows], matrix.T, out=buffer[: rows.stop - begin])
            z = logits.to(weights.dtype)  # the buffer itself unless that is bfloat16
            z_target = z.gather(1, target)
            highest = z.amax(-1, keepdim=True)
            p = z.sub_(highest).exp_()
            total = p.sum(-1, keepdim=True)
            ce[rows] = (highest + total.log() - z_target).squeeze(1)
            if dh is not None and dw is not None:
                weight = weights[rows, None]
                d = p.mul_(weight / total).scatter_add_(1, target, -weight).to(h.dtype)
                torch.mm(d, matrix, out=dh[rows])
                if product is None:
                    dw.addmm_(d.T, h[rows])
                else:
                    dw += torch.mm(d.T, h[rows], out=product)
        ctx.save_for_backward(dh, dw)
        ctx.w_dtype = w.dtype
        ctx.mark_non_differentiable(ce)
        return (ce * weights).sum(), ce

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients that the forward pass took, times that of the sum."""
        dh, dw = ctx.saved_tensors
        return dh * grads[0], (dw * grads[0]).to(ctx.w_dtype), None, None


class DoubleHeadsModel(nn.Module):
    """The Transformer, a tied language-model head and a choice head over packed batches.

    ``we`` [V, D] holds token, special and position rows in one matrix, serves as the input
    embedding and as the output matrix, and its softmax runs over all V rows.

    Args:
        config: sizes and dropout rates.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.we = nn.Parameter(torch.empty(config.n_rows, config.n_embd))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.clf = ChoiceHead(config)

    @torch.no_grad()
    def init_parameters(self, generator: torch.Generator | None = None) -> None:
        """N(0, 0.02) for matrices, 0 for biases, 1 and 0 for layer norms (FIDELITY, 12)."""
        for name, parameter in self.named_parameters():
            if name.endswith(".g"):
                parameter.fill_(1)
            elif name.endswith(".b"):
                parameter.zero_()
            else:
                parameter.normal_(0, INIT_STD, generator=generator)

    def compile_layers(self) -> None:
        """Let torch compile the layers, once for all lengths; names of parameters stay."""
        for block in self.h:
            block.compile(dynamic=True)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Top-layer states of all tokens of a batch, [N, D]."""
        return self._transform(self._dropped_we(), batch)

    def choice_logits(self, batch: Batch) -> Tensor:
        """One logit a choice, [B, C]; the last layer is computed where it is read only."""
        if self.training or not self.h:
            return self._choose(self.hidden_states(batch), batch)
        *lower, last = cast("list[Block]", list(self.h))
        x, layout = self._embed(self.we, batch), _layout_of(batch)
        for block in lower:
            x = block(x, layout)
        readers = _Readers(batch.clf_rows.flatten(), batch.visible_to_clf())
        h = last.for_readers(x, layout, readers)
        logits: Tensor = self.clf(h.view(*batch.clf_rows.shape, -1))
        return logits

    def losses(self, batch: Batch, lm_coef: float) -> Losses:
        """The training loss and its parts (FIDELITY, 8 to 10).

        Args:
            batch: with labels.
            lm_coef: weight of the language-model loss; 0 leaves it out altogether.
        """
        if batch.labels is None:
            raise ValueError("a loss needs a batch with labels")
        we = self._dropped_we()
        h = self._transform(we, batch)
        logits = self._choose(h, batch).to(_at_least_float32(h))
        clf = F.cross_entropy(logits, batch.labels, reduction="none")
        total = clf.mean()
        if not lm_coef:
            return Losses(total, clf, None)
        mean_lm, lm = self._lm_losses(h, we, batch)
        return Losses(total + lm_coef * mean_lm, clf, lm)

    def forward(self, batch: Batch, lm_coef: float = 0.5) -> Losses:
        """:meth:`losses`."""
        return self.losses(batch, lm_coef)

    def _dropped_we(self) -> Tensor:
        """``we`` under this step's one mask, which input and output share."""
        return dropped_matrix(self.we, self.config.embd_pdrop, self.training)

    def _embed(self, we: Tensor, batch: Batch) -> Tensor:
        rows = torch.stack([batch.tokens, batch.positions])  # one look-up has one gradient of we
        return F.embedding(rows, we).sum(0).to(_matmul_dtype(we))

    def _transform(self, we: Tensor, batch: Batch) -> Tensor:
        x, layout = self._embed(we, batch), _layout_of(batch)
        for block in self.h:
            x = block(x, layout)
        return x

    def _choose(self, h: Tensor, batch: Batch) -> Tensor:
        logits: Tensor = self.clf(h[batch.clf_rows])
        return logits

    def _lm_losses(self, h: Tensor, we: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean over all sequences (differentiable), and each sequence's loss [B, C]."""
        B, C = batch.clf_rows.shape
        weights = batch.lm_weights.sum(1) / (B * C)
        dtype = _matmul_dtype(h)
        mean, ce = _WeightedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            h[batch.lm_rows].to(dtype),
            we,
            batch.lm_targets,
            weights.to(_at_least_float32(h)),
        )
        lm = ce.new_zeros(B, C).index_add(0, batch.lm_story, ce[:, None] * batch.lm_weights)
        return mean, lm
