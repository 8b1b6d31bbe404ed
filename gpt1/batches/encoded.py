"""The token sequences of a split, without padding.

Axes: B examples, S sequences per example (the choices, or the orders of two texts), C outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt1.tasks.targets import Labels
from gpt1.text_utils.special import SpecialTokens


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """The token ids of all sequences of a split, one after another.

    Attributes:
        ids: token ids of all sequences, in the smallest unsigned type that holds the vocabulary.
        lengths: int32 [B, S], the number of tokens of each sequence; 0 where an example lacks an
            answer.
        labels: [B], the labels as the metrics of the task take them; None if they are not known.
        targets: int32 [B], indices of the right outcomes, or float32 [B, C], their probabilities,
            for the cross entropy; None if they are not known.
    """

    ids: npt.NDArray[Any]
    lengths: npt.NDArray[np.int32]
    labels: Labels | None = None
    targets: npt.NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        examples: Iterable[Sequence[Sequence[int]]],
        special: SpecialTokens,
        labels: Sequence[int] | None = None,
    ) -> EncodedSplit:
        """Join the sequences of examples.

        Args:
            examples: the S sequences of each example, as a layout of :mod:`gpt1.tasks.layouts`
                makes them.
            special: ids of the special tokens, which follow the vocabulary.
            labels: the index of the right outcome of each example; None if they are not known.
        """
        dtype = np.min_scalar_type(special.classify)
        ids, lengths = [np.zeros(0, dtype)], []
        for sequences in examples:
            ids.append(np.fromiter(chain.from_iterable(sequences), dtype))
            lengths.append([len(sequence) for sequence in sequences])
        shape = (len(lengths), -1) if lengths else (0, 1)
        joined, rows = np.concatenate(ids), np.array(lengths, dtype=np.int32).reshape(shape)
        targets = None if labels is None else np.array(labels, dtype=np.int32)
        return cls(joined, rows, labels=targets, targets=targets)

    @property
    def n_examples(self) -> int:
        """B, the number of examples."""
        return len(self.lengths)

    @property
    def n_sequences(self) -> int:
        """S, the number of sequences per example."""
        n_sequences: int = self.lengths.shape[1]
        return n_sequences

    @property
    def longest(self) -> int:
        """The number of tokens of the longest sequence."""
        return max((int(length) for length in self.lengths.flat), default=0)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The index in ``ids`` where each example begins, and the end of the last one, [B + 1]."""
        ends = np.cumsum(self.lengths.sum(1), dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), ends])

    def take(self, rows: slice | npt.NDArray[np.int64]) -> EncodedSplit:
        """Return the examples ``rows``, in the order of ``rows``."""
        numbers = np.arange(self.n_examples)[rows]
        parts = [self.ids[self.starts[row] : self.starts[row + 1]] for row in numbers]
        return EncodedSplit(
            ids=np.concatenate([self.ids[:0], *parts]),
            lengths=self.lengths[rows],
            labels=None if self.labels is None else self.labels[rows],
            targets=None if self.targets is None else self.targets[rows],
        )

    def sequences(self, example: int) -> list[npt.NDArray[np.int64]]:
        """Return the S sequences of token ids of one example."""
        ids = self.ids[self.starts[example] : self.starts[example + 1]].astype(np.int64)
        return np.split(ids, np.cumsum(self.lengths[example])[:-1])
