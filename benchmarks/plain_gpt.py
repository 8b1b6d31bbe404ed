"""GPT-1's architecture in plain PyTorch, as one would write it today, for comparisons of speed.

The work is the same as gpt1's: the layer norms follow the residual sums, and the output matrix is
the embedding of the tokens. Axes: B windows, T positions, D width, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1.model.transformer import LN_EPSILON, DoubleHeadsModel, ModelConfig


class PlainBlock(nn.Module):
    """One layer: causal self-attention and a feed-forward network, each with its residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.n_embd
        self.n_head, self.attn_pdrop = config.n_head, config.attn_pdrop
        self.c_attn, self.attn_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.c_fc, self.mlp_proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.ln_1, self.ln_2 = (nn.LayerNorm(D, eps=LN_EPSILON) for _ in range(2))
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2)
            for part in self.c_attn(x).split(D, dim=2)
        )
        p = self.attn_pdrop if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        a = self.attn_proj(a.transpose(1, 2).reshape(B, T, D))
        x = self.ln_1(x + self.drop(a))
        hidden = F.gelu(self.c_fc(x), approximate="tanh")
        out: Tensor = self.ln_2(x + self.drop(self.mlp_proj(hidden)))
        return out


class PlainGPT(nn.Module):
    """The whole language model, with the weights of a gpt1 model.

    Args:
        ours: the model whose sizes, dropout rates and weights are taken.
    """

    def __init__(self, ours: DoubleHeadsModel) -> None:
        super().__init__()
        config = ours.config
        self.tokens = nn.Embedding(config.n_vocab, config.n_embd)
        self.positions = nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self._copy(ours)

    @torch.no_grad()
    def _copy(self, ours: DoubleHeadsModel) -> None:
        """Copy the weights."""
        config = ours.config
        self.tokens.weight.copy_(ours.we[: config.n_vocab])
        self.positions.weight.copy_(ours.we[config.first_position :])
        layers: Any = zip(self.h, ours.h, strict=True)
        for plain, block in layers:
            linear = {
                "c_attn": block.attn.c_attn,
                "attn_proj": block.attn.c_proj,
                "c_fc": block.mlp.c_fc,
                "mlp_proj": block.mlp.c_proj,
            }
            for name, conv in linear.items():
                layer = getattr(plain, name)
                layer.weight.copy_(conv.w.T)
                layer.bias.copy_(conv.b)
            for theirs, norm in ((plain.ln_1, block.ln_1), (plain.ln_2, block.ln_2)):
                theirs.weight.copy_(norm.g)
                theirs.bias.copy_(norm.b)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the mean cross entropy of each token after the first of its window [B, T]."""
        T = windows.shape[1]
        x = self.drop(self.tokens(windows) + self.positions(torch.arange(T, device=windows.device)))
        for block in self.h:
            x = block(x)
        logits = F.linear(x[:, :-1], self.tokens.weight)
        # Autocast gives bfloat16 logits, whose cross entropy would be too coarse.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
