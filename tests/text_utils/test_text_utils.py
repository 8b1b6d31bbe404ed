"""Text to ids: the ids of the original, and the fast path equal to the direct one."""

from __future__ import annotations

import csv
import io
import json
import string
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt1.runtime.errors import InputError
from gpt1.text_utils import encoder as encoder_module
from gpt1.text_utils import words as words_module
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.words import EnglishWords, text_standardize

MERGES = ["t h", "th e</w>", "th e", "' s</w>", "n '", "n' t</w>", "i n", "in g</w>", "a a", "\\ n"]
LETTERS = string.printable[:95].replace(" ", "") + "éàβ½ß…“”‘’\n"
FUZZ = settings(max_examples=5 * settings.default.max_examples)  # an example takes little time


def small_vocabulary() -> dict[str, int]:
    """Return ids of all characters, inside and at the end of a word, and of all merges."""
    ends = [f"{letter}{end}" for letter in LETTERS for end in ("", "</w>")]
    merged = [line.replace(" ", "") for line in MERGES]
    return {token: i for i, token in enumerate(dict.fromkeys(["<unk>", *ends, *merged]))}


def write_files(directory: Path, merges: str | None = None) -> tuple[Path, Path]:
    vocabulary, bpe = directory / "encoder.json", directory / "merges.bpe"
    vocabulary.write_text(json.dumps(small_vocabulary()), encoding="utf-8")
    if merges is None:
        merges = "\n".join(["#version: 0.2", *MERGES, ""])
    bpe.write_text(merges, encoding="utf-8", newline="")
    return vocabulary, bpe


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(*write_files(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="module")
def released(released_dir: Path) -> TextEncoder:
    return TextEncoder(released_dir / "encoder_bpe_40000.json", released_dir / "vocab_40000.bpe")


@pytest.fixture(scope="module")
def stories(rocstories_dir: Path) -> list[str]:
    """Return the story and both endings of each row of the validation CSV, then of the test CSV."""
    texts = []
    for split in ("val", "test"):
        (path,) = rocstories_dir.glob(f"cloze_test_{split}__*.csv")
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in list(csv.reader(file))[1:]:
                texts += [" ".join(row[1:5]), row[5], row[6]]
    return texts


def words(encoder: TextEncoder, text: str) -> list[str]:
    """Return the words of ``text``, as ``decode`` separates them."""
    return encoder.decode(encoder.encode([text])[0]).split(" ")


# --- an independent transcription of docs/fidelity.md, 1 to 3 ------------------------------------


def plain_standardize(text: str) -> str:
    for old, new in {"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"}.items():
        text = text.replace(old, new)
    runs = ("".join(run) for _, run in groupby(text))
    text = "".join(f" {run} " if run[0] in '-~!";?+,)(/*[]}{|_' else run for run in runs)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    inner = [i for i, line in enumerate(lines) if line]
    return " \n ".join(lines[i] for i in inner)


def plain_bpe(word: str, merges: list[str]) -> list[str]:
    parts = [*word[:-1], word[-1] + "</w>"]
    while True:
        known = [
            merges.index(" ".join(pair)) for pair in pairwise(parts) if " ".join(pair) in merges
        ]
        if not known:
            return parts
        first, second = merges[min(known)].split()
        rebuilt, i = [], 0
        while i < len(parts):
            both = parts[i : i + 2] == [first, second]
            rebuilt.append(first + second if both else parts[i])
            i += 2 if both else 1
        parts = rebuilt


@pytest.fixture(scope="module")
def plain_words(golden_dir: Path) -> Callable[[str], list[str]]:
    """Split with spaCy's whole English pipeline and the special cases of spaCy 2.0."""
    import spacy
    from spacy.symbols import ORTH

    vintage = json.loads((golden_dir / "spacy_vintage.json").read_text("utf-8"))
    tokenizer = spacy.blank("en").tokenizer
    rules = {k: v for k, v in tokenizer.rules.items() if k not in vintage["only_in_3_8"]}
    for case, tokens in vintage["only_in_2_0"].items():
        rules[case] = [{ORTH: token} for token in tokens]
    tokenizer.rules = rules
    return lambda text: [token.text for token in tokenizer(text)]


# --- known ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [("text_encoder_cases.json", "cases"), ("spacy_vintage.json", "cases_with_2_0_rules")],
)
def test_ids_of_hard_strings(released: TextEncoder, golden_dir: Path, name: str, key: str) -> None:
    cases = json.loads((golden_dir / name).read_text("utf-8"))[key]
    texts, expected = [case["text"] for case in cases], [case["ids"] for case in cases]
    assert released.encode(texts) == expected
    assert [released._encode_directly(text) for text in texts] == expected


def test_ids_of_all_rocstories_texts(
    released: TextEncoder, stories: list[str], references_dir: Path
) -> None:
    with np.load(references_dir / "rocstories_ids.npz") as reference:
        expected = np.split(reference["ids"], reference["offsets"][1:-1])
    assert len(stories) == len(expected) == 11226
    seen = released.encode(stories)
    assert [ids.tolist() for ids in expected] == seen
    assert released.encode(stories) == seen
    assert [released._encode_directly(text) for text in stories] == seen


def test_small_vocabulary_gives_exact_ids(small: TextEncoder) -> None:
    ids = small.encoder
    assert small.encode(["The thing's", "", "  ", "\n", "x"]) == [
        [ids["the</w>"], ids["th"], ids["ing</w>"], ids["'s</w>"]],
        [],
        [],
        [],
        [ids["x</w>"]],
    ]
    assert small.encode(()) == []
    assert small.encode(text for text in ["x"]) == [[ids["x</w>"]]]


def test_packaged_special_cases_are_the_reference_ones(golden_dir: Path) -> None:
    packaged = Path(words_module.__file__).with_name("spacy_vintage.json").read_text("utf-8")
    reference = json.loads((golden_dir / "spacy_vintage.json").read_text("utf-8"))
    for key in ("only_in_2_0", "only_in_3_8"):
        assert json.loads(packaged)[key] == reference[key]


def test_rules_of_2_0_change_special_cases_only(golden_dir: Path) -> None:
    """Prefixes, suffixes, infixes and the pattern of web addresses stay the installed spaCy's."""
    import spacy

    own, installed = EnglishWords("2.0"), spacy.blank("en").tokenizer
    for name in ("prefix_search", "suffix_search", "infix_finditer", "url_match"):
        ours, theirs = (getattr(each, name).__self__ for each in (own._tokenizer, installed))
        assert ours.pattern == theirs.pattern, name
    assert own._tokenizer.token_match is installed.token_match is None
    vintage = json.loads((golden_dir / "spacy_vintage.json").read_text("utf-8"))
    added, removed = vintage["only_in_2_0"], vintage["only_in_3_8"]
    assert (len(added), len(removed)) == (15, 118)  # as docs/fidelity.md says
    others = EnglishWords("installed")._cases
    kept = {case: words for case, words in others.items() if case not in removed}
    assert own._cases == kept | added


# --- the traps ---------------------------------------------------------------------------------


def test_backslash_runs_are_not_set_apart() -> None:
    assert text_standardize("a\\b \\\\c") == "a\\b \\\\c"
    assert text_standardize("a++b") == "a ++ b"


def test_standardize() -> None:
    assert text_standardize(" a—b–c―d… it´s\t\u00a0x ") == "a-b-c-d... it's x".replace("-", " - ")
    assert text_standardize("a \n\t\n b\nc\n") == "a \n b \n c"
    assert text_standardize("!!?_") == "!! ? _"


def test_contractions_and_possessives_are_not_split_at_the_apostrophe(small: TextEncoder) -> None:
    assert words(small, "I wasn't at Ann's.") == ["i", "was", "n't", "at", "ann", "'s", "."]


def test_words_are_lower_cased_after_splitting(small: TextEncoder) -> None:
    assert words(small, "In May. In may.") == ["in", "may.", "in", "may", "."]
    assert words(small, "end.Start end.start") == ["end", ".", "start", "end.start"]


def test_last_line_of_merges_is_ignored(tmp_path: Path) -> None:
    without = TextEncoder(*write_files(tmp_path, "#version: 0.2\nt h\nth e</w>"))
    assert without.bpe("the") == "th e</w>"
    with_newline = TextEncoder(*write_files(tmp_path, "#version: 0.2\r\nt h\r\nth e</w>\r\n"))
    assert with_newline.bpe("the") == "the</w>"


def test_newline_word_is_one_token(small: TextEncoder) -> None:
    assert small.bpe("\n ") == small.bpe("\n") == "\n</w>"
    newline, a = small.encoder["\n</w>"], small.encoder["a</w>"]
    assert small.encode(["a\n \n\ta\r\na\n"]) == [[a, newline, a, newline, a]]


def test_token_outside_the_vocabulary_is_id_0(small: TextEncoder) -> None:
    assert small.encode(["世 a界"]) == [[0, small.encoder["a"], 0]]


def test_second_pass_of_spacy_over_the_whole_text(small: TextEncoder) -> None:
    assert words(small, "=D=x") == ["=d", "=", "x"]
    assert words(small, "( =D=x") == ["(", "=", "d", "=", "x"]
    assert words(small, "Im.") == ["i", "m."]


# --- BPE ---------------------------------------------------------------------------------------


def test_bpe_of_short_words(small: TextEncoder) -> None:
    assert small.bpe("x") == "x</w>"
    assert small.bpe("") == ""
    assert small.bpe("aaaa") == "aa a a</w>"
    assert small.bpe("then") == "the n</w>"


def test_bpe_finishes_a_round_before_a_new_pair(tmp_path: Path) -> None:
    """The best pair, "ab a", appears only after the first merge and waits for the next round."""
    encoder = TextEncoder(*write_files(tmp_path, "#version: 0.2\nab a\na b\n"))
    assert encoder.bpe("ababx") == "ab ab x</w>"


@FUZZ
@given(word=st.text("ab", min_size=1, max_size=30), order=st.permutations(range(8)))
def test_bpe_equals_rounds_over_the_whole_word(word: str, order: list[int]) -> None:
    pairs = ["a b", "b a", "ab a", "a a", "aa b", "ab b</w>", "ba ab", "b aa"]
    merges = [pairs[i] for i in order]
    encoder = TextEncoder.__new__(TextEncoder)
    encoder._ranks = {tuple(line.split()): rank for rank, line in enumerate(merges)}
    assert encoder.bpe(word).split(" ") == plain_bpe(word, merges)


# --- the fast path -----------------------------------------------------------------------------

HARD = """
don't can't He's y'all Im. I'll'd cant. dog's. 'em 'tis O'Neil Mr. Mrs.' (Dr.) a.m. 5p.m. 7pm
Ph.D. U.S. May. may. Jan.,x vs. co. i.e. C++ w/o and/or =D =D=x x=D ( (= =) [: : :) :-( :o :o)
x:o <3 x<3 </3 o.o o.O xo.O ^_^ 8) 8D x8) -_- >.< v.v ... .... … ..a a..B $1.50 10km 3.m
http://a.com/b?c=d www.x.org a@b.co x.Y x,y x-y A--B 1-2 3*4 #tag @me % & &amp; &lt;b> < > &#39;s
“hi” ‘x’ â€™ Ã© schÃ¶n ﬁ ＡＢ \\ \\n \\\\ '' ''s 's 's: S's ° °C. ¿ é É. ß İ Σ 世界 한 😀
\u200b \ufeff \x07 \x1b[0m \ud83d x\u0301
"""
FRAGMENTS = st.sampled_from(HARD.split())
GLUE = st.sampled_from(
    ["", "", " ", " ", "  ", "\n", " \n", "\t", "\u00a0", "\r\n", "\x0c", "\u2028"]
)
JUMBLED = st.lists(st.tuples(FRAGMENTS, GLUE), max_size=8).map(
    lambda pairs: "".join(a + b for a, b in pairs)
)
SYMBOLS = st.text("aAbDoOxmsSIit.'’=:<>3()-_^8\\ \n%&;#!?,/*\"", max_size=14)
TEXTS = st.one_of(JUMBLED, SYMBOLS, st.text(max_size=20))


@FUZZ
@given(texts=st.lists(TEXTS, max_size=3))
def test_fast_path_equals_direct_path(
    small: TextEncoder, plain_words: Callable[[str], list[str]], texts: list[str]
) -> None:
    expected = [
        [
            small.encoder.get(token, 0)
            for word in plain_words(plain_standardize(ftfy.fix_text(text)))
            for token in (plain_bpe(word.lower(), MERGES) if word.strip() else ["\n</w>"])
        ]
        for text in texts
    ]
    assert small.encode(texts) == expected
    assert [small._encode_directly(text) for text in texts] == expected


def assert_split(words: EnglishWords, chunk: str, expected: list[str]) -> None:
    """Check that a chunk is split as expected, or left open where a joined case may end in it."""
    found = words.of_chunk(chunk)
    if found is None:
        parts = [words.split(part) for part in text_standardize(chunk).split(" ")]
        assert any(not words._joined.isdisjoint(part) for part in parts), chunk
    else:
        assert found == expected, chunk


@pytest.mark.parametrize(
    "form", ["{}", "{}.", "{},", "{}'s", "{}'s.", "'{}'", "{}'s!", "={}", "x{}"]
)
def test_every_special_case_in_every_company(
    small: TextEncoder, plain_words: Callable[[str], list[str]], form: str
) -> None:
    cases = [form.format(case) for case in small._words._cases]
    assert len(cases) > 1000
    for text in cases:
        for spelling in (text, text.upper(), text.swapcase()):
            for chunk in text_standardize(ftfy.fix_text(spelling)).split(" "):
                if chunk.strip():
                    assert_split(small._words, chunk, plain_words(chunk))


@FUZZ
@given(chunk=st.from_regex(words_module._PLAIN_CHUNK, fullmatch=True))
def test_plain_chunks_are_split_as_spacy_does(
    small: TextEncoder, plain_words: Callable[[str], list[str]], chunk: str
) -> None:
    assert_split(small._words, chunk, plain_words(text_standardize(chunk)))


@FUZZ
@given(text=st.text([chr(i) for i in range(32, 127) if chr(i) != "&"], max_size=40))
def test_ftfy_changes_nothing_where_it_is_skipped(text: str) -> None:
    assert ftfy.fix_text(text) == text


def test_ordinary_chunks_do_not_reach_spacy(
    small: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small._words, "_tokenizer", None)
    small.encode(["Unseen Chunks, the neighbour's dog."])
    with pytest.raises(TypeError):
        small.encode(["It's5 not so with this."])


def test_caches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "_CACHE_ENTRIES", 50)
    encoder = TextEncoder(*write_files(tmp_path))
    texts = [f"one{'x' * i} TWO{i} {i}'s it's {'y' * (i + 60)}." for i in range(100)]
    encoded = encoder.encode(texts)
    caches = (encoder._ids_of_chunk, encoder._ids_of_word)
    assert all(0 < len(cache) <= 50 for cache in caches)
    assert all(len(key) <= 64 for cache in caches for key in cache)
    assert encoded == [encoder._encode_directly(text) for text in texts]


def test_results_are_the_callers_own(small: TextEncoder) -> None:
    first = small.encode(["the"])[0]
    first.append(-1)
    assert small.encode(["the"]) == [[small.encoder["the</w>"]]]


def test_same_ids_from_many_threads(tmp_path: Path) -> None:
    encoder = TextEncoder(*write_files(tmp_path))
    texts = [f"the{chr(97 + i % 26)}'s o.O{i} can't: “it”" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda _: encoder.encode(texts, verbose=False), range(8)))
    assert many == [[encoder._encode_directly(text) for text in texts]] * 8


# --- decode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "readable"),
    [("", ""), (" The  Thing! ", "the thing !"), ("a\n\nb, c\n", "a\nb , c"), ("it's", "it 's")],
)
def test_decode_gives_readable_text(small: TextEncoder, text: str, readable: str) -> None:
    assert small.decode(small.encode([text])[0]) == readable
    assert small.decode(np.array(small.encode([text])[0], dtype=np.uint16)) == readable


def test_decode_knows_ids_added_later(tmp_path: Path) -> None:
    encoder = TextEncoder(*write_files(tmp_path))
    assert type(encoder.encoder) is dict
    assert {token: i for i, token in encoder.decoder.items()} == encoder.encoder
    start = encoder.encoder["_start_"] = len(encoder.encoder)
    ids = encoder.encode(["the x"])[0]
    assert encoder.decode([start, *ids, start]) == "_start_ the x _start_"
    assert start not in encoder.encode(["_start_"])[0]


@pytest.mark.parametrize("stranger", [-1, 10**6])
def test_decode_refuses_unknown_ids(small: TextEncoder, stranger: int) -> None:
    with pytest.raises(InputError, match=f"id {stranger} is not in the vocabulary"):
        small.decode([1, stranger])


# --- the progress bar --------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "verbose", "delay", "shown"),
    [
        (Terminal, True, 0.0, True),
        (Terminal, True, 3600.0, False),
        (Terminal, False, 0.0, False),
        (io.StringIO, True, 0.0, False),
    ],
)
def test_progress_bar_only_on_a_terminal_for_long_work(
    small: TextEncoder, monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO], verbose: bool, delay: float, shown: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stderr", stderr := stream())
    monkeypatch.setattr(encoder_module, "_BAR_DELAY", delay)
    small.encode(["the"] * 3, verbose=verbose)
    assert ("encode" in stderr.getvalue()) == shown


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("texts", "message"), [("one", "list"), ([1], "text 0 is int"),
                                                (["a", None], "text 1 is NoneType")])  # fmt: skip
def test_encode_refuses_what_is_not_texts(small: TextEncoder, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small.encode(texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON.*line 1"),
        (b'{"a": 0,\n"b" 1}', "not JSON.*line 2"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"a": 0,\n"\xff": 1}', "line 2: the vocabulary must be UTF-8"),
        (b'["a"]', "not an object"),
        (b"{}", "not an object with tokens"),
        (b'{"a": 0, "b": 0}', "'b' has id 0"),
        (b'{"a": 0, "b": 2}', "'b' has id 2; expected each number from 0 to 1"),
        (b'{"a": 0, "b": -1}', "'b' has id -1"),
        (b'{"a": true}', "'a' has id True"),
        (b'{"a": "0"}', "'a' has id '0'"),
        (b'{"a": {}}', "'a' has id {}"),
        (b'{"a": 0, "b": 1, "a": 2}', "'a' is there twice"),
    ],
)
def test_malformed_vocabulary(tmp_path: Path, content: bytes, message: str) -> None:
    vocabulary, bpe = write_files(tmp_path)
    vocabulary.write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){vocabulary}.*{message}"):
        TextEncoder(vocabulary, bpe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a version line"),
        (b"a b\n", "line 1: expected a version line.*'a b'"),
        (b"#version: 0.2\na b\nabc\n", "line 3: expected two symbols.*'abc'"),
        (b"#version: 0.2\na b c\n", "line 2: expected two symbols"),
        (b"#version: 0.2\na b\n\nc d\n", "line 3: expected two symbols"),
        (b"#version: 0.2\na \xff\n", "line 2: the BPE merges must be UTF-8"),
    ],
)
def test_malformed_merges(tmp_path: Path, content: bytes, message: str) -> None:
    vocabulary, bpe = write_files(tmp_path)
    bpe.write_bytes(content)
    with pytest.raises(InputError, match=f"{bpe}, {message}"):
        TextEncoder(vocabulary, bpe)


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_file(tmp_path: Path, missing: int) -> None:
    paths = write_files(tmp_path)
    paths[missing].unlink()
    with pytest.raises(InputError, match=f"{paths[missing].name}.* cannot be read"):
        TextEncoder(*paths)


def test_a_line_separator_inside_a_symbol_ends_no_line(tmp_path: Path) -> None:
    encoder = TextEncoder(*write_files(tmp_path, "#version: 0.2\na \u0378\n\u0378 b\n"))
    assert encoder.bpe("a\u0378x") == "a\u0378 x</w>"
