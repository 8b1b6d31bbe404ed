"""Packed batches: the tokens of several examples without padding.

The model computes on the tokens of a batch one after another, [N]. Only attention needs a padded
form, the grid, and a batch has the place of each token in it.

Axes: B examples, S sequences per example (the choices, or the orders of two texts), T positions,
N packed tokens, G rows of the grid, R targets of the language model, C outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.batches.encoded import EncodedSplit


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
        clf_rows: int64 [B, S], the packed tokens that are the first ``_classify_`` of a sequence;
            [B, 0] if the sequences have none.
        lm_rows: int64 [R], the packed tokens after which the language model predicts a token.
        lm_targets: int64 [R], the rows of ``we`` that it must predict.
        lm_example: int64 [R], the examples of these targets.
        lm_counts: int64 [R, S], the number of targets, which is length - 1, of each sequence of the
            example that holds this target; 0 for a sequence that does not hold it.
        n_sequences: number of sequences without those of missing answers.
        present: bool [B, S], whether an example has this answer; None if no answer is missing.
        targets: int64 [B], indices of the right outcomes, or float32 [B, C], their probabilities;
            None if they are not known.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    segments: Tensor | None
    grid: tuple[int, int]
    clf_rows: Tensor
    lm_rows: Tensor
    lm_targets: Tensor
    lm_example: Tensor
    lm_counts: Tensor
    n_sequences: int
    present: Tensor | None
    targets: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; the copy from pinned memory is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned_for(self, device: torch.device) -> Batch:
        """Return the batch in memory from which ``device`` can copy while it computes."""
        if device.type != "cuda":
            return self
        with torch.cuda.device(device):  # The present device is one thread's own.
            return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = change(value) if isinstance(value, Tensor) else value
        return Batch(**values)

    @property
    def n_examples(self) -> int:
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


def _for_cross_entropy(targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return targets in a type that torch's cross entropy takes: int64 indices, or as they are."""
    return targets.astype(np.int64) if targets.ndim == 1 else targets


@dataclass
class _Packing:
    """The fields of a :class:`Batch` as lists of arrays, to which :func:`pack` appends."""

    tokens: list[npt.NDArray[np.int64]]
    positions: list[npt.NDArray[np.int64]]
    segments: list[npt.NDArray[np.int64]]
    clf_rows: list[list[int]]
    lm_rows: list[npt.NDArray[np.int64]]
    lm_targets: list[npt.NDArray[np.int64]]
    lm_example: list[npt.NDArray[np.int64]]
    lm_counts: list[npt.NDArray[np.int64]]
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
        example: int,
        rows: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
    ) -> None:
        """Append targets of the language model.

        Args:
            example: the example of the targets.
            rows: the rows of [N] after which the targets are predicted.
            targets: rows of ``we``, one per row.
            counts: a row of ``lm_counts`` [S], which all these targets have.
        """
        self.lm_rows.append(rows)
        self.lm_targets.append(targets)
        self.lm_example.append(np.full(len(rows), example))
        self.lm_counts.append(np.tile(counts, (len(rows), 1)))


LEAST_SAVED = 0.1
"""Share of the tokens that shared prefixes must save in order to be used."""


def pack(split: EncodedSplit, clf_token: int, *, share_prefix: bool) -> Batch:
    """Pack examples for the model, without padding.

    Without dropout ``share_prefix`` does not change the states, logits and losses of a sequence. In
    the place of a missing answer there is a sequence of the single token ``_classify_`` after the
    shared prefix, so that all examples have S sequences; it has no part in the losses.

    Args:
        split: the examples.
        clf_token: id of ``_classify_``; the rows of the positions follow it.
        share_prefix: whether the longest common prefix of an example's sequences is packed once.
            The sequences then share a block, and no sequence sees the rest of another. Prefixes
            that save less than :data:`LEAST_SAVED` of the tokens, such as those of two texts in
            both orders, are not shared, because the longer blocks would take more time.
    """
    present = split.lengths > 0
    found = [
        [_with_positions(ids, clf_token + 1) for ids in split.sequences(b)]
        for b in range(split.n_examples)
    ]
    shared = [_common_prefix([ids for ids in each if len(ids)], clf_token) for each in found]
    saved = sum(prefix * (n - 1) for prefix, n in zip(shared, present.sum(1), strict=True))
    share_prefix = share_prefix and saved >= max(1, LEAST_SAVED * len(split.ids))
    packing = _Packing([], [], [], [], [], [], [], [])
    for b, sequences in enumerate(found):
        # Row s: the counts of the targets that only sequence s has.
        counts = np.diag(np.maximum(split.lengths[b].astype(np.int64) - 1, 0))
        prefix = shared[b] if share_prefix else 0
        first = next(ids for ids in sequences if len(ids))
        missing = _with_positions(np.append(first[:prefix, 0], clf_token), clf_token + 1)
        sequences = [ids if len(ids) else missing for ids in sequences]
        if share_prefix:
            _add_with_shared_prefix(packing, b, sequences, counts, clf_token, prefix)
        else:
            _add_sequences(packing, b, sequences, counts, clf_token)
    return _to_batch(packing, split.targets, present, with_segments=share_prefix)


def pack_answers(split: EncodedSplit, first_position: int) -> Batch:
    """Pack contexts and their answers, to predict the tokens of the answers and no others.

    A block is an example: its context once, then each answer without its last token, which is
    predicted and not read. No answer sees another one, and each answer's positions follow those of
    the context. There is no ``_classify_`` token, and an answer that is missing has no targets.

    Args:
        split: the examples. The first sequence of each is its context, of at least one token; the S
            others are its answers.
        first_position: the row of ``we`` for position 0.
    """
    lengths = split.lengths[:, 1:].astype(np.int64)
    packing = _Packing([], [], [], [], [], [], [], [])
    for b, own_lengths in enumerate(lengths):
        context, *answers = split.sequences(b)
        counts = np.diag(own_lengths)
        after = first_position + len(context)
        rests = [_with_positions(answer[:-1], after) for answer in answers]
        parts = [_with_positions(context, first_position), *rests]
        begin = packing.add_block(parts, list(range(len(parts)))) + len(context)
        last = begin - 1  # The first token of every answer is predicted after the context.
        for s, (answer, rest) in enumerate(zip(answers, rests, strict=True)):
            rows = np.concatenate([[last], begin + np.arange(len(rest))])[: len(answer)]
            packing.add_targets(b, rows, answer, counts[s])
            begin += len(rest)
        packing.clf_rows.append([])
    return _to_batch(packing, None, lengths > 0, with_segments=lengths.shape[1] > 1)


def _with_positions(ids: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    """Return the rows of ``we`` for tokens and positions, [length, 2].

    Args:
        ids: token ids.
        first: the row of ``we`` for the position of the first one.
    """
    return np.stack([ids, first + np.arange(len(ids))], axis=1)


def _first_classify(sequence: npt.NDArray[np.int64], clf_token: int) -> int:
    """Return the index of the first ``_classify_`` (the original's argmax over equality)."""
    return int(np.argmax(sequence[:, 0] == clf_token))


def _add_sequences(
    packing: _Packing,
    example: int,
    sequences: list[npt.NDArray[np.int64]],
    counts: npt.NDArray[np.int64],
    clf_token: int,
) -> None:
    """Append the sequences of one example to ``packing``, one block per sequence.

    Args:
        packing: the batch so far.
        example: the number of the example in the batch.
        sequences: S arrays [length, 2], rows of ``we`` for tokens and positions.
        counts: [S, S]; row s is the row of ``lm_counts`` of the targets that only sequence s has.
        clf_token: id of ``_classify_``.
    """
    clf_rows = []
    for s, sequence in enumerate(sequences):
        first = packing.add_block([sequence], [0])
        clf_rows.append(first + _first_classify(sequence, clf_token))
        rows = first + np.arange(len(sequence) - 1)
        packing.add_targets(example, rows, sequence[1:, 0], counts[s])
    packing.clf_rows.append(clf_rows)


def _add_with_shared_prefix(
    packing: _Packing,
    example: int,
    sequences: list[npt.NDArray[np.int64]],
    counts: npt.NDArray[np.int64],
    clf_token: int,
    shared: int,
) -> None:
    """Append the sequences of one example as one block: the common prefix, then each rest.

    The arguments are those of :func:`_add_sequences`, and the length of the prefix.
    """
    prefix, rests = sequences[0][:shared], [sequence[shared:] for sequence in sequences]
    first = packing.add_block([prefix, *rests], list(range(len(sequences) + 1)))
    prefix_rows = first + np.arange(shared)
    packing.add_targets(example, prefix_rows[:-1], prefix[1:, 0], counts.sum(0))
    clf_rows, begin = [], first + shared
    for s, rest in enumerate(rests):
        own = begin + np.arange(len(rest))
        clf_rows.append(begin + _first_classify(rest, clf_token))
        # The language model predicts the first token of every rest after the last of the prefix.
        rows = np.concatenate([prefix_rows[-1:], own[:-1]])
        packing.add_targets(example, rows, rest[len(rest) - len(rows) :, 0], counts[s])
        begin += len(rest)
    packing.clf_rows.append(clf_rows)


def _common_prefix(sequences: list[npt.NDArray[np.int64]], clf_token: int) -> int:
    """Return the length of the longest common prefix before the first ``_classify_``."""
    shortest = min(_first_classify(sequence, clf_token) for sequence in sequences)
    same = np.ones(shortest, dtype=bool)
    for sequence in sequences[1:]:
        same &= (sequence[:shortest] == sequences[0][:shortest]).all(-1)
    return shortest if same.all() else int(np.argmin(same))


def _to_batch(
    packing: _Packing,
    targets: npt.NDArray[Any] | None,
    present: npt.NDArray[np.bool_],
    *,
    with_segments: bool,
) -> Batch:
    """Concatenate the lists to tensors, and give each token its slot in the grid."""
    lengths = [len(block) for block in packing.tokens]
    G, T = len(lengths), max(lengths)
    slots = [row * T + np.arange(length) for row, length in enumerate(lengths)]
    segments = None
    if with_segments:
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
        clf_rows=torch.tensor(packing.clf_rows, dtype=torch.int64),
        lm_rows=tensor(packing.lm_rows),
        lm_targets=tensor(packing.lm_targets),
        lm_example=tensor(packing.lm_example),
        lm_counts=tensor(packing.lm_counts),
        n_sequences=int(present.sum()),
        present=None if present.all() else torch.from_numpy(present),
        targets=None if targets is None else torch.from_numpy(_for_cross_entropy(targets)),
    )
