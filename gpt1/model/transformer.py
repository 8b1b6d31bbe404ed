"""GPT-1: the Transformer, its language-model head and its classifier (paper, 3.1 and 3.2).

Axes: B examples, S sequences per example (the choices, or the orders of two texts), C classes or
choices, T positions, N packed tokens, M rows of a layer's output that are needed, D width, H heads,
K head size, R targets of the language model, V rows of ``we``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt1.batches.packing import Batch
from gpt1.model.contexts import Attend, ClassifyOnly, Packed, causal_attention
from gpt1.model.dropout import dropout, dropped_matrix, keep_mask
from gpt1.text_utils.special import N_SPECIAL

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
        n_vocab: number of tokens in the vocabulary.
        n_special: number of special tokens after the vocabulary: 3 (`_start_`, `_delimiter_` and
            `_classify_`), or 0 for a language model without them, which has no ``clf_token``.
        n_ctx: number of positions, which is the maximum tokens per sequence.
        n_embd: width D of the hidden states.
        n_head: number of attention heads H; must divide ``n_embd``.
        n_layer: number of layers.
        embd_pdrop: dropout rate of ``we``.
        attn_pdrop: dropout rate of the attention weights.
        resid_pdrop: dropout rate of what each half of a layer adds to its input.
        clf_pdrop: dropout rate of the classifier's input.
        afn: activation of the MLP: ``gelu``, ``relu`` or ``swish``.
        n_classes: outputs of the classifier: 1 for a logit per sequence (choices), or the number of
            classes.

    Raises:
        ValueError: a size is not positive, ``n_special`` is neither 3 nor 0, the heads do not
            divide the width, a rate is outside [0, 1), or the activation is unknown.
    """

    n_vocab: int = 40478
    n_special: int = N_SPECIAL
    n_ctx: int = 512
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    clf_pdrop: float = 0.1
    afn: str = "gelu"
    n_classes: int = 1

    def __post_init__(self) -> None:
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_special not in (0, N_SPECIAL):
            raise ValueError(f"n_special must be {N_SPECIAL} or 0, not {self.n_special}")
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
        """V, the number of rows of ``we``: vocabulary, special tokens, positions."""
        return self.first_position + self.n_ctx

    @property
    def first_position(self) -> int:
        """The row of ``we`` for position 0, which follows the rows of all tokens."""
        return self.n_vocab + self.n_special

    @property
    def clf_token(self) -> int:
        """The id of ``_classify_``, the last of the special tokens.

        Raises:
            ValueError: the model has no special tokens.
        """
        if not self.n_special:
            raise ValueError("n_special is 0: the model has no _classify_ token")
        return self.first_position - 1


class Losses(NamedTuple):
    """The losses of a batch, in nats.

    total: the scalar to differentiate, mean(clf) + lm_coef * mean(lm).
    clf: [B], the cross entropy of the classifier in each example.
    lm: [B, S], the language-model loss of each sequence, 0 where an answer is missing; None if it
        was not computed.
    """

    total: Tensor
    clf: Tensor
    lm: Tensor | None


class Conv1D(nn.Module):
    """``x @ w + b`` with w stored [n_in, n_out] (the original's ``conv1d`` of width 1)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_in, n_out))
        self.b = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, n_in] to [N, n_out]."""
        return torch.addmm(self.b, x, self.w)

    def columns(self, x: Tensor, columns: slice) -> Tensor:
        """Map [N, n_in] to the given columns of the result."""
        return torch.addmm(self.b[columns], x, self.w[:, columns])


class LayerNorm(nn.Module):
    """The original's ``norm``: gain ``g``, bias ``b``, epsilon 1e-5 under the root."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(n_embd))
        self.b = nn.Parameter(torch.empty(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each row of [N, D]."""
        g = self.g
        return F.layer_norm(x, g.shape, g, self.b, LN_EPSILON)


class Attention(nn.Module):
    """Masked multi-head self-attention (the original's ``attn``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.resid_pdrop = config.resid_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Map x [N, D] to the attention output of the rows that the context needs, [M, D]."""
        a = attend(*self._qkv(x, attend), self.attn_pdrop if self.training else 0.0)
        return dropout(self.c_proj(a), self.resid_pdrop, self.training)

    def _qkv(self, x: Tensor, attend: Attend) -> tuple[Tensor, Tensor, Tensor]:
        """Return the needed rows' queries [M, H, K], and all rows' keys and values [N, H, K]."""
        N, D = x.shape
        needed = attend.rows(x)
        if needed is not x and isinstance(self.c_attn, Conv1D):  # with_products may replace it
            q = self.c_attn.columns(needed, slice(D))
            kv = self.c_attn.columns(x, slice(D, None))
            k, v = kv.view(N, 2, self.n_head, -1).unbind(1)
            return q.view(-1, *k.shape[1:]), k, v
        q, k, v = self.c_attn(x).view(N, 3, self.n_head, -1).unbind(1)
        return attend.rows(q), k, v


class MLP(nn.Module):
    """The position-wise feed-forward network (the original's ``mlp``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.afn]
        self.resid_pdrop = config.resid_pdrop
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, D] to [N, D]."""
        hidden = self.activation(self.c_fc(x))
        return dropout(self.c_proj(hidden), self.resid_pdrop, self.training)


class Block(nn.Module):
    """One layer, with a layer norm after each residual sum (the original's ``block``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.ln_1 = LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.ln_2 = LayerNorm(config.n_embd)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Map x [N, D] to the output of the rows that the context needs, [M, D]."""
        n = self.ln_1(attend.rows(x) + self.attn(x, attend))
        out: Tensor = self.ln_2(n + self.mlp(n))
        return out


class Classifier(nn.Module):
    """The linear layer on ``_classify_`` states (the original's ``clf``; paper, 3.2 and 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.clf_pdrop = config.clf_pdrop
        self.w = nn.Parameter(torch.empty(config.n_embd, config.n_classes))
        self.b = nn.Parameter(torch.empty(config.n_classes))

    def forward(self, h: Tensor) -> Tensor:
        """Map states [B, S, D] to logits: [B, S] with one output, [B, C] with C classes.

        One output reads each sequence. Classes read the sum of the states of the sequences. The
        sequences of an example share one dropout mask.
        """
        if self.w.shape[1] > 1:
            h = h.sum(1, keepdim=True)
        if self.training and self.clf_pdrop:
            h = h * keep_mask((h.shape[0], 1, h.shape[2]), self.clf_pdrop, h)
        logits = h @ self.w + self.b  # [B, S, 1] or [B, 1, C]
        return logits.squeeze(-1 if self.w.shape[1] == 1 else 1)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the type for matrix products with x: autocast's if it is enabled, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _at_least_float32(x: Tensor) -> torch.dtype:
    """Return the type for sums and exponentials of the values of x."""
    return torch.promote_types(x.dtype, torch.float32)


def _equal_slices(n: int, most: int) -> list[slice]:
    """Cut n rows into as few slices as possible, of equal size and of at most ``most`` rows.

    The last slice may have fewer rows. A much shorter last slice would make its products slow.
    """
    size = math.ceil(n / max(1, math.ceil(n / most)))
    return [slice(begin, min(begin + size, n)) for begin in range(0, n, size or 1)]


class _WeightedCrossEntropy(torch.autograd.Function):
    """The sum over rows of weight * cross entropy of softmax(h @ w.T), a few rows at a time.

    The logits of a batch, [R, V], would be its largest tensor by far: half a gigabyte for 32
    stories. Therefore they are computed for one chunk of rows at a time. The forward pass also
    computes the gradient of each chunk, and the backward pass multiplies it by a single number.
    """

    ROWS = 512  # the maximum rows per chunk

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        w: Tensor,
        targets: Tensor,
        weights: Tensor,
        n_rows: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the weighted sum and the cross entropy of each row.

        The three matrix products are computed in the type of ``h``, everything else in the type of
        ``weights``. The gradient of ``w`` is summed over the chunks at least in float32, because
        the error of a sum in bfloat16 would grow with the number of chunks.

        Args:
            ctx: torch's context of the function.
            h: [R, D], hidden states.
            w: [V, D], the output matrix.
            targets: int64 [R], rows of ``w``.
            weights: [R].
            n_rows: number of rows of ``w`` over which the softmax runs, the first ones [all].

        Returns:
            The sum, and the cross entropy of each row, [R], which has no gradient.
        """
        matrix = w[:n_rows].to(h.dtype)
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ce = torch.empty_like(weights)
        dh = torch.empty_like(h) if with_gradient else None
        dw = torch.zeros_like(w, dtype=_at_least_float32(w)) if with_gradient else None
        chunks = _equal_slices(h.shape[0], _WeightedCrossEntropy.ROWS)
        # One buffer serves all chunks: to allocate so much memory takes as long as to fill it.
        buffer = h.new_empty(chunks[0].stop if chunks else 0, len(matrix))
        is_mixed = dw is not None and dw.dtype != h.dtype
        product = torch.empty_like(matrix) if is_mixed else None
        for rows in chunks:
            target = targets[rows, None]
            logits = torch.mm(h[rows], matrix.T, out=buffer[: rows.stop - rows.start])
            z = logits.to(weights.dtype)  # no copy unless the buffer is bfloat16
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
                    dw[:n_rows].addmm_(d.T, h[rows])
                else:
                    dw[:n_rows].add_(torch.mm(d.T, h[rows], out=product))
        ctx.save_for_backward(dh, dw)
        ctx.w_dtype = w.dtype
        ctx.mark_non_differentiable(ce)
        return (ce * weights).sum(), ce

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Multiply the gradients that the forward pass computed by the gradient of the sum."""
        # A copy of the gradient of w would be made while all activations are still in memory. torch
        # refuses a second backward pass, because these tensors have changed.
        dh, dw = ctx.saved_tensors
        return dh.mul_(grads[0]), dw.mul_(grads[0]).to(ctx.w_dtype), None, None, None


class DoubleHeadsModel(nn.Module):
    """The Transformer with a language-model head and a classifier, for packed batches.

    The matrix ``we`` [V, D] holds the rows of tokens, special tokens and positions. It is both the
    input embedding and the output matrix of the language model. The softmax runs over all V rows in
    fine-tuning, as in the original, and over the rows of tokens in pretraining.

    Args:
        config: sizes and dropout rates.

    Attributes:
        recompute: whether only the inputs of the layers are kept for the backward pass, which
            computes each layer again. This saves memory and does not change the numbers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.we = nn.Parameter(torch.empty(config.n_rows, config.n_embd))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.clf = Classifier(config)
        self.recompute = False

    @torch.no_grad()
    def init_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set all parameters to their initial values (docs/fidelity.md, 12).

        Matrices are drawn from N(0, 0.02). Biases are 0; the gains of layer norms are 1.

        Args:
            generator: the source of the random numbers [torch's default generator].
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".g"):
                parameter.fill_(1)
            elif name.endswith(".b"):
                parameter.zero_()
            else:
                parameter.normal_(0, INIT_STD, generator=generator)

    def compile_layers(self) -> None:
        """Compile the layers with torch.compile, once for all lengths.

        The names of the parameters stay the same.
        """
        for block in self.h:
            block.compile(dynamic=True)

    def hidden_states(self, batch: Batch, we: Tensor | None = None) -> Tensor:
        """Return the states of the last layer for all tokens of a batch, [N, D].

        Args:
            batch: the packed tokens.
            we: [V, D], the matrix ``we`` under this training step's dropout [drawn here].
        """
        we = self._dropped_we() if we is None else we
        x = self.embed(we, batch.tokens, batch.positions)
        return self.transform(x, [Packed.of(batch)] * len(self.h))

    def sequence_states(
        self, tokens: Tensor, attend: Packed | None = None, we: Tensor | None = None
    ) -> Tensor:
        """Return the states of the last layer for plain sequences, without choices.

        Args:
            tokens: int64 [B, T], token ids.
            attend: an attention context on the grid (B, T) [the causal mask].
            we: [V, D], the matrix ``we`` under this training step's dropout [drawn here].

        Returns:
            [B, T, D].

        Raises:
            ValueError: T is 0 or more than ``n_ctx``.
        """
        B, T = tokens.shape
        if not 1 <= T <= self.config.n_ctx:
            raise ValueError(f"{T} tokens; the model takes from 1 to {self.config.n_ctx}")
        first = self.config.first_position
        positions = torch.arange(first, first + T, device=tokens.device).repeat(B)
        we = self._dropped_we() if we is None else we
        x = self.embed(we, tokens.flatten(), positions)
        contexts = [attend or Packed((B, T))] * len(self.h)
        return self.transform(x, contexts).view(B, T, -1)

    def clf_logits(self, batch: Batch) -> Tensor:
        """Return the logits of the classes or choices, [B, C]; -infinity for a missing choice.

        In evaluation mode the last layer is computed only at the ``_classify_`` positions.
        """
        if self.training or not self.h:
            return self._classify(self.hidden_states(batch)[batch.clf_rows], batch)
        packed = Packed.of(batch)
        last = ClassifyOnly(packed, batch.clf_rows.flatten(), batch.visible_to_clf())
        x = self.embed(self.we, batch.tokens, batch.positions)
        x = self.transform(x, [*[packed] * (len(self.h) - 1), last])
        return self._classify(x.view(*batch.clf_rows.shape, -1), batch)

    def _classify(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the logits [B, C] of ``_classify_`` states [B, S, D]."""
        logits: Tensor = self.clf(h)
        if batch.present is not None and self.config.n_classes == 1:
            logits = logits.masked_fill(~batch.present, -math.inf)
        return logits

    def losses(self, batch: Batch, lm_coef: float) -> Losses:
        """Return the training loss and its parts (docs/fidelity.md, 8 to 10).

        Args:
            batch: a batch with targets.
            lm_coef: weight of the language-model loss; with 0 that loss is not computed.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("a loss needs a batch with targets")
        we = self._dropped_we()
        h = self.hidden_states(batch, we)
        logits = self._classify(h[batch.clf_rows], batch).to(_at_least_float32(h))
        targets = batch.targets
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        clf = F.cross_entropy(logits, targets, reduction="none")
        total = clf.mean()
        if not lm_coef:
            return Losses(total, clf, None)
        mean_lm, lm = self._lm_losses(h, we, batch)
        return Losses(total + lm_coef * mean_lm, clf, lm)

    def text_losses(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of generative pretraining on plain sequences (paper, section 3.1).

        The softmax runs over the ``n_vocab`` rows of tokens. In fine-tuning (:meth:`losses`) it
        runs over all rows of ``we``, as in the original.

        Args:
            tokens: int64 [B, T], token ids; T is at least 2.

        Returns:
            The mean of all predictions in nats (with gradient), and the cross entropy of each
            token after the first of its sequence, [B, T - 1], which has no gradient.

        Raises:
            ValueError: T is less than 2 or more than ``n_ctx``.
        """
        B, T = tokens.shape
        if T < 2:
            raise ValueError(f"{T} tokens; a prediction needs at least 2")
        we = self._dropped_we()
        attend = Packed((B, T), attention=causal_attention)
        h = self.sequence_states(tokens, attend, we)[:, :-1].flatten(0, 1)  # [B * (T - 1), D]
        share = torch.full(h.shape[:1], 1 / len(h), dtype=_at_least_float32(h), device=h.device)
        mean, ce = _WeightedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            h.to(_matmul_dtype(h)),
            we,
            tokens[:, 1:].flatten(),
            share,
            self.config.n_vocab,
        )
        return mean, ce.view(B, T - 1)

    def forward(self, batch: Batch, lm_coef: float = 0.5) -> Losses:
        """Return :meth:`losses`."""
        return self.losses(batch, lm_coef)

    def embed(self, we: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the input of the first layer, [N, D].

        Args:
            we: [V, D], the parameter ``we``, or that parameter under dropout.
            tokens, positions: int64 [N], rows of ``we``.
        """
        rows = torch.stack([tokens, positions])  # A single look-up makes a single gradient of we.
        return F.embedding(rows, we).sum(0).to(_matmul_dtype(we))

    def transform(self, x: Tensor, contexts: Sequence[Attend]) -> Tensor:
        """Apply all layers to x [N, D], each with its attention context, and return [M, D]."""
        recompute = self.recompute and torch.is_grad_enabled()
        for block, attend in zip(self.h, contexts, strict=True):
            # The second computation draws the same dropout masks: the state of torch's generator
            # is kept, too.
            x = checkpoint(block, x, attend, use_reentrant=False) if recompute else block(x, attend)
        return x

    def _dropped_we(self) -> Tensor:
        """Return ``we`` under a dropout mask, which the input and the output of a step share."""
        return dropped_matrix(self.we, self.config.embd_pdrop, self.training)

    def _lm_losses(self, h: Tensor, we: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss of all sequences (with gradient), and the loss of each, [B, S]."""
        B, S = batch.clf_rows.shape
        counts, dtype = batch.lm_counts.to(_at_least_float32(h)), _matmul_dtype(h)
        shares = torch.where(counts > 0, 1 / counts, 0)
        mean, ce = _WeightedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            h[batch.lm_rows].to(dtype),
            we,
            batch.lm_targets,
            shares.sum(1) / batch.n_sequences,
        )
        lm = ce.new_zeros(B, S).index_add(0, batch.lm_example, ce[:, None] * shares)
        return mean, lm


def with_products(
    model: DoubleHeadsModel, make: Callable[[Conv1D], Callable[[Tensor], Tensor]]
) -> DoubleHeadsModel:
    """Copy a model, and replace each :class:`Conv1D` of the copy by another function or module.

    Args:
        model: the model, which is not changed. The copy has the same mode, and shares the memory
            of all parameters except those of the replaced modules.
        make: returns the replacement of a module, which maps [N, n_in] to [N, n_out].
    """
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    copied = copy.deepcopy(model, shared)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                delattr(parent, name)  # The replacement need not be a module.
                setattr(parent, name, make(child))
    return copied.train(model.training)


def linear_layers(model: DoubleHeadsModel) -> DoubleHeadsModel:
    """Copy a model with ``nn.Linear`` in place of each :class:`Conv1D`; its outputs are the same.

    Exporters and quantisers look for ``nn.Linear``. The copy shares the memory of the other
    parameters, as in :func:`with_products`.
    """

    def linear(conv: Conv1D) -> nn.Linear:
        n_in, n_out = conv.w.shape
        layer = nn.Linear(n_in, n_out, device="meta")
        layer.weight, layer.bias = nn.Parameter(conv.w.detach().T.contiguous()), conv.b
        return layer

    return with_products(model, linear)
