"""Byte pairs: the incremental counts give the merges of the plain definition."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_pieces import ADVERSARIAL

from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.learning import (
    NEWLINE,
    count_words,
    learn_merges,
    tokens_of,
    write_vocabulary,
)
from gpt1.text_utils.vocabulary import RELEASED_NAMES, require_match
from gpt1.text_utils.words import EnglishWords, repair, text_standardize

RULES = EnglishWords("2.0")


def plain_merges(
    counts: dict[str, int], n_merges: int | None, min_count: int
) -> list[tuple[str, str]]:
    """Count all pairs anew after each merge."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts if word != NEWLINE}
    merges: list[tuple[str, str]] = []
    while n_merges is None or len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        ranked = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
        if not ranked or pairs[ranked[0]] < min_count:
            break
        first, second = ranked[0]
        merges.append((first, second))
        for symbols in words.values():
            at = 0
            while at < len(symbols) - 1:
                if symbols[at : at + 2] == [first, second]:
                    symbols[at : at + 2] = [first + second]
                at += 1
    return merges


COUNTS = st.dictionaries(
    st.text("aab", min_size=1, max_size=9)
    | st.text("abcé", min_size=1, max_size=6)
    | st.just("\n"),
    st.integers(1, 4) | st.integers(1, 1000),
    max_size=12,
)


@given(counts=COUNTS, n_merges=st.none() | st.integers(0, 20), min_count=st.integers(1, 4))
def test_merges_are_those_of_the_plain_definition(
    counts: dict[str, int], n_merges: int | None, min_count: int
) -> None:
    expected = plain_merges(counts, n_merges, min_count)
    assert learn_merges(counts, n_merges, min_count=min_count) == expected
    backwards = dict(reversed(counts.items()))
    assert learn_merges(backwards, n_merges, min_count=min_count) == expected


def test_merges_of_known_words() -> None:
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    merges = learn_merges(counts, 4, min_count=1)
    assert merges == [("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w")]
    assert learn_merges({"aaaa": 1}, min_count=1)[0] == ("a", "a")
    assert learn_merges({"ab": 1, "cd": 1}, 1, min_count=1) == [("a", "b</w>")]  # the first of two
    assert learn_merges({}, 5, min_count=1) == []


@given(text=ADVERSARIAL)
def test_words_are_counted_as_they_are_encoded(text: str) -> None:
    words = RULES.split(text_standardize(repair(text)))
    expected = Counter(NEWLINE if word.isspace() else word.lower() for word in words)
    assert count_words(repair(text), RULES) == expected


def test_a_learned_vocabulary_is_read_and_encodes_its_text(tmp_path: Path) -> None:
    text = "The lowest of the low.\nIt's lower than the lowest!\n\nLow, lower, lowest."
    counts = count_words(text, RULES)
    merges = learn_merges(counts, 9, min_count=2)
    assert len(merges) == 9
    tokens = tokens_of(counts, merges)
    files = tmp_path / RELEASED_NAMES[0], tmp_path / RELEASED_NAMES[1]
    write_vocabulary(*files, tokens, merges)
    require_match(files[1], {pair: i for i, pair in enumerate(merges)}, tokens)
    encoder = TextEncoder(*files, check_merges=True)
    assert encoder.encoder == tokens
    (ids,) = encoder.encode([text])
    assert 0 not in ids  # no unknown token, the newline included
    assert encoder.decode(ids).split("\n")[1] == "it 's lower than the lowest !"
    assert list(tokens)[:2] == ["<unk>", "\n"]
    assert list(tokens.values()) == list(range(len(tokens)))
