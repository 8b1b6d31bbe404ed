"""Make transformers' GPT-1 with the weights of a gpt1 model, for comparisons of the two."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.harness import require_transformers
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.weights.hub import hub_name
from gpt1.weights.parameters import parameter_shapes, to_list


def peer_config(config: ModelConfig, *, n_tokens: int, n_positions: int) -> Any:
    """Make transformers' configuration of the same model, with the original's dropout rates.

    Args:
        config: the configuration of gpt1's model.
        n_tokens: number of token rows, with or without those of the special tokens.
        n_positions: number of position rows.
    """
    sizes = {name: getattr(config, name) for name in ("n_embd", "n_layer", "n_head")}
    return require_transformers().OpenAIGPTConfig(
        vocab_size=n_tokens, n_positions=n_positions, summary_first_dropout=0.1, **sizes
    )


def copy_weights(theirs: Any, ours: DoubleHeadsModel) -> None:
    """Copy the rows of ``we`` and the layers; rows that only ``theirs`` has stay as they are.

    Args:
        theirs: transformers' ``OpenAIGPTModel``, which has no head.
        ours: gpt1's model, of the same width and number of layers.
    """
    config = ours.config
    params = dict(zip(parameter_shapes(config), to_list(ours), strict=True))
    we = torch.from_numpy(params["we"])
    n_tokens = theirs.tokens_embed.weight.shape[0]
    positions = we[config.n_vocab + config.n_special :]
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        own["tokens_embed.weight"].copy_(we[:n_tokens])
        own["positions_embed.weight"][: len(positions)] = positions
        for name, array in params.items():
            if name.startswith("h"):
                values = torch.from_numpy(array[0] if array.ndim == 3 else array)
                own[hub_name(name)].copy_(values)
