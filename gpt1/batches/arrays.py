"""Token sequences as the padded arrays X and M of the original.

Axes: B examples, S sequences per example (the two choices), T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.text_utils.special import SpecialTokens


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


def to_arrays(
    examples: Sequence[Sequence[Sequence[int]]],
    special: SpecialTokens,
    *,
    n_ctx: int,
    labels: Sequence[float] | None = None,
) -> ChoiceArrays:
    """Return the sequences of examples as arrays (the original's ``transform_roc``).

    Args:
        examples: B examples of S sequences each, of at most ``n_ctx`` token ids, as a layout of
            :mod:`gpt1.tasks.layouts` makes them.
        special: ids of the special tokens; the rows of the positions follow them.
        n_ctx: T.
        labels: B indices of the right choices; None if they are not known.
    """
    S = max((len(sequences) for sequences in examples), default=0)
    X = np.zeros((len(examples), S, n_ctx, 2), dtype=np.int32)
    M = np.zeros((len(examples), S, n_ctx), dtype=np.float32)
    X[:, :, :, 1] = np.arange(special.classify + 1, special.classify + 1 + n_ctx)
    for b, sequences in enumerate(examples):
        for s, ids in enumerate(sequences):
            X[b, s, : len(ids), 0] = ids
            M[b, s, : len(ids)] = 1
    return ChoiceArrays(X, M, None if labels is None else np.asarray(labels, dtype=np.int32))
