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

from spacy import util
from spacy.lang.en import English
from spacy.symbols import ORTH
from spacy.tokenizer import Tokenizer
from spacy.vocab import Vocab

SPACY_RULES = ("2.0", "installed")

_TYPOGRAPHY = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# Runs of backslashes are not set apart: the original's pattern is not a raw string, so that its
# alternative for backslashes is a second run of plus signs.
_SET_APART = re.compile(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)')
_AROUND_NEWLINE = re.compile(r"\s*\n\s*")
_OTHER_SPACE = re.compile(r"[^\S\n]+")

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
        self._joined = self._ends_of_joined_cases()

    def split(self, text: str) -> list[str]:
        """Return the words of a standardised text, with their capitals."""
        return [token.text for token in self._tokenizer(text)]

    def of_chunk(self, chunk: str) -> list[str] | None:
        """Return the words of a chunk of text without white space, or of a newline.

        Returns None if the words may depend on the chunks beside it.
        """
        if chunk == "\n":  # text_standardize would leave nothing of it
            return [chunk]
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

    def _ends_of_joined_cases(self) -> frozenset[str]:
        """Return the last words of all special cases that the second pass can join.

        These are the cases with a prefix, suffix or infix that the rules alone split otherwise.
        """
        bare = _tokenizer({})
        finds = (bare.find_prefix, bare.find_suffix, bare.find_infix)
        return frozenset(
            words[-1]
            for case, words in self._cases.items()
            if any(find(case) for find in finds) and [token.text for token in bare(case)] != words
        )


def _special_cases(rules: str) -> dict[str, list[str]]:
    """Return spaCy's English special cases and their words, for one of ``SPACY_RULES``."""
    cases: dict[str, list[str]] = {
        case: [token[ORTH] for token in tokens]
        for case, tokens in English.Defaults.tokenizer_exceptions.items()
    }
    if rules == "2.0":
        vintage = json.loads(Path(__file__).with_name("spacy_vintage.json").read_text("utf-8"))
        for case in vintage["only_in_3_8"]:
            cases.pop(case, None)
        cases.update(vintage["only_in_2_0"])
    return cases


def _tokenizer(cases: dict[str, list[str]]) -> Any:
    """Return spaCy's English tokenizer with the given special cases, without a pipeline."""
    defaults: Any = English.Defaults
    return Tokenizer(
        Vocab(),
        rules={case: [{ORTH: word} for word in words] for case, words in cases.items()},
        prefix_search=util.compile_prefix_regex(defaults.prefixes).search,
        suffix_search=util.compile_suffix_regex(defaults.suffixes).search,
        infix_finditer=util.compile_infix_regex(defaults.infixes).finditer,
        token_match=defaults.token_match,
        url_match=defaults.url_match,
    )
