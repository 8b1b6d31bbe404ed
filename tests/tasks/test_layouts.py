"""The four shapes of a task: their sequences, and how long texts are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1.tasks import (
    Choices,
    Classification,
    Entailment,
    Layout,
    Similarity,
    StoryChoices,
)
from gpt1.tasks.layouts import max_part_length
from gpt1.text_utils.special import SpecialTokens

SPECIAL = SpecialTokens.after(10)
START, DELIMITER, CLASSIFY = 10, 11, 12


@pytest.mark.parametrize(
    ("layout", "texts", "expected"),
    [
        (Classification(), [[1, 2]], [[START, 1, 2, CLASSIFY]]),
        (Entailment(), [[1, 2], [3]], [[START, 1, 2, DELIMITER, 3, CLASSIFY]]),
        (
            Similarity(),
            [[1, 2], [3]],
            [[START, 1, 2, DELIMITER, 3, CLASSIFY], [START, 3, DELIMITER, 1, 2, CLASSIFY]],
        ),
        (
            StoryChoices(),
            [[1], [2], [3, 4]],
            [[START, 1, DELIMITER, 2, CLASSIFY], [START, 1, DELIMITER, 3, 4, CLASSIFY]],
        ),
        (
            Choices(),
            [[1], [2], [3, 4], [5]],
            [
                [START, 1, DELIMITER, 2, CLASSIFY],
                [START, 1, DELIMITER, 3, 4, CLASSIFY],
                [START, 1, DELIMITER, 5, CLASSIFY],
            ],
        ),
        (
            Choices(has_question=True),
            [[1, 2], [3], [4], [5]],
            [[START, 1, 2, 3, DELIMITER, 4, CLASSIFY], [START, 1, 2, 3, DELIMITER, 5, CLASSIFY]],
        ),
        (Choices(), [[1], [2], [], [5]], [[10, 1, 11, 2, 12], [], [10, 1, 11, 5, 12]]),
    ],
)
def test_sequences_of_each_shape(
    layout: Layout, texts: list[list[int]], expected: list[list[int]]
) -> None:
    assert layout.sequences(texts, SPECIAL, 512) == expected


@pytest.mark.parametrize(
    ("layout", "lengths", "kept"),
    [
        # One text: all but two of the tokens. Two texts: each half, less two (the original's rule).
        (Classification(), [30], [[18]]),
        (Entailment(), [30, 3], [[8, 3]]),
        (Entailment(), [3, 30], [[3, 8]]),
        (Similarity(), [30, 3], [[8, 3], [3, 8]]),
        (StoryChoices(), [30, 3, 30], [[8, 3], [8, 8]]),
        # Choices: the context is cut, by the same number of tokens for all answers.
        (Choices(), [30, 3, 5], [[12, 3], [12, 5]]),
        (Choices(has_question=True), [30, 4, 3, 5], [[12, 3], [12, 5]]),
        (Choices(has_question=True), [30, 9, 8, 1], [[9, 8], [9, 1]]),
        (Choices(has_question=True), [30, 9, 9, 1], [[9, 8], [9, 1]]),
        (Choices(), [30, 30, 1], [[9, 8], [9, 1]]),
    ],
)
def test_what_is_kept_of_long_texts(
    layout: Layout, lengths: list[int], kept: list[list[int]]
) -> None:
    texts = [[i] * length for i, length in enumerate(lengths)]
    found = []
    for sequence in layout.sequences(texts, SPECIAL, 20):
        inner = sequence[1:-1]
        at = inner.index(DELIMITER) if DELIMITER in inner else len(inner)
        found.append([len(part) for part in (inner[:at], inner[at + 1 :]) if part])
        assert len(sequence) <= 20
    assert found == kept


def test_the_article_is_cut_and_not_the_question() -> None:
    article, question, answers = list(range(10)) * 3, [7, 7, 7], [[1], [2, 2]]
    found = Choices(has_question=True).sequences([article, question, *answers], SPECIAL, 20)
    assert [ids[1 : ids.index(DELIMITER)] for ids in found] == [article[:12] + question] * 2
    # A context of which simply the end is cut off would have lost its question.
    assert (article + question)[:15][-3:] != question


ids = st.lists(st.integers(0, 9), max_size=40)
some = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(ids, ids, st.lists(some, min_size=1, max_size=5), st.integers(6, 40), st.booleans())
def test_choices_fit_and_share_their_context(
    context: list[int],
    question: list[int],
    answers: list[list[int]],
    n_ctx: int,
    has_question: bool,
) -> None:
    texts = [context, *([question] if has_question else []), *answers]
    found = Choices(has_question).sequences(texts, SPECIAL, n_ctx)
    own = question if has_question else []
    longest = max(map(len, answers))
    for sequence, answer in zip(found, answers, strict=True):
        assert len(sequence) <= n_ctx
        at = sequence.index(DELIMITER)
        assert (sequence[0], sequence[-1]) == (START, CLASSIFY)
        assert sequence[: at + 1] == found[0][: at + 1]
        assert answer[: len(sequence) - at - 2] == sequence[at + 1 : -1]
        if len(own) + longest <= n_ctx - 3:  # Question and answers are whole.
            assert sequence[at + 1 : -1] == answer
            assert sequence[1:at][len(sequence[1:at]) - len(own) :] == own
            room = n_ctx - 3 - len(own) - longest
            assert sequence[1 : at - len(own)] == context[:room]


@given(ids, ids, st.integers(6, 40))
def test_both_orders_hold_the_same_tokens(first: list[int], second: list[int], n_ctx: int) -> None:
    one, other = Similarity().sequences([first, second], SPECIAL, n_ctx)
    keep = max_part_length(n_ctx)
    assert one == [START, *first[:keep], DELIMITER, *second[:keep], CLASSIFY]
    assert other == [START, *second[:keep], DELIMITER, *first[:keep], CLASSIFY]
