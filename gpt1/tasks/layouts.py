"""How the texts of an example become token sequences (paper, section 3.3).

A task has one of four shapes. The table shows the sequences of each shape; ``start``,
``delimiter`` and ``classify`` are the special tokens.

==============  ==================================================================
classification  ``start text classify``
entailment      ``start premise delimiter hypothesis classify``
similarity      ``start a delimiter b classify`` and ``start b delimiter a classify``
choice          ``start context delimiter answer classify`` for each answer
==============  ==================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpt1.text_utils.special import N_SPECIAL, SpecialTokens

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
            S sequences, each of at most ``n_ctx`` tokens, each with ``_classify_`` last. A sequence
            is empty if the example lacks this answer.
        """


def max_part_length(n_ctx: int) -> int:
    """Return how many tokens a part may have.

    Two parts of that length and three special tokens fit in ``n_ctx`` (the original's
    ``max_len``).
    """
    return n_ctx // 2 - 2


def pair(first: Ids, second: Ids, special: SpecialTokens) -> list[int]:
    """Return the sequence of two texts: ``start first delimiter second classify``."""
    return [special.start, *first, special.delimiter, *second, special.classify]


@dataclass(frozen=True)
class Classification:
    """One text, ``start text classify``. The end of a text that is too long is cut off."""

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example; see :class:`Layout`."""
        (text,) = texts
        return [[special.start, *text[: n_ctx - 2], special.classify]]


@dataclass(frozen=True)
class Entailment:
    """Two texts in one order, such as premise and hypothesis.

    Each is cut to :func:`max_part_length`.
    """

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example; see :class:`Layout`."""
        keep = max_part_length(n_ctx)
        first, second = texts
        return [pair(first[:keep], second[:keep], special)]


@dataclass(frozen=True)
class Similarity:
    """Two texts without an order, therefore in both orders.

    Each is cut to :func:`max_part_length`.
    """

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example; see :class:`Layout`."""
        keep = max_part_length(n_ctx)
        first, second = (text[:keep] for text in texts)
        return [pair(first, second, special), pair(second, first, special)]


@dataclass(frozen=True)
class StoryChoices:
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
        return [pair(context[:keep], answer[:keep], special) for answer in answers]


@dataclass(frozen=True)
class Choices:
    """``start context question delimiter answer classify`` for each answer.

    The texts of an example are its context, its question if ``has_question``, and its answers, of
    which some may be missing (empty). Only the context is cut: all sequences keep the same first
    tokens of it, as many as leave room for the question and the longest answer. Where not even
    question and answer fit, each of the two is cut to :func:`max_part_length`.

    Attributes:
        has_question: whether the second text is a question, which follows the context.
    """

    has_question: bool = False

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Lay out one example; see :class:`Layout`."""
        context, *rest = texts
        question: Ids = rest.pop(0) if self.has_question else ()
        room = n_ctx - N_SPECIAL
        longest = max(len(answer) for answer in rest)
        if len(question) + longest > room:
            keep = max_part_length(n_ctx)
            question, rest = question[:keep], [answer[:keep] for answer in rest]
            longest = min(longest, keep)
        context = context[: max(0, room - len(question) - longest)]
        return [pair([*context, *question], answer, special) if answer else [] for answer in rest]
