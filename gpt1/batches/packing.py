"""Encoded stories to the arrays of the original, and those to what the model computes on.

Axes: B stories, C choices (2), T positions, N packed tokens.

The original hands its model padded arrays X [B, C, T, 2] and M [B, C, T]. Ours computes on
real tokens only: :func:`pack` lays the tokens of a batch one after another, [N], and keeps
for each its place in the short padded form that attention alone needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt1.text_utils.special import SpecialTokens

Ids = Sequence[int]


class EncodedCloze(NamedTuple):
    """Token ids of a split: stories, first and second endings, labels where known."""

    stories: list[list[int]]
    endings1: list[list[int]]
    endings2: list[list[int]]
    labels: list[int] | None


class ChoiceArrays(NamedTuple):
    """A split as the original's arrays.

    X: int32 [n, C, T, 2], rows of ``we`` for token and position, padding token 0 last.
    M: float32 [n, C, T], 1 on tokens and 0 on padding.
    Y: int32 [n], the index of the right choice; None where it is not known.
    """

    X: npt.NDArray[np.int32]
    M: npt.NDArray[np.float32]
    Y: npt.NDArray[np.int32] | None

    def take(self, rows: slice | npt.NDArray[np.int64]) -> ChoiceArrays:
        """The stories at ``rows``, in that order."""
        return ChoiceArrays(self.X[rows], self.M[rows], None if self.Y is None else self.Y[rows])

    @property
    def n_stories(self) -> int:
        """Stories in these arrays."""
        return len(self.X)


def max_part_length(n_ctx: int) -> int:
    """Tokens kept of a story and of an ending each, so that both and 3 specials fit."""
    return n_ctx // 2 - 2


def context_length(splits: Sequence[EncodedCloze], n_ctx: int) -> int:
    """The longest choice over all splits in tokens, at most ``n_ctx`` (FIDELITY: 77 here)."""
    keep = max_part_length(n_ctx)
    longest = max(
        len(story[:keep]) + max(len(one[:keep]), len(two[:keep])) + 3
        for split in splits
        for story, one, two in zip(split.stories, split.endings1, split.endings2, strict=True)
    )
    return min(longest, n_ctx)


def transform_roc(
    split: EncodedCloze, special: SpecialTokens, *, n_ctx: int, max_len: int
) -> ChoiceArrays:
    """Lay out each story with each of its endings (the original's ``transform_roc``).

    A choice is ``start story[:max_len] delimiter ending[:max_len] classify``.

    Args:
        split: token ids.
        special: ids of the three special tokens; position rows follow them.
        n_ctx: T, from :func:`context_length`.
        max_len: from :func:`max_part_length` of the ``n_ctx`` *flag*, not of T.
    """
    n = len(split.stories)
    X = np.zeros((n, 2, n_ctx, 2), dtype=np.int32)
    M = np.zeros((n, 2, n_ctx), dtype=np.float32)
    X[:, :, :, 1] = np.arange(special.classify + 1, special.classify + 1 + n_ctx)
    for i, story in enumerate(split.stories):
        for c, ending in enumerate((split.endings1[i], split.endings2[i])):
            ids = [special.start, *story[:max_len], special.delimiter]
            ids += [*ending[:max_len], special.classify]
            X[i, c, : len(ids), 0] = ids
            M[i, c, : len(ids)] = 1
    labels = None if split.labels is None else np.asarray(split.labels, dtype=np.int32)
    return ChoiceArrays(X, M, labels)


@dataclass(frozen=True)
class Batch:
    """B stories of C choices, packed: N tokens in S blocks, a block attending to itself.

    A block is one choice, or, where choices share their prefix, one story: the prefix once,
    then what follows it in each choice.

    Attributes:
        tokens, positions: int64 [N], rows of ``we``.
        slots: int64 [N], where each token stands in the padded [S * T] grid of attention.
        segments: int64 [S, T], 0 for a token that all later ones of its block may see, c + 1
            for one that only choice c sees; None when blocks are single choices.
        grid: (S, T).
        clf_rows: int64 [B, C], rows of [N] that hold the first ``_classify_`` token.
        lm_rows, lm_targets, lm_story: int64 [R], the row that predicts, the row of ``we`` it
            must predict, and the story this is counted for.
        lm_weights: float32 [R, C], its share in the loss of each choice's sequence:
            1 / (sequence length - 1), or 0 if the pair is not part of that sequence.
        labels: int64 [B], or None.
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
        """The same batch on ``device``; from pinned memory the copy does not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in pinned memory, which a GPU copies from without waiting."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = change(value) if isinstance(value, Tensor) else value
        return Batch(**values)

    @property
    def n_stories(self) -> int:
        """B, stories in the batch."""
        return self.clf_rows.shape[0]

    def visible(self) -> Tensor | None:
        """Who may look at whom: bool [S, 1, T, T], or None for the causal mask alone."""
        if self.segments is None:
            return None
        T = self.grid[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=self.segments.device).tril()
        looks, at = self.segments[:, :, None], self.segments[:, None, :]
        return (causal & ((at == 0) | (at == looks)))[:, None]

    def visible_to_clf(self) -> Tensor:
        """What the C or single `_classify_` tokens of each block see: bool [S, 1, C or 1, T]."""
        S, T = self.grid
        slots = self.slots[self.clf_rows].view(S, -1, 1)
        places = torch.arange(T, device=slots.device)
        sees = places <= slots % T
        if self.segments is not None:
            own = self.segments.view(-1)[slots]  # [S, C, 1]
            at = self.segments[:, None]  # [S, 1, T]
            sees &= (at == 0) | (at == own)
        return sees[:, None]


@dataclass
class _Packing:
    """Lists that grow while :func:`pack` walks over the stories."""

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
        """Append a block made of ``parts`` [length, 2]; returns its first row."""
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
        """Row ``rows[i]`` must predict ``targets[i]``, with a weight for each choice."""
        self.lm_rows.append(rows)
        self.lm_targets.append(targets)
        self.lm_story.append(np.full(len(rows), story))
        self.lm_weights.append(np.tile(np.asarray(weights, dtype=np.float32), (len(rows), 1)))


def pack(arrays: ChoiceArrays, clf_token: int, *, share_prefix: bool) -> Batch:
    """Pack stories for the model: no padding, and if asked no prefix twice.

    With ``share_prefix`` the longest common prefix of a story's choices is laid down once;
    what follows restarts at the prefix's end, and one choice does not see another's part.
    Every number a sequence produces without dropout is the same either way.

    Args:
        arrays: X [B, C, T, 2], M [B, C, T] (ones first) and Y [B] or None.
        clf_token: id of ``_classify_``.
        share_prefix: whether choices share the block of their common prefix.
    """
    B, C = arrays.X.shape[:2]
    lengths = arrays.M.sum(-1).astype(np.int64)
    packing = _Packing([], [], [], [], [], [], [], [])
    for b in range(B):
        choices = [arrays.X[b, c, : lengths[b, c]].astype(np.int64) for c in range(C)]
        weights = (
            np.eye(C) / np.maximum(lengths[b] - 1, 1)[:, None]
        )  # row c: the weights of choice c's own
        if share_prefix:
            _add_story(packing, b, choices, weights, clf_token)
        else:
            _add_choices(packing, b, choices, weights, clf_token)
    return _to_batch(packing, arrays.Y, share_prefix)


def _first_classify(choice: npt.NDArray[np.int64], clf_token: int) -> int:
    """Index of the first ``_classify_`` token (the original's argmax over equality)."""
    return int(np.argmax(choice[:, 0] == clf_token))


def _add_choices(
    packing: _Packing,
    story: int,
    choices: list[npt.NDArray[np.int64]],
    weights: npt.NDArray[np.float64],
    clf_token: int,
) -> None:
    """A block for each choice."""
    clf_rows = []
    for c, choice in enumerate(choices):
        first = packing.add_block([choice], [0])
        clf_rows.append(first + _first_classify(choice, clf_token))
        rows = first + np.arange(len(choice) - 1)
        packing.add_targets(story, rows, choice[1:, 0], weights[c].tolist())
    packing.clf_rows.append(clf_rows)


def _add_story(
    packing: _Packing,
    story: int,
    choices: list[npt.NDArray[np.int64]],
    weights: npt.NDArray[np.float64],
    clf_token: int,
) -> None:
    """One block: the common prefix, then the rest of each choice."""
    shared = _common_prefix(choices, clf_token)
    rests = [choice[shared:] for choice in choices]
    first = packing.add_block([choices[0][:shared], *rests], list(range(len(choices) + 1)))
    prefix_rows = first + np.arange(shared)
    packing.add_targets(story, prefix_rows[:-1], choices[0][1:shared, 0], weights.sum(0).tolist())
    clf_rows, begin = [], first + shared
    for c, rest in enumerate(rests):
        own = begin + np.arange(len(rest))
        clf_rows.append(begin + _first_classify(rest, clf_token))
        # The prefix's last row predicts the first token of every rest.
        rows = np.concatenate([prefix_rows[-1:], own[:-1]])
        packing.add_targets(story, rows, rest[len(rest) - len(rows) :, 0], weights[c].tolist())
        begin += len(rest)
    packing.clf_rows.append(clf_rows)


def _common_prefix(choices: list[npt.NDArray[np.int64]], clf_token: int) -> int:
    """Tokens that all choices begin with; their first ``_classify_`` is never among them."""
    shortest = min(_first_classify(choice, clf_token) for choice in choices)
    same = np.ones(shortest, dtype=bool)
    for choice in choices[1:]:
        same &= (choice[:shortest] == choices[0][:shortest]).all(-1)
    return shortest if same.all() else int(np.argmin(same))


def _to_batch(packing: _Packing, labels: npt.NDArray[np.int32] | None, share_prefix: bool) -> Batch:
    """The lists as tensors, with each token's slot in the padded grid."""
    lengths = [len(block) for block in packing.tokens]
    S, T = len(lengths), max(lengths)
    slots = [s * T + np.arange(length) for s, length in enumerate(lengths)]
    segments = None
    if share_prefix:
        # Padding counts as seen by all: causality hides it from every real token.
        grid = np.zeros((S, T), dtype=np.int64)
        grid.ravel()[np.concatenate(slots)] = np.concatenate(packing.segments)
        segments = torch.from_numpy(grid)

    def tensor(parts: list[npt.NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return Batch(
        tokens=tensor(packing.tokens),
        positions=tensor(packing.positions),
        slots=tensor(slots),
        segments=segments,
        grid=(S, T),
        clf_rows=torch.tensor(packing.clf_rows),
        lm_rows=tensor(packing.lm_rows),
        lm_targets=tensor(packing.lm_targets),
        lm_story=tensor(packing.lm_story),
        lm_weights=torch.from_numpy(np.concatenate(packing.lm_weights)),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )
