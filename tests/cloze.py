"""Encoded stories with two endings as arrays, laid out and cut as in training."""

from __future__ import annotations

from typing import NamedTuple

from padded import Padded, padded

from gpt1.batches.encoded import EncodedSplit
from gpt1.tasks.layouts import StoryChoices
from gpt1.text_utils.special import SpecialTokens


class EncodedCloze(NamedTuple):
    """The token ids of a split: stories, first and second endings, and labels or None."""

    stories: list[list[int]]
    endings1: list[list[int]]
    endings2: list[list[int]]
    labels: list[int] | None


def lay_out(
    split: EncodedCloze, special: SpecialTokens, *, n_ctx: int = 512, length: int | None = None
) -> Padded:
    """Return the arrays of a split.

    Args:
        split: the token ids.
        special: ids of the special tokens.
        n_ctx: the value of ``--n_ctx``, by which the parts are cut.
        length: T [the longest sequence].
    """
    layout = StoryChoices()
    texts = zip(*split[:3], strict=True)
    examples = [layout.sequences(each, special, n_ctx) for each in texts]
    return padded(EncodedSplit.of(examples, special, split.labels), special.classify + 1, length)
