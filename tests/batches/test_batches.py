"""Arrays made of encoded stories, and packed batches made of arrays."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cloze import EncodedCloze, lay_out
from hypothesis import given
from hypothesis import strategies as st
from padded import Padded, padded

from gpt1.batches.packing import LEAST_SAVED, Batch, pack
from gpt1.batches.task_data import load_task_data
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.tasks import Example, Splits
from gpt1.tasks.layouts import max_part_length
from gpt1.text_utils.special import N_SPECIAL, SPECIAL_TOKENS, SpecialTokens

if TYPE_CHECKING:
    from gpt1.batches.task_data import TaskData

N_VOCAB = 4  # few, so that tokens repeat in stories and endings begin alike
SPECIAL = SpecialTokens.after(N_VOCAB)
START, DELIMITER, CLASSIFY = 4, 5, 6
FIRST_POSITION = 7

# ---------------------------------------------------------------------------------- arrays


def test_special_tokens_follow_the_vocabulary() -> None:
    assert SpecialTokens.after(40478) == SpecialTokens(40478, 40479, 40480)
    assert len(SPECIAL_TOKENS) == N_SPECIAL == 3


def test_parts_leave_room_for_each_other_and_three_special_tokens() -> None:
    assert [max_part_length(n) for n in (512, 77, 20, 9)] == [254, 36, 8, 2]
    assert all(2 * max_part_length(n) + 3 <= n for n in range(8, 600))


def test_transform_roc_by_hand() -> None:
    split = EncodedCloze([[1, 2, 3], [0]], [[3], [1, 1]], [[2, 0], [3]], [1, 0])
    arrays = lay_out(split, SPECIAL, length=9)
    assert arrays.X.dtype == arrays.Y.dtype == np.int32
    assert arrays.M.dtype == np.float32
    assert len(arrays.X) == 2
    assert arrays.X[..., 0].tolist() == [
        [[4, 1, 2, 3, 5, 3, 6, 0, 0], [4, 1, 2, 3, 5, 2, 0, 6, 0]],
        [[4, 0, 5, 1, 1, 6, 0, 0, 0], [4, 0, 5, 3, 6, 0, 0, 0, 0]],
    ]
    # Positions go on over the padding, as in the original.
    assert (arrays.X[..., 1] == [7, 8, 9, 10, 11, 12, 13, 14, 15]).all()
    assert arrays.M.sum(-1).tolist() == [[7, 8], [6, 5]]
    assert (np.diff(arrays.M, axis=-1) <= 0).all()  # ones first
    assert arrays.Y.tolist() == [1, 0]


def test_story_and_ending_are_each_cut_to_max_len() -> None:
    split = EncodedCloze([[0, 1, 2, 3]], [[3, 2, 1, 0]], [[1]], None)
    arrays = lay_out(split, SPECIAL, n_ctx=8, length=8)
    assert arrays.X[0, :, :, 0].tolist() == [[4, 0, 1, 5, 3, 2, 6, 0], [4, 0, 1, 5, 1, 6, 0, 0]]
    assert arrays.Y is None


class Numbers:
    """An encoder of texts that are token ids already, of a vocabulary of four."""

    encoder = dict.fromkeys(range(N_VOCAB))

    def encode(self, texts: list[str], verbose: bool = True) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]


def loaded_length(n_ctx: int, *splits: tuple[int, int, int]) -> int:
    """T of a data set of three splits, one example each, of so many tokens per part."""
    train, valid, test = (
        [Example(tuple("1 " * length for length in lengths), 0, "story 1")] for lengths in splits
    )
    found = Splits(train, valid, {"ROCStories": test})
    task = replace(ROCSTORIES, read=lambda data_dir: found)
    encoder: Any = Numbers()
    return load_task_data(task, "", encoder, n_ctx=n_ctx).n_ctx


def test_the_length_is_that_of_the_longest_choice_of_all_splits() -> None:
    short, long = (1, 1, 1), (5, 6, 1)
    assert loaded_length(512, short, short, short) == 5
    for splits in ((long, short, short), (short, long, short), (short, short, long)):
        assert loaded_length(512, *splits) == 5 + 6 + 3


def test_the_length_counts_parts_as_they_are_cut() -> None:
    assert loaded_length(20, (50, 3, 4), (1, 1, 1), (1, 1, 1)) == 8 + 4 + 3
    assert loaded_length(20, (50, 50, 1), (1, 1, 1), (1, 1, 1)) == 19
    assert loaded_length(512, (50, 50, 1), (1, 1, 1), (1, 1, 1)) == 103


def test_take_keeps_order_and_missing_labels() -> None:
    split = EncodedCloze([[0], [1], [2]], [[1]] * 3, [[2]] * 3, [0, 1, 1])
    arrays = lay_out(split, SPECIAL)
    taken = arrays.take(np.array([2, 0]))
    assert taken.X[:, 0, 1, 0].tolist() == [2, 0]
    assert taken.Y.tolist() == [1, 0]
    assert arrays._replace(Y=None).take(slice(1, 3)).Y is None


# --------------------------------------------------------------------------------- packing

ids = st.lists(st.integers(0, N_VOCAB - 1), max_size=5)
stories = st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=4)


@st.composite
def any_arrays(draw: st.DrawFn) -> Padded:
    """Draw arrays of stories, some with a ``_classify_`` inside or with different first tokens."""
    split = EncodedCloze(*map(list, zip(*draw(stories), strict=True)), labels=None)
    arrays = lay_out(split, SPECIAL, n_ctx=20)
    for b in range(len(arrays.X)):
        if draw(st.integers(0, 4)) == 0:
            length = int(arrays.M[b].sum(-1).min())
            arrays.X[b, :, draw(st.integers(0, length - 1)), 0] = CLASSIFY
        if draw(st.integers(0, 9)) == 0:
            arrays.X[b, 1, 0, 0] = 0
    return arrays


Choice = list[tuple[int, int]]


def choices_of(arrays: Padded) -> list[list[Choice]]:
    """Return the real tokens of each choice of each story, as (token, position)."""
    return [
        [
            [tuple(pair) for pair, real in zip(X.tolist(), M, strict=True) if real]
            for X, M in zip(story_X, story_M, strict=True)
        ]
        for story_X, story_M in zip(arrays.X, arrays.M, strict=True)
    ]


def first_classify(choice: Choice) -> int:
    return [token for token, _ in choice].index(CLASSIFY)


def shared_length(choices: list[Choice]) -> int:
    """Return the length of the common prefix of all choices before their first ``_classify_``."""
    limit = min(first_classify(choice) for choice in choices)
    columns = zip(*(choice[:limit] for choice in choices), strict=True)
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


def rows_of(batch: Batch, arrays: Padded, share_prefix: bool) -> list[list[list[int]]]:
    """Return the packed rows of each choice of each story, in order."""
    rows, begin = [], 0
    for choices in choices_of(arrays):
        shared = shared_length(choices) if share_prefix else 0
        prefix = list(range(begin, begin + shared))
        begin += shared
        story = []
        for choice in choices:
            story.append([*prefix, *range(begin, begin + len(choice) - shared)])
            begin += len(choice) - shared
        rows.append(story)
    assert begin == len(batch.tokens)  # every row belongs to a choice
    return rows


packings = given(any_arrays(), st.booleans())


def packed_choices(arrays: Padded, share_prefix: bool) -> tuple[Batch, bool]:
    """Pack stories; return the batch, and whether the stories share their prefixes there."""
    batch = pack(arrays.encoded(), CLASSIFY, share_prefix=share_prefix)
    saved = sum(shared_length(choices) for choices in choices_of(arrays))
    is_shared = share_prefix and saved >= max(1, LEAST_SAVED * arrays.M.sum())
    assert (batch.segments is not None) == is_shared
    return batch, is_shared


@packings
def test_every_choice_is_its_rows_in_order(arrays: Padded, share_prefix: bool) -> None:
    batch, share_prefix = packed_choices(arrays, share_prefix)
    assert batch.n_examples == len(arrays.X)
    packed = list(zip(batch.tokens.tolist(), batch.positions.tolist(), strict=True))
    found = [
        [[packed[row] for row in choice] for choice in story]
        for story in rows_of(batch, arrays, share_prefix)
    ]
    assert found == choices_of(arrays)


@packings
def test_rows_stand_in_the_grid_block_by_block(arrays: Padded, share_prefix: bool) -> None:
    batch, share_prefix = packed_choices(arrays, share_prefix)
    rows = rows_of(batch, arrays, share_prefix)
    if share_prefix:
        blocks = [sorted({row for choice in story for row in choice}) for story in rows]
    else:
        blocks = [choice for story in rows for choice in story]
    T = max(map(len, blocks))
    assert batch.grid == (len(blocks), T)
    for s, block in enumerate(blocks):
        assert batch.slots[block].tolist() == list(range(s * T, s * T + len(block)))


@packings
def test_attention_sees_the_choices_own_earlier_tokens(arrays: Padded, share_prefix: bool) -> None:
    batch, share_prefix = packed_choices(arrays, share_prefix)
    S, T = batch.grid
    visible = batch.visible()
    if not share_prefix:
        assert visible is None
        visible = torch.ones(T, T, dtype=torch.bool).tril().expand(S, 1, T, T)
    assert visible is not None
    assert visible.shape == (S, 1, T, T)
    assert visible.any(-1).all()  # The softmax of a row of padding alone would be NaN.
    expected = torch.zeros(len(batch.tokens), len(batch.tokens), dtype=torch.bool)
    for story in rows_of(batch, arrays, share_prefix):
        for choice in story:
            for i, row in enumerate(choice):
                expected[row, choice[: i + 1]] = True
    s, t = batch.slots // T, batch.slots % T
    found = visible[s[:, None], 0, t[:, None], t[None, :]] & (s[:, None] == s[None, :])
    assert (found == expected).all()


@packings
def test_choices_are_read_at_their_first_classify(arrays: Padded, share_prefix: bool) -> None:
    batch, share_prefix = packed_choices(arrays, share_prefix)
    rows = rows_of(batch, arrays, share_prefix)
    assert batch.clf_rows.tolist() == [
        [own[first_classify(choice)] for own, choice in zip(story, choices, strict=True)]
        for story, choices in zip(rows, choices_of(arrays), strict=True)
    ]


@packings
def test_every_token_after_the_first_is_a_target_once_a_choice(
    arrays: Padded, share_prefix: bool
) -> None:
    batch, share_prefix = packed_choices(arrays, share_prefix)
    rows = rows_of(batch, arrays, share_prefix)
    for b, choices in enumerate(choices_of(arrays)):
        for c, choice in enumerate(choices):
            counts = batch.lm_counts[:, c]
            counted = (batch.lm_example == b) & (counts > 0)
            found = sorted(
                zip(
                    batch.lm_rows[counted].tolist(),
                    batch.lm_targets[counted].tolist(),
                    strict=True,
                )
            )
            own = rows[b][c][:-1]
            assert found == sorted(zip(own, [token for token, _ in choice[1:]], strict=True))
            assert counts[counted].tolist() == [len(choice) - 1] * len(found)
            assert len(found) == len(choice) - 1


@packings
def test_what_is_shared_is_computed_once(arrays: Padded, share_prefix: bool) -> None:
    """The numbers of tokens and of (row, target) pairs follow from the lengths."""
    batch, share_prefix = packed_choices(arrays, share_prefix)
    n_tokens = n_pairs = n_in_both = 0
    for choices in choices_of(arrays):
        shared = shared_length(choices) if share_prefix else 0
        n_tokens += shared + sum(len(choice) - shared for choice in choices)
        n_pairs += sum(len(choice) - 1 for choice in choices)
        n_in_both += max(shared - 1, 0)  # pairs within the prefix
    assert len(batch.tokens) == n_tokens
    assert len(batch.lm_rows) == len(batch.lm_targets) == n_pairs - n_in_both
    assert (batch.lm_counts > 0).all(1).sum() == n_in_both


def test_packing_by_hand() -> None:
    split = EncodedCloze([[1, 2]], [[3, 0]], [[3, 1, 1]], [1])
    arrays = lay_out(split, SPECIAL, length=8)
    batch = pack(arrays.encoded(), CLASSIFY, share_prefix=True)
    #                              prefix          | 0    | 1
    assert batch.tokens.tolist() == [4, 1, 2, 5, 3, 0, 6, 1, 1, 6]
    assert batch.positions.tolist() == [7, 8, 9, 10, 11, 12, 13, 12, 13, 14]
    assert batch.slots.tolist() == list(range(10))
    assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch.clf_rows.tolist() == [[6, 9]]
    pairs = zip(batch.lm_rows.tolist(), batch.lm_targets.tolist(), strict=True)
    assert list(pairs) == [
        *((0, 1), (1, 2), (2, 5), (3, 3)),
        *((4, 0), (5, 6)),
        *((4, 1), (7, 1), (8, 6)),
    ]
    assert batch.lm_counts.tolist() == [[6, 7]] * 4 + [[6, 0]] * 2 + [[0, 7]] * 3
    assert batch.targets.tolist() == [1]


@pytest.mark.parametrize("share_prefix", [False, True])
def test_batches_move_whole(share_prefix: bool) -> None:
    split = EncodedCloze([[1, 2]], [[3]], [[2]], None)
    arrays = lay_out(split, SPECIAL, length=8)
    batch = pack(arrays.encoded(), CLASSIFY, share_prefix=share_prefix)
    moved = batch.to(torch.device("meta"))
    assert {moved.tokens.device.type, moved.clf_rows.device.type} == {"meta"}
    assert moved.lm_counts.device.type == "meta"
    assert (moved.segments is None) == (not share_prefix)
    assert moved.grid == batch.grid
    assert moved.targets is None


# --------------------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def load_real(rocstories_dir: Path, released_dir: Path) -> Callable[[str], TaskData]:
    """Read and encode the real data as a run does, with the given special cases of words."""
    from gpt1.settings.training import parse
    from gpt1.training.prepare import load_data
    from gpt1.training.sources import find_sources

    places = ["--data_dir", str(rocstories_dir), "--model_dir", str(released_dir)]
    places += ["--n_transfer", "-1"]  # The weights are not needed.

    def load(spacy_rules: str) -> TaskData:
        run_settings = parse([*places, "--spacy_rules", spacy_rules])
        sources = find_sources(run_settings, ROCSTORIES)
        return load_data(run_settings, sources, verbose=False)

    return load


def test_real_arrays_are_the_originals_bit_for_bit(
    load_real: Callable[[str], TaskData], references_dir: Path
) -> None:
    task = load_real("installed")  # The recorded run of the original used spaCy 3.8.
    with np.load(references_dir / "rocstories_run.npz") as expected:
        assert task.n_ctx == int(expected["n_ctx"]) == 77
        splits = {"tr": task.train, "va": task.valid, "te": task.predicted["ROCStories"]}
        for name, split in splits.items():
            X = padded(split, task.n_vocab + N_SPECIAL, task.n_ctx).X
            assert X.shape == tuple(expected[f"shape_{name}X"])
            assert X.dtype == np.int32
            assert hashlib.sha256(X.tobytes()).hexdigest() == str(expected[f"sha256_{name}X"]), name
        np.testing.assert_array_equal(task.train.targets, expected["trY"])
        np.testing.assert_array_equal(task.valid.targets, expected["vaY"])


def test_special_cases_of_the_released_models_time_change_three_real_stories(
    load_real: Callable[[str], TaskData],
) -> None:
    """Therefore the hashes above also hold under the default rules for all other stories."""
    old, new = load_real("2.0"), load_real("installed")
    assert old.n_ctx == new.n_ctx
    differing = []
    for one, two in (
        (old.train, new.train),
        (old.valid, new.valid),
        (old.predicted["ROCStories"], new.predicted["ROCStories"]),
    ):
        pairs = [(one.sequences(b), two.sequences(b)) for b in range(one.n_examples)]
        differing.append(sum(str(ours) != str(theirs) for ours, theirs in pairs))
    assert differing == [1, 0, 2]
