"""Text to English words: the original's standardisation, then spaCy's tokenizer.

spaCy's tokenizer is used alone, without a model or a pipeline. Its special cases ("don't" is "do"
and "n't") are those of spaCy 2.0, which split the text that the released model was trained on, or
those of the installed version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpt1.runtime.extras import late

ftfy = late("ftfy")
spacy_util = late("spacy.util")
spacy_english = late("spacy.lang.en")
spacy_symbols = late("spacy.symbols")
spacy_tokenizer = late("spacy.tokenizer")
spacy_vocab = late("spacy.vocab")

SPACY_RULES = ("2.0", "installed")

_TYPOGRAPHY = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# Runs of backslashes are not set apart: the original's pattern is not a raw string, so that its
# alternative for backslashes is a second run of plus signs.
_SET_APART = re.compile(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)')
_AROUND_NEWLINE = re.compile(r"\s*\n\s*")
_OTHER_SPACE = re.compile(r"[^\S\n]+")
# spaCy keeps every word that it has seen. A tokenizer with more words than this is replaced by a
# new one, so that memory does not grow with the text.
_MOST_LEXEMES = 1 << 18
_LINES = re.compile(r"[^\n]*\n|[^\n]+")

LONGEST_SEGMENT = 1_000_000
"""Characters of a line that ftfy repairs together; it cuts longer lines after so many (its
``max_decode_length``)."""

# Letters, then perhaps a possessive, then perhaps a mark. No prefix, suffix or infix rule of
# spaCy's English matches ASCII letters alone; "'s" is a suffix, and so is "." after a small letter;
# the other marks are set apart by text_standardize. Only special cases can split such a chunk
# in another way.
_PLAIN_CHUNK = re.compile(r"([A-Za-z]*[a-z])('s)?([.,!?]?)")


def text_standardize(text: str) -> str:
    """Return ``text`` with plain dashes, spaces around punctuation, and single spaces.

    Long dashes, the ellipsis and the acute accent become ASCII. A run of one of the characters
    ``- ~ ! " ; ? + , ) ( / * [ ] } { | _`` gets a space on both sides. White space around newlines
    becomes ``" \\n "``, and any other white space becomes one space. Source: the original's
    function of the same name.

    >>> text_standardize("Wait—what?!\\tNo")
    'Wait - what ? ! No'
    """
    text = text.translate(_TYPOGRAPHY)
    text = _SET_APART.sub(r" \1 ", text)
    text = _AROUND_NEWLINE.sub(" \n ", text)
    return _OTHER_SPACE.sub(" ", text).strip()


def repair(text: str, *, entities: bool = True) -> str:
    """Return what ``ftfy.fix_text`` makes of a text; lines that ftfy cannot change are skipped.

    ftfy repairs each line by itself, and a line of more than :data:`LONGEST_SEGMENT` characters in
    segments of that length. Only one fact is carried from line to line: from the first line with a
    "<" on, which may be HTML, entities such as "&amp;" stay as they are.

    Args:
        text: the text.
        entities: whether entities are replaced at the beginning of the text. It is False for the
            rest of a document after a line with "<".
    """
    if _is_plain(text):
        return text
    repaired = []
    for line in _LINES.findall(text):
        is_plain = _is_plain(line.removesuffix("\n"))
        html = "auto" if entities else False
        repaired.append(line if is_plain else ftfy.fix_text(line, unescape_html=html))
        entities = entities and "<" not in line
    return "".join(repaired)


def _is_plain(line: str) -> bool:
    """Return whether a line is printable ASCII without "&", which ftfy does not change.

    Such a line has no entities, escapes, control characters, line ends, non-ASCII quotes or
    mojibake.
    """
    return line.isascii() and line.isprintable() and "&" not in line


class EnglishWords:
    """spaCy's English tokenizer, alone, with the special cases of one version of spaCy.

    spaCy splits a text at white space and cuts each chunk by rules. In a second pass it looks
    through the words of the whole text for special cases that the rules cut up, and joins them:
    "x=D" becomes "x", "=", "D" and then "x", "=D". Words that look like a case across a space are
    not joined, but they keep an overlapping case from being joined: "=D=x" gives other words after
    "(" than alone, because of the case "(=". Only this second pass makes the words of a chunk
    depend on the chunks beside it.

    Args:
        rules: one of :data:`SPACY_RULES`.
    """

    def __init__(self, rules: str) -> None:
        self._cases = _special_cases(rules)
        self._tokenizer = _tokenizer(self._cases)
        self._parts, self._joined = self._words_of_cases()

    def split(self, text: str) -> list[str]:
        """Return the words of a standardised text, with their capitals."""
        words = [token.text for token in self._tokenizer(text)]
        if len(self._tokenizer.vocab) > _MOST_LEXEMES:
            self._tokenizer = _tokenizer(self._cases)
        return words

    def stands_apart(self, word: str) -> bool:
        """Return whether a chunk is one word that is part of no special case.

        The second pass then joins nothing across it. Therefore the words of the text before its
        end and those of the text after it do not depend on one another.
        """
        return word not in self._parts and self._of_plain(word) == [word]

    def of_chunk(self, chunk: str) -> list[str] | None:
        """Return the words of a chunk of text without white space.

        Returns None if the words may depend on the chunks beside it.
        """
        if plain := self._of_plain(chunk):
            return plain
        words = []
        for part in text_standardize(chunk).split(" "):
            more = self._of_plain(part) or self._of_part(part)
            if more is None:
                return None
            words += more
        return words

    def _of_plain(self, chunk: str) -> list[str] | None:
        """Return the words of a chunk for which spaCy's rules need not be run, else None."""
        match = _PLAIN_CHUNK.fullmatch(chunk)
        if match is None:
            return None
        stem, possessive, mark = match.groups()
        cases = self._cases
        if stem in cases or chunk in cases or (possessive and stem + possessive in cases):
            return None
        return [part for part in (stem, possessive, mark) if part]

    def _of_part(self, part: str) -> list[str] | None:
        """Return the words of a standardised part; None if the second pass may have joined any."""
        words = self.split(part)
        if self._joined.isdisjoint(words) or words == self._cases.get(part):
            return words
        return None

    def _words_of_cases(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return all words of special cases, and the last words of those that can be joined.

        The words of a case are those that the case stands for, and those that the rules alone make
        of it. The second pass can join the cases with a prefix, suffix or infix that the rules
        alone split otherwise.
        """
        bare = _tokenizer({})
        finds = (bare.find_prefix, bare.find_suffix, bare.find_infix)
        parts: set[str] = set()
        ends: set[str] = set()
        for case, words in self._cases.items():
            by_rules = [token.text for token in bare(case)]
            parts.update(words, by_rules)
            if any(find(case) for find in finds) and by_rules != words:
                ends.add(words[-1])
        return frozenset(parts), frozenset(ends)


def _special_cases(rules: str) -> dict[str, list[str]]:
    """Return spaCy's English special cases and their words, for one of ``SPACY_RULES``."""
    cases: dict[str, list[str]] = {
        case: [token[spacy_symbols.ORTH] for token in tokens]
        for case, tokens in spacy_english.English.Defaults.tokenizer_exceptions.items()
    }
    if rules == "2.0":
        vintage = json.loads(Path(__file__).with_name("spacy_vintage.json").read_text("utf-8"))
        for case in vintage["only_in_3_8"]:
            cases.pop(case, None)
        cases.update(vintage["only_in_2_0"])
    return cases


def _tokenizer(cases: dict[str, list[str]]) -> Any:
    """Return spaCy's English tokenizer with the given special cases, without a pipeline."""
    defaults, orth = spacy_english.English.Defaults, spacy_symbols.ORTH
    return spacy_tokenizer.Tokenizer(
        spacy_vocab.Vocab(),
        rules={case: [{orth: word} for word in words] for case, words in cases.items()},
        prefix_search=spacy_util.compile_prefix_regex(defaults.prefixes).search,
        suffix_search=spacy_util.compile_suffix_regex(defaults.suffixes).search,
        infix_finditer=spacy_util.compile_infix_regex(defaults.infixes).finditer,
        token_match=defaults.token_match,
        url_match=defaults.url_match,
    )
