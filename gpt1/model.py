"""GPT-1 with a language-model head and a choice head (paper, sections 3.1 and 3.2)."""

from __future__ import annotations

from dataclasses import dataclass


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
