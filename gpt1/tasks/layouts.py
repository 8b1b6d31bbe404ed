"""How the texts of an example become token sequences (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpt1.text_utils.special import SpecialTokens

Ids = Sequence[int]


class Layout(Protocol):
    """Makes the token sequences of an example from the ids of its texts."""

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example.

        Args:
            texts: the ids of each text of the example.
            special: ids of the special tokens.
            n_ctx: the largest number of tokens in a sequence; longer texts are cut.

        Returns:
            S sequences, each of at most ``n_ctx`` tokens, each with ``_classify_`` last.
        """


def max_part_length(n_ctx: int) -> int:
    """Return how many tokens a part may have.

    Two parts of that length and three special tokens fit in ``n_ctx`` (the original's
    ``max_len``).
    """
    return n_ctx // 2 - 2


class Choices:
    """``start context delimiter answer classify`` for each answer, as in the original.

    The texts of an example are its context and its answers. Each of the two parts of a sequence
    is cut to :func:`max_part_length` (the original's ``transform_roc``).
    """

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example; see :class:`Layout`."""
        keep = max_part_length(n_ctx)
        context, *answers = texts
        begin = [special.start, *context[:keep], special.delimiter]
        return [[*begin, *answer[:keep], special.classify] for answer in answers]
