"""A document in pieces has the ids of the whole document, wherever it is cut."""

from __future__ import annotations

from pathlib import Path

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_text_utils import HARD, TEXTS, write_files

from gpt1.text_utils import pieces, words
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.pieces import Joint, Piece, cut, parts_of
from gpt1.text_utils.words import EnglishWords, repair, text_standardize

RULES = EnglishWords("2.0")

# What rules that look at neighbours might look at across the end of a line or a long line's cut.
EDGES = [
    *("\n", "\n\n", " \n\t\n ", "\r\n", "\r", "\u2028", "\x85", "\x0c", "\u00a0\n", "\n\u3000"),
    *(
        "<b>",
        "<",
        "&lt;",
        "&amp;amp;",
        "&nbsp;\n",
        "\n&#32;\n",
        "&#10;",
        "&",
        "&amp\n;",
        "\x1b[0m\n",
    ),
    *(
        "\x1b[\n0m",
        "\x07\n",
        "\ufeff\n",
        "e\n\u0301",
        "\u0301",
        "\ud83d",
        "\udca9",
        "\ud83d\n\udca9",
    ),
    *(
        "Ã",
        "Ã\n©",
        "â€",
        "â€™",
        "â€\n™",
        "Ã \n",
        "schÃ¶n ",
        "“",
        "”\n",
        "‘",
        "'\n'",
        '"\n"',
        "--\n--",
    ),
    *(
        "-\n-",
        "!\n!",
        "(\n=",
        "=D\n=x",
        ":\n)",
        "Mr.\n",
        "\nMr.",
        "U.S.\n",
        "a.m.\n",
        "don\n't",
        "'\nem",
    ),
    *("\\n", "\\\n", "  ", " ", "then ", "and then the ", " with that ", " quux ", "ther and"),
    *("x" * 9, "word " * 3, "gonna ", "=D ", " (=", "cannot ", " cant", "im "),
]
ADVERSARIAL = st.lists(
    st.one_of(TEXTS, st.sampled_from(EDGES), st.sampled_from(HARD.split())), max_size=12
).map("".join)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(*write_files(tmp_path_factory.mktemp("bpe")))


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let lines be cut after 40 characters, as if that was where ftfy cuts them."""
    monkeypatch.setattr(pieces, "LONGEST_SEGMENT", 40)
    return 40


def in_pieces(encoder: TextEncoder, found: list[Piece]) -> list[int]:
    """Return the ids of the pieces of one document, put together."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(encoder.encode_repaired(text))

    joint: Joint[tuple[int, ...]] = Joint()
    ids: list[int] = []
    for piece in found:
        for body in joint.add(parts_of(piece, RULES, encode), encode, encoder.newline):
            ids += body
    assert joint.carried == ""
    return ids


def of_the_whole(encoder: TextEncoder, text: str, longest: int) -> list[int]:
    """Return the ids of a document by the original's steps, one after another."""
    fixed = text_standardize(ftfy.fix_text(text, max_decode_length=longest))
    return [i for word in RULES.split(fixed) for i in encoder._word_ids(word.lower())]


def blocks(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@given(text=ADVERSARIAL, size=st.integers(1, 60), block=st.integers(1, 60))
def test_ids_do_not_depend_on_cuts_at_newlines(
    small: TextEncoder, text: str, size: int, block: int
) -> None:
    found = list(cut(blocks(text, block), size=size))
    assert "".join(piece.text for piece in found) == text
    expected = of_the_whole(small, text, 1_000_000)
    assert in_pieces(small, found) == expected
    assert small.encode([text]) == [expected] == [small._encode_directly(text)]


@given(text=ADVERSARIAL, size=st.integers(1, 40), block=st.integers(1, 60))
def test_ids_do_not_depend_on_cuts_within_long_lines(
    small: TextEncoder, short_segments: int, text: str, size: int, block: int
) -> None:
    found = list(cut(blocks(text, block), size=size))
    assert all(len(piece.text) <= short_segments for piece in found)
    assert in_pieces(small, found) == of_the_whole(small, text, short_segments)


def test_a_long_line_is_cut_between_words(small: TextEncoder, short_segments: int) -> None:
    """The parts of a line that are put together are small, so that memory does not grow."""
    text = "some words that stand apart, and then other words, and so on; " * 30
    found = list(cut([text]))
    assert len(found) == -(-len(text) // short_segments)
    assert not any(piece.ends_line for piece in found[:-1])
    bodies = [parts_of(piece, RULES, str).body for piece in found]
    assert sum(len(body or "") for body in bodies) > len(text) // 4
    assert in_pieces(small, found) == of_the_whole(small, text, short_segments)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("a then they so", "a then ", "a then "),
        ("a then they with B.", "a then ", "a then they with "),
        ("then they", None, None),  # the word may have begun before the text
        ("(then they", None, None),
        ("a then (they", None, None),
        ("a then  they", None, None),
        ("a then\nthey", None, None),
        ("a gonna they", None, None),  # part of a special case
        ("a Then they", None, None),
        ("a the they", None, None),
        ("", None, None),
    ],
)
def test_a_line_is_cut_behind_words_that_stand_apart(
    text: str, first: str | None, last: str | None
) -> None:
    ends = [find(text, RULES) for find in (pieces._first_cut, pieces._last_cut)]
    assert [end and text[:end] for end in ends] == [first, last]


def test_cuts_are_where_they_are_said_to_be() -> None:
    text = "one\ntwo\n<three>\nfour &amp; five"
    found = list(cut([text], size=9))
    assert [piece.text for piece in found] == ["one\ntwo\n", "<three>\n", "four &amp; five"]
    assert [piece.entities for piece in found] == [True, True, False]
    assert all(piece.begins_line and piece.ends_line for piece in found)
    assert [piece.ends_document for piece in found] == [False, False, True]
    assert list(cut([])) == list(cut([""])) == []


def test_the_rest_of_a_document_is_cut_as_in_the_whole() -> None:
    text = "".join(f"line {i} <b> &amp;\n" * (i % 3) for i in range(40))
    whole = list(cut([text], size=50))
    for number, piece in enumerate(whole):
        rest = text[sum(len(each.text) for each in whole[:number]) :]
        state = {"entities": piece.entities, "begins_line": piece.begins_line}
        assert list(cut([rest], size=50, **state)) == whole[number:]


@given(text=ADVERSARIAL)
def test_repair_is_what_ftfy_does(text: str) -> None:
    assert repair(text) == ftfy.fix_text(text)
    assert repair(text, entities=False) == ftfy.fix_text(text, unescape_html=False)


def test_a_segment_is_as_long_as_ftfys() -> None:
    assert words.LONGEST_SEGMENT == pieces.LONGEST_SEGMENT == 1_000_000
    assert ftfy.TextFixerConfig().max_decode_length == words.LONGEST_SEGMENT
    line = "é" * 999_999 + "&am" + "p;"
    assert repair(line) == line  # the entity is cut in two
    assert repair(line[5:]) == line[5:-5] + "&"


def test_words_that_stand_apart_are_in_no_special_case() -> None:
    assert RULES.stands_apart("then")
    for word in ("gonna", "gon", "cannot", "may", "n't", "Then.", "don't", "Mr."):
        assert not RULES.stands_apart(word), word
    matched = {token.text for case in RULES._cases for token in RULES._tokenizer(case)}
    assert not any(map(RULES.stands_apart, matched))


def test_no_special_case_reaches_across_a_newline() -> None:
    texts = {*RULES._cases, *(word for split in RULES._cases.values() for word in split)}
    assert {text for text in texts if "\n" in text} == {"\n"}
    assert RULES.split("=D \n x") == [*RULES.split("=D"), "\n ", "x"]


def test_memory_of_the_tokenizer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_LEXEMES", 2000)
    rules = EnglishWords("2.0")
    expected = [RULES.split(f"'{number}x.") for number in range(3000)]
    assert [rules.split(f"'{number}x.") for number in range(3000)] == expected
    assert len(rules._tokenizer.vocab) <= 2000


@pytest.mark.slow
def test_a_whole_file_has_the_ids_of_its_pieces(small: TextEncoder, tmp_path: Path) -> None:
    """The default sizes, with lines longer than a segment and newlines of several kinds."""
    line = "Then they said that it was so, don't you see; it's 5p.m. in the U.S. “schÃ¶n” &amp; "
    text = (line * 40 + "\n") * 60 + "\r\n" + "é" + line * 30_000 + "\n" + line
    found = list(cut(blocks(text, 1 << 20)))
    assert len(found) > 4
    assert not all(piece.ends_line for piece in found)
    assert in_pieces(small, found) == of_the_whole(small, text, 1_000_000)
