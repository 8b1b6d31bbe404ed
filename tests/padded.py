"""The padded arrays X and M of the original, and the way from and to encoded splits.

Axes: B examples, S sequences per example, T positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.batches.encoded import EncodedSplit


class Padded(NamedTuple):
    """A split as the original's arrays.

    X: int32 [B, S, T, 2], two rows of ``we`` per position: that of the token (0 on padding, which
        comes last) and that of the position.
    M: float32 [B, S, T], 1 on tokens and 0 on padding.
    Y: int32 [B], the index of the right outcome; None if it is not known.
    """

    X: npt.NDArray[np.int32]
    M: npt.NDArray[np.float32]
    Y: npt.NDArray[np.int32] | None

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Padded:
        """Return the examples ``rows``, in the order of ``rows``."""
        return Padded(self.X[rows], self.M[rows], None if self.Y is None else self.Y[rows])

    def encoded(self) -> EncodedSplit:
        """Return the same sequences without padding."""
        return EncodedSplit(
            ids=self.X[..., 0][self.M > 0],
            lengths=self.M.sum(-1).astype(np.int32),
            labels=self.Y,
            targets=self.Y,
        )


def padded(split: EncodedSplit, first_position: int, T: int | None = None) -> Padded:
    """Return the arrays of a split (the original's ``transform_roc``).

    Args:
        split: the examples.
        first_position: the row of ``we`` of the first position.
        T: length of the arrays [the longest sequence].
    """
    T = T or split.longest
    M = (np.arange(T) < split.lengths[..., None]).astype(np.float32)
    X = np.zeros((*M.shape, 2), dtype=np.int32)
    X[..., 0][M > 0] = split.ids
    X[..., 1] = np.arange(first_position, first_position + T)
    return Padded(X, M, split.targets)
