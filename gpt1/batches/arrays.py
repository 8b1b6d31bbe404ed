"""Encoded stories as the padded arrays X and M of the original.

Axes: B examples, S sequences per example (the two choices), T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.text_utils.special import N_SPECIAL, SpecialTokens


class EncodedCloze(NamedTuple):
    """The token ids of a split: stories, first and second endings, and labels or None."""

    stories: list[list[int]]
    endings1: list[list[int]]
    endings2: list[list[int]]
    labels: list[int] | None


class ChoiceArrays(NamedTuple):
    """A split as the original's arrays.

    X: int32 [B, S, T, 2], two rows of ``we`` per position: that of the token (0 on padding, which
        comes last) and that of the position.
    M: float32 [B, S, T], 1 on tokens and 0 on padding.
    Y: int32 [B], the index of the right choice; None if the right choices are not known.
    """

    X: npt.NDArray[np.int32]
    M: npt.NDArray[np.float32]
    Y: npt.NDArray[np.int32] | None

    def take(self, rows: slice | npt.NDArray[np.int64]) -> ChoiceArrays:
        """Return the examples ``rows``, in the order of ``rows``."""
        return ChoiceArrays(self.X[rows], self.M[rows], None if self.Y is None else self.Y[rows])

    @property
    def n_stories(self) -> int:
        """B, the number of examples."""
        return len(self.X)


def max_part_length(n_ctx: int) -> int:
    """Return the maximum tokens per part, so that two parts and three special tokens fit.

    Args:
        n_ctx: the maximum tokens per sequence.
    """
    return n_ctx // 2 - 2


def context_length(splits: Sequence[EncodedCloze], n_ctx: int) -> int:
    """Return the length T of the longest sequence of all splits, in tokens (docs/fidelity.md, 6).

    Args:
        splits: the training, validation and test stories.
        n_ctx: the value of ``--n_ctx``, which T does not exceed.
    """
    keep = max_part_length(n_ctx)
    longest = max(
        len(story[:keep]) + max(len(one[:keep]), len(two[:keep])) + N_SPECIAL
        for split in splits
        for story, one, two in zip(split.stories, split.endings1, split.endings2, strict=True)
    )
    return min(longest, n_ctx)


def transform_roc(
    split: EncodedCloze, special: SpecialTokens, *, n_ctx: int, max_len: int
) -> ChoiceArrays:
    """Lay out each story with each of its endings (the original's ``transform_roc``).

    A sequence is ``start story[:max_len] delimiter ending[:max_len] classify``.

    Args:
        split: token ids.
        special: ids of the three special tokens; the rows of the positions follow them.
        n_ctx: T, from :func:`context_length`.
        max_len: from :func:`max_part_length` of the flag ``--n_ctx``, not of T.
    """
    n = len(split.stories)
    X = np.zeros((n, 2, n_ctx, 2), dtype=np.int32)
    M = np.zeros((n, 2, n_ctx), dtype=np.float32)
    X[:, :, :, 1] = np.arange(special.classify + 1, special.classify + 1 + n_ctx)
    for i, story in enumerate(split.stories):
        for s, ending in enumerate((split.endings1[i], split.endings2[i])):
            ids = [special.start, *story[:max_len], special.delimiter]
            ids += [*ending[:max_len], special.classify]
            X[i, s, : len(ids), 0] = ids
            M[i, s, : len(ids)] = 1
    labels = None if split.labels is None else np.asarray(split.labels, dtype=np.int32)
    return ChoiceArrays(X, M, labels)
