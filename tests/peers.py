"""A small model, and the model of transformers with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gpt1.model.transformer import DoubleHeadsModel, ModelConfig

NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), 0.0)
SMALL = ModelConfig(n_vocab=7, n_ctx=24, n_embd=12, n_head=3, n_layer=2, **NO_DROPOUT)


def their_model(kind: Callable[..., nn.Module], ours: DoubleHeadsModel) -> nn.Module:
    """Return a model of transformers with the weights of gpt1's model."""
    from transformers import OpenAIGPTConfig

    config = ours.config
    n_tokens = config.n_vocab + config.n_special
    theirs = kind(
        OpenAIGPTConfig(
            vocab_size=n_tokens,
            n_positions=config.n_ctx,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            afn=config.afn,
            num_labels=1,
        )
    )
    inner = getattr(theirs, "transformer", theirs)
    with torch.no_grad():
        inner.tokens_embed.weight.copy_(ours.we[:n_tokens])
        inner.positions_embed.weight.copy_(ours.we[n_tokens:])
        own = dict(ours.named_parameters())
        for name, p in inner.h.named_parameters():
            ours_is = ".g" if ".ln_" in name else ".w"
            p.copy_(own["h." + name.replace(".weight", ours_is).replace(".bias", ".b")])
    return theirs.eval()
