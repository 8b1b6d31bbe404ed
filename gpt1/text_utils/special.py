"""The three special tokens, whose ids follow the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")
N_SPECIAL = len(SPECIAL_TOKENS)
SPECIAL_STD = 0.02
"""Standard deviation of the rows of ``we`` that the original draws for the special tokens."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the three special tokens (the original adds them to ``TextEncoder.encoder``)."""

    start: int
    delimiter: int
    classify: int

    @classmethod
    def after(cls, n_vocab: int) -> SpecialTokens:
        """Return the ids after a vocabulary of ``n_vocab`` tokens, in the original's order."""
        return cls(start=n_vocab, delimiter=n_vocab + 1, classify=n_vocab + 2)
