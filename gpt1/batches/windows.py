"""Windows of contiguous tokens, which pretraining and held-out perplexity read.

Axes: B windows, T tokens per window, n tokens of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Tokens = npt.NDArray[Any]
"""Token ids of documents one after another, uint16 or uint32 [n]; may be mapped from a file."""
Starts = npt.NDArray[np.int64]
"""The places [B] in the text at which windows start."""


@dataclass(frozen=True)
class Windows:
    """The windows of T contiguous tokens in a text, cut anew in every epoch (paper, section 4.1).

    The windows of an epoch are disjoint and may cross the ends of documents. Where the first one
    starts, and the order of all, follow from the seed and the number of the epoch alone. Every
    epoch has the same number of windows; fewer than 2 T tokens at the ends of the text are in no
    window.

    Attributes:
        tokens: the text.
        length: T.
    """

    tokens: Tokens
    length: int

    @property
    def n_windows(self) -> int:
        """The number of windows in an epoch: as many as there is room for at every offset."""
        n, T = len(self.tokens), self.length
        return max((n + 1) // T - 1, int(n >= T))

    def starts(self, seed: int, epoch: int) -> Starts:
        """Return the places at which the windows of an epoch start, in the order of training.

        Args:
            seed: the seed of the run.
            epoch: the number of the epoch, from 0.
        """
        stream = np.random.default_rng([seed, epoch])
        room = len(self.tokens) - self.n_windows * self.length
        offset = int(stream.integers(min(self.length - 1, room) + 1))
        return offset + self.length * stream.permutation(self.n_windows)

    def take(self, starts: Starts) -> Tensor:
        """Return the windows at these places, int64 [B, T]."""
        return _as_tensor([self.tokens[start : start + self.length] for start in starts])


def in_order(tokens: Tokens, length: int) -> list[Tokens]:
    """Cut a text into windows one after another, without copying them.

    The last window holds the rest of the text, and is left out if it has a single token, after
    which there is nothing to predict.
    """
    found = [tokens[begin : begin + length] for begin in range(0, len(tokens), length)]
    return [window for window in found if len(window) > 1]


def stacked(windows: list[Tokens]) -> list[Tensor]:
    """Return windows as int64 tensors [B, T], one for each run of windows of the same length."""
    groups: list[list[Tokens]] = []
    for window in windows:
        if not groups or len(groups[-1][0]) != len(window):
            groups.append([])
        groups[-1].append(window)
    return [_as_tensor(group) for group in groups]


def _as_tensor(windows: list[Tokens]) -> Tensor:
    return torch.from_numpy(np.stack(windows).astype(np.int64))
