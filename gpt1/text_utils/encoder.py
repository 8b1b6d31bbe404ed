"""Text to token ids and back (the original's ``TextEncoder``; paper, section 4.1).

:meth:`TextEncoder._encode_directly` takes the original's steps one after another.
:meth:`TextEncoder.encode` reaches the same ids faster. The ids of a chunk of text between white
space do not depend on the chunks beside it, so each chunk is worked out once. Where that could fail
(see :class:`~gpt1.text_utils.words.EnglishWords`), the direct way is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise, repeat
from pathlib import Path

import ftfy
from tqdm import tqdm

from gpt1.runtime.errors import InputError
from gpt1.text_utils.vocabulary import read_merges, read_vocabulary, require_match
from gpt1.text_utils.words import SPACY_RULES, EnglishWords, text_standardize

_CACHE_ENTRIES = 1 << 16
_LONGEST_KEY = 64  # characters; with the number of entries it bounds each cache to some tens of MB
_BAR_DELAY = 1.0  # seconds of work before a progress bar appears
_NO_MERGE = 1 << 60  # the rank of a pair that is not in the merges


class TextEncoder:
    """The original's text encoder: ftfy, :func:`text_standardize`, spaCy words, BPE.

    The byte-pair encoding is that of the paper, section 4.1, over characters, the last one of
    a word carrying ``</w>``. Safe to share between threads; ids never depend on what was
    encoded before.

    Attributes:
        encoder: token to id, a plain dict; the caller may add the three special tokens to it.
            Words once encoded keep their ids: add tokens that words may hold before that.
        decoder: id to token.

    Args:
        encoder_path: JSON file, one object of tokens and their ids, 0, 1, 2, ... in any order.
        bpe_path: merges, best first, two symbols per line, after a ``#version`` line. As in the
            original, what follows the last newline is ignored.
        spacy_rules: special cases of English words: ``"2.0"``, by which the text of the released
            model was split, or ``"installed"``, those of the installed spaCy, which the original
            would use today.
        check_merges: check that merges and vocabulary belong together. Other merges, or only some
            of them, give ids too, but not those that the model was trained on.

    Raises:
        InputError: a file is missing or is not what it should be.
        ValueError: ``spacy_rules`` is something else.
    """

    def __init__(
        self,
        encoder_path: str | Path,
        bpe_path: str | Path,
        *,
        spacy_rules: str = "2.0",
        check_merges: bool = False,
    ) -> None:
        if spacy_rules not in SPACY_RULES:
            raise ValueError(f"spacy_rules must be one of {SPACY_RULES}, not {spacy_rules!r}")
        self.encoder = read_vocabulary(encoder_path)
        self.decoder = {i: token for token, i in self.encoder.items()}
        self._n_vocab = len(self.encoder)
        self._ranks = read_merges(bpe_path)
        if check_merges:
            require_match(bpe_path, self._ranks, self.encoder)
        self._words = EnglishWords(spacy_rules)
        # Tuples: the garbage collector soon stops looking at those that hold only numbers.
        self._ids_of_word: dict[str, tuple[int, ...]] = {}
        self._ids_of_chunk: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Iterable[str], verbose: bool = True) -> list[list[int]]:
        """Return the token ids of each text; what is not in the vocabulary becomes id 0.

        Args:
            texts: the texts, in any sequence.
            verbose: show a progress bar on stderr when that is a terminal and work is long.

        Raises:
            InputError: ``texts`` is one string, or holds something else than strings.
        """
        if isinstance(texts, (str, bytes)):
            raise InputError(
                "TextEncoder.encode: expected a list of texts, got one string; "
                "put the text in a list."
            )
        hidden = None if verbose else True  # None: where stderr is not a terminal
        bar = tqdm(texts, "encode", leave=False, delay=_BAR_DELAY, disable=hidden)
        return [self._encode_text(text, index) for index, text in enumerate(bar)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return readable text: one space between words, newlines kept, no space at the ends.

        Capitals and the spacing around punctuation, which the encoder drops, do not come back.
        Tokens that were added to :attr:`encoder` are words of their own.

        Raises:
            InputError: an id is in neither :attr:`decoder` nor :attr:`encoder`.
        """
        text = "".join(self._readable(int(i)) for i in ids)
        return re.sub(" +", " ", re.sub(" *\n *", "\n", text)).strip(" ")

    def bpe(self, word: str) -> str:
        """Return the tokens of one word, separated by spaces, the last one ending in ``</w>``.

        In each round, the pair of lowest rank is merged wherever it stands, from the left.
        Source: the original's ``TextEncoder.bpe``.
        """
        if not word:
            return word
        rank = self._ranks.get
        parts = [*word[:-1], word[-1] + "</w>"]
        ranks = list(map(rank, pairwise(parts), repeat(_NO_MERGE)))
        while ranks and (best := min(ranks)) != _NO_MERGE:
            # A pair that a merge makes is never `best` again, so the inner loop is one round.
            while best in ranks:
                at = ranks.index(best)
                del ranks[at]
                parts[at] = merged = parts[at] + parts.pop(at + 1)
                if at > 0:
                    ranks[at - 1] = rank((parts[at - 1], merged), _NO_MERGE)
                if at < len(ranks):
                    ranks[at] = rank((merged, parts[at + 1]), _NO_MERGE)
        tokens = " ".join(parts)
        # What spaCy makes of a newline inside a text is "\n "; the vocabulary has "\n</w>".
        return "\n</w>" if tokens == "\n  </w>" else tokens

    def _encode_directly(self, text: str) -> list[int]:
        """The ids of ``text`` in the original's steps; only the ids of words are remembered."""
        words = self._words.split(text_standardize(ftfy.fix_text(text)))
        return [i for word in words for i in self._word_ids(word.lower())]

    def _encode_text(self, text: str, index: int) -> list[int]:
        if not isinstance(text, str):
            raise InputError(
                f"TextEncoder.encode: text {index} is {type(text).__name__}, expected str; "
                "convert it, or leave it out."
            )
        ids: list[int] = []
        for chunk in _chunks(text):
            known = self._ids_of_chunk.get(chunk)
            if known is None:
                words = self._words.of_chunk(chunk)
                if words is None:
                    return self._encode_directly(text)
                known = tuple([i for word in words for i in self._word_ids(word.lower())])
                _remember(self._ids_of_chunk, chunk, known)
            ids += known
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        ids = self._ids_of_word.get(word)
        if ids is None:
            ids = tuple([self.encoder.get(token, 0) for token in self.bpe(word).split(" ")])
            _remember(self._ids_of_word, word, ids)
        return ids

    def _readable(self, i: int) -> str:
        if i not in self.decoder:  # perhaps added to the encoder since
            self.decoder.update({new: token for token, new in self.encoder.items()})
        if i not in self.decoder:
            raise InputError(
                f"TextEncoder.decode: id {i} is not in the vocabulary of {len(self.encoder)} "
                "tokens; decode with the encoder that made the ids."
            )
        token = self.decoder[i]
        return f" {token} " if i >= self._n_vocab else token.replace("</w>", " ")


def _chunks(text: str) -> list[str]:
    """The parts of a text between white space, and "\\n" for each run of newlines."""
    # On printable ASCII without entities every step of ftfy.fix_text changes nothing: there are
    # no entities, escapes, control characters, line ends, non-ASCII quotes or mojibake in it.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.split()
    text = text_standardize(ftfy.fix_text(text))
    return text.split(" ") if text else []


def _remember(cache: dict[str, tuple[int, ...]], key: str, ids: tuple[int, ...]) -> None:
    """Keep a result; a full cache starts anew, and a key too long to recur is not kept."""
    if len(key) > _LONGEST_KEY:
        return
    if len(cache) >= _CACHE_ENTRIES:
        cache.clear()
    cache[key] = ids
