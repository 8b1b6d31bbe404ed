"""The Transformer with its two heads (paper, sections 3.1 and 3.2)."""

from gpt1.model.transformer import DoubleHeadsModel, ModelConfig

__all__ = ["DoubleHeadsModel", "ModelConfig"]
