"""Packed batches: the tokens of the padded arrays without the padding.

The model computes on the tokens of a batch one after another, [N]. Only attention needs a padded
form, the grid, and a batch has the place of each token in it.

Axes: B examples, S sequences per example (the choices), T positions, N packed tokens, G rows of the
grid, R targets of the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.batches.arrays import ChoiceArrays


@dataclass(frozen=True)
class Batch:
    """B examples of S sequences each, as N packed tokens in G blocks.

    A token attends to tokens of its own block only. A block is one sequence, or, where sequences
    share their prefix, one example: the common prefix once, then the rest of each sequence.

    Attributes:
        tokens, positions: int64 [N], rows of ``we``.
        slots: int64 [N], the place of each token in the flattened grid, [G * T].
        segments: int64 [G, T], 0 for a token that all later tokens of its block may see, s + 1 for
            a token that only those of sequence s may see; None if each block is one sequence.
        grid: (G, T); T is the length of the longest block.
        clf_rows: int64 [B, S], the packed tokens that are the first ``_classify_`` of a sequence.
        lm_rows: int64 [R], the packed tokens after which the language model predicts a token.
        lm_targets: int64 [R], the rows of ``we`` that it must predict.
        lm_story: int64 [R], the examples of these targets.
        lm_weights: float32 [R, S], the weight of a target in the loss of each sequence of its
            example: 1 / (sequence length - 1), or 0 if the target is not in that sequence.
        labels: int64 [B], the index of the right choice, or None.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    segments: Tensor | None
    grid: tuple[int, int]
    clf_rows: Tensor
    lm_rows: Tensor
    lm_targets: Tensor
    lm_story: Tensor
    lm_weights: Tensor
    labels: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; the copy from pinned memory is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU can copy asynchronously."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = change(value) if isinstance(value, Tensor) else value
        return Batch(**values)

    @property
    def n_stories(self) -> int:
        """B, the number of examples."""
        return self.clf_rows.shape[0]

    def visible(self) -> Tensor | None:
        """Return the positions that each position sees, bool [G, 1, T, T].

        Returns None if they are those of the causal mask.
        """
        if self.segments is None:
            return None
        T = self.grid[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=self.segments.device).tril()
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        return (causal & ((key == 0) | (key == query)))[:, None]

    def visible_to_clf(self) -> Tensor:
        """Return the positions that each `_classify_` token sees, bool [G, 1, Q, T].

        A block has Q = S of these tokens if it is an example, and Q = 1 if it is a sequence.
        """
        G, T = self.grid
        slots = self.slots[self.clf_rows].view(G, -1, 1)
        visible = torch.arange(T, device=slots.device) <= slots % T
        if self.segments is not None:
            query = self.segments.view(-1)[slots]  # [G, Q, 1]
            key = self.segments[:, None]  # [G, 1, T]
            visible &= (key == 0) | (key == query)
        return visible[:, None]


@dataclass
class _Packing:
    """The fields of a :class:`Batch` as lists of arrays, to which :func:`pack` appends."""

    tokens: list[npt.NDArray[np.int64]]
    positions: list[npt.NDArray[np.int64]]
    segments: list[npt.NDArray[np.int64]]
    clf_rows: list[list[int]]
    lm_rows: list[npt.NDArray[np.int64]]
    lm_targets: list[npt.NDArray[np.int64]]
    lm_story: list[npt.NDArray[np.int64]]
    lm_weights: list[npt.NDArray[np.float32]]
    n_tokens: int = 0

    def add_block(self, parts: list[npt.NDArray[np.int64]], segments: list[int]) -> int:
        """Append a block and return the row of [N] of its first token.

        Args:
            parts: arrays [length, 2], rows of ``we`` for tokens and positions.
            segments: the segment of each part (see :class:`Batch`).
        """
        first = self.n_tokens
        rows = np.concatenate(parts)
        self.tokens.append(rows[:, 0])
        self.positions.append(rows[:, 1])
        self.segments.append(np.repeat(segments, [len(part) for part in parts]))
        self.n_tokens += len(rows)
        return first

    def add_targets(
        self,
        story: int,
        rows: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        weights: list[float],
    ) -> None:
        """Append targets of the language model.

        Args:
            story: the example of the targets.
            rows: the rows of [N] after which the targets are predicted.
            targets: rows of ``we``, one per row.
            weights: the weight of each target in the loss of each sequence, S numbers.
        """
        self.lm_rows.append(rows)
        self.lm_targets.append(targets)
        self.lm_story.append(np.full(len(rows), story))
        self.lm_weights.append(np.tile(np.asarray(weights, dtype=np.float32), (len(rows), 1)))


def pack(arrays: ChoiceArrays, clf_token: int, *, share_prefix: bool) -> Batch:
    """Pack examples for the model, without padding.

    Without dropout ``share_prefix`` does not change the states, logits and losses of a sequence.

    Args:
        arrays: X [B, S, T, 2], M [B, S, T] (in each sequence ones, then zeros), and Y [B] or None.
        clf_token: id of ``_classify_``.
        share_prefix: whether the longest common prefix of an example's sequences is packed once.
            The sequences then share a block, and no sequence sees the rest of another.
    """
    B, S = arrays.X.shape[:2]
    lengths = arrays.M.sum(-1).astype(np.int64)
    packing = _Packing([], [], [], [], [], [], [], [])
    for b in range(B):
        sequences = [arrays.X[b, s, : lengths[b, s]].astype(np.int64) for s in range(S)]
        # Row s: the weights of the targets that only sequence s has.
        weights = np.eye(S) / np.maximum(lengths[b] - 1, 1)[:, None]
        if share_prefix:
            _add_with_shared_prefix(packing, b, sequences, weights, clf_token)
        else:
            _add_sequences(packing, b, sequences, weights, clf_token)
    return _to_batch(packing, arrays.Y, share_prefix)


def _first_classify(sequence: npt.NDArray[np.int64], clf_token: int) -> int:
    """Return the index of the first ``_classify_`` (the original's argmax over equality)."""
    return int(np.argmax(sequence[:, 0] == clf_token))


def _add_sequences(
    packing: _Packing,
    story: int,
    sequences: list[npt.NDArray[np.int64]],
    weights: npt.NDArray[np.float64],
    clf_token: int,
) -> None:
    """Append the sequences of one story to ``packing``, one block per sequence.

    Args:
        packing: the batch so far.
        story: the number of the story in the batch.
        sequences: S arrays [length, 2], rows of ``we`` for tokens and positions.
        weights: [S, S]; row s has the weights, in the loss of each sequence, of the targets that
            only sequence s has.
        clf_token: id of ``_classify_``.
    """
    clf_rows = []
    for s, sequence in enumerate(sequences):
        first = packing.add_block([sequence], [0])
        clf_rows.append(first + _first_classify(sequence, clf_token))
        rows = first + np.arange(len(sequence) - 1)
        packing.add_targets(story, rows, sequence[1:, 0], weights[s].tolist())
    packing.clf_rows.append(clf_rows)


def _add_with_shared_prefix(
    packing: _Packing,
    story: int,
    sequences: list[npt.NDArray[np.int64]],
    weights: npt.NDArray[np.float64],
    clf_token: int,
) -> None:
    """Append the sequences of one story as one block: the common prefix, then each rest.

    The arguments are those of :func:`_add_sequences`.
    """
    shared = _common_prefix(sequences, clf_token)
    prefix, rests = sequences[0][:shared], [sequence[shared:] for sequence in sequences]
    first = packing.add_block([prefix, *rests], list(range(len(sequences) + 1)))
    prefix_rows = first + np.arange(shared)
    packing.add_targets(story, prefix_rows[:-1], prefix[1:, 0], weights.sum(0).tolist())
    clf_rows, begin = [], first + shared
    for s, rest in enumerate(rests):
        own = begin + np.arange(len(rest))
        clf_rows.append(begin + _first_classify(rest, clf_token))
        # The language model predicts the first token of every rest after the last of the prefix.
        rows = np.concatenate([prefix_rows[-1:], own[:-1]])
        packing.add_targets(story, rows, rest[len(rest) - len(rows) :, 0], weights[s].tolist())
        begin += len(rest)
    packing.clf_rows.append(clf_rows)


def _common_prefix(sequences: list[npt.NDArray[np.int64]], clf_token: int) -> int:
    """Return the length of the longest common prefix before the first ``_classify_``."""
    shortest = min(_first_classify(sequence, clf_token) for sequence in sequences)
    same = np.ones(shortest, dtype=bool)
    for sequence in sequences[1:]:
        same &= (sequence[:shortest] == sequences[0][:shortest]).all(-1)
    return shortest if same.all() else int(np.argmin(same))


def _to_batch(packing: _Packing, labels: npt.NDArray[np.int32] | None, share_prefix: bool) -> Batch:
    """Concatenate the lists to tensors, and give each token its slot in the grid."""
    lengths = [len(block) for block in packing.tokens]
    G, T = len(lengths), max(lengths)
    slots = [row * T + np.arange(length) for row, length in enumerate(lengths)]
    segments = None
    if share_prefix:
        # Padding may have segment 0: the causal mask hides it from all tokens, which precede it.
        grid = np.zeros((G, T), dtype=np.int64)
        grid.ravel()[np.concatenate(slots)] = np.concatenate(packing.segments)
        segments = torch.from_numpy(grid)

    def tensor(parts: list[npt.NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return Batch(
        tokens=tensor(packing.tokens),
        positions=tensor(packing.positions),
        slots=tensor(slots),
        segments=segments,
        grid=(G, T),
        clf_rows=torch.tensor(packing.clf_rows),
        lm_rows=tensor(packing.lm_rows),
        lm_targets=tensor(packing.lm_targets),
        lm_story=tensor(packing.lm_story),
        lm_weights=torch.from_numpy(np.concatenate(packing.lm_weights)),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )
