"""Text to token ids and back (the original's ``TextEncoder``; paper, section 4.1).

:meth:`TextEncoder._encode_directly` takes the original's steps one after another.
:meth:`TextEncoder.encode` reaches the same ids faster. The ids of a chunk of text between white
space do not depend on the chunks beside it, so each chunk is encoded once. Where they could depend
on them (see :class:`~gpt1.text_utils.words.EnglishWords`), the line is encoded directly. Lines
never depend on one another: between two of them the words have the newline, which no rule joins
with a neighbour.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import late
from gpt1.text_utils.vocabulary import read_merges, read_vocabulary, require_match
from gpt1.text_utils.words import SPACY_RULES, EnglishWords, repair, text_standardize

ftfy = late("ftfy")

_CACHE_ENTRIES = 1 << 16
_LONGEST_KEY = 64  # characters; with the number of entries it bounds each cache to some tens of MB
_BAR_DELAY = 1.0  # seconds of work before a progress bar appears
_NO_MERGE = 1 << 60  # the rank of a pair that is not in the merges


class TextEncoder:
    """The original's text encoder: ftfy, :func:`text_standardize`, spaCy's words, then BPE.

    The byte-pair encoding (BPE; paper, section 4.1) merges the characters of a word; its last
    character ends in ``</w>``. An encoder may be shared between threads, and pickled for another
    process. The ids of a text never depend on the texts that were encoded before.

    Attributes:
        encoder: token to id, a plain dict, to which the caller may add the three special tokens.
            The ids of words are kept once they are known. Therefore a token that can be part of a
            word must be added before any text is encoded.
        decoder: id to token.
        files: the absolute paths of the vocabulary and of the merges.
        spacy_rules: as in the arguments.

    Args:
        encoder_path: a JSON file of one object: tokens and their ids 0, 1, 2, ... in any order.
        bpe_path: a file of merges, best first, two symbols per line, after a ``#version`` line. As
            in the original, text after the last newline is ignored.
        spacy_rules: whose special cases of English words to use: ``"2.0"``, the version of spaCy
            that split the text of the released model, or ``"installed"``, the installed version,
            which the original would use today.
        check_merges: whether to check that merges and vocabulary belong together. With other
            merges, or only some of them, texts would get ids that the model was not trained on.

    Raises:
        InputError: a file is missing or malformed.
        ValueError: ``spacy_rules`` has another value.
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
        self.files = (Path(encoder_path).absolute(), Path(bpe_path).absolute())
        self.encoder = read_vocabulary(encoder_path)
        self.decoder = {i: token for token, i in self.encoder.items()}
        self._n_vocab = len(self.encoder)
        self._ranks = read_merges(bpe_path)
        if check_merges:
            require_match(bpe_path, self._ranks, self.encoder)
        self.spacy_rules = spacy_rules
        self._prepare()

    def _prepare(self) -> None:
        """Make spaCy's tokenizer and empty caches, which are not pickled."""
        self._words = EnglishWords(self.spacy_rules)
        # Tuples: the garbage collector soon stops looking at those that hold only numbers.
        self._ids_of_word: dict[str, tuple[int, ...]] = {}
        self._ids_of_chunk: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        made = ("_words", "_ids_of_word", "_ids_of_chunk")
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def rules(self) -> list[Any]:
        """Return all that the ids of a text depend on besides the program, for a digest."""
        merges = sorted(self._ranks, key=self._ranks.__getitem__)
        versions = [platform.python_version(), *map(version, ("ftfy", "spacy"))]
        return [list(self.encoder.items()), merges, self.spacy_rules, versions]

    def encode(self, texts: Iterable[str], verbose: bool = True) -> list[list[int]]:
        """Return the token ids of each text; a token outside the vocabulary gets id 0.

        Args:
            texts: the texts; any iterable but a string.
            verbose: show a progress bar on stderr if that is a terminal and the work takes long.

        Raises:
            InputError: ``texts`` is one string, or an item is not a string.
        """
        if isinstance(texts, (str, bytes)):
            raise InputError(
                "TextEncoder.encode: expected a list of texts, got one string; "
                "put the text in a list."
            )
        hidden = None if verbose else True  # None hides the bar where stderr is not a terminal.
        bar = tqdm(texts, "encode", leave=False, delay=_BAR_DELAY, disable=hidden)
        return [self._encode_text(text, index) for index, text in enumerate(bar)]

    def unknown_characters(self, text: str) -> list[str]:
        """Return the characters of a text that are not in the vocabulary, each as often as it is.

        Text is standardised first; :meth:`encode` gives each of these characters the id 0.
        """
        words = self._words.split(text_standardize(repair(text)))
        tokens = [token for word in words for token in self.bpe(word.lower()).split(" ")]
        unknown = [token for token in tokens if token and token not in self.encoder]
        return [token.removesuffix("</w>") for token in unknown]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``: single spaces between words, newlines, no space at the ends.

        Capitals and the spacing around punctuation are lost when a text is encoded. A token that
        was added to :attr:`encoder` is a word of its own.

        Raises:
            InputError: an id is in neither :attr:`decoder` nor :attr:`encoder`.
        """
        text = "".join(self._readable(int(i)) for i in ids)
        return re.sub(" +", " ", re.sub(" *\n *", "\n", text)).strip(" ")

    def bpe(self, word: str) -> str:
        """Return the tokens of one word, separated by spaces, the last one ending in ``</w>``.

        In each round, the pair of lowest rank is merged wherever it occurs, from left to right.
        Source: the original's ``TextEncoder.bpe``.
        """
        if not word:
            return word
        rank = self._ranks.get
        parts = [*word[:-1], word[-1] + "</w>"]
        ranks = list(map(rank, pairwise(parts), repeat(_NO_MERGE)))
        while ranks and (best := min(ranks)) != _NO_MERGE:
            # No merge makes the pair `best` again, so the inner loop is one round.
            while best in ranks:
                at = ranks.index(best)
                del ranks[at]
                parts[at] = merged = parts[at] + parts.pop(at + 1)
                if at > 0:
                    ranks[at - 1] = rank((parts[at - 1], merged), _NO_MERGE)
                if at < len(ranks):
                    ranks[at] = rank((merged, parts[at + 1]), _NO_MERGE)
        tokens = " ".join(parts)
        # A newline inside a text is the word "\n " in spaCy; the vocabulary has "\n</w>".
        return "\n</w>" if tokens == "\n  </w>" else tokens

    def _encode_directly(self, text: str) -> list[int]:
        """Return the ids of ``text`` by the original's steps; only the ids of words are cached."""
        words = self._words.split(text_standardize(ftfy.fix_text(text)))
        return [i for word in words for i in self._word_ids(word.lower())]

    def _encode_text(self, text: str, index: int) -> list[int]:
        """Return the ids of text number ``index``, chunk by chunk where that is possible."""
        if not isinstance(text, str):
            raise InputError(
                f"TextEncoder.encode: text {index} is {type(text).__name__}, expected str; "
                "convert it, or leave it out."
            )
        return self.encode_repaired(repair(text))

    def encode_repaired(self, text: str) -> list[int]:
        """Return the ids of a text that :func:`gpt1.text_utils.words.repair` has returned.

        The result is that of :meth:`encode` for the text before its repair.
        """
        ids: list[int] = []
        for line in text.split("\n"):
            chunks = line.split()
            if chunks and ids:
                ids += self.newline
            ids += self._encode_line(line, chunks)
        return ids

    @property
    def newline(self) -> tuple[int, ...]:
        """The ids that :meth:`encode` gives the newline between two lines."""
        return self._word_ids("\n")

    def _encode_line(self, line: str, chunks: Sequence[str]) -> list[int]:
        """Return the ids of a repaired line, given also as its chunks between white space."""
        ids: list[int] = []
        for chunk in chunks:
            known = self._ids_of_chunk.get(chunk)
            if known is None:
                words = self._words.of_chunk(chunk)
                if words is None:
                    words = self._words.split(text_standardize(line))
                    return [i for word in words for i in self._word_ids(word.lower())]
                known = tuple([i for word in words for i in self._word_ids(word.lower())])
                _remember(self._ids_of_chunk, chunk, known)
            ids += known
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        """Return the ids of one word in small letters."""
        ids = self._ids_of_word.get(word)
        if ids is None:
            ids = tuple([self.encoder.get(token, 0) for token in self.bpe(word).split(" ")])
            _remember(self._ids_of_word, word, ids)
        return ids

    def _readable(self, i: int) -> str:
        """Return the text of one id, with spaces where words end."""
        if i not in self.decoder:  # The caller may have added tokens to the encoder.
            self.decoder.update({new: token for token, new in self.encoder.items()})
        if i not in self.decoder:
            raise InputError(
                f"TextEncoder.decode: id {i} is not in the vocabulary of {len(self.encoder)} "
                "tokens; decode with the encoder that made the ids."
            )
        token = self.decoder[i]
        return f" {token} " if i >= self._n_vocab else token.replace("</w>", " ")


def _remember(cache: dict[str, tuple[int, ...]], key: str, ids: tuple[int, ...]) -> None:
    """Add a result to a cache. A full cache is emptied first, and a long key is not added."""
    if len(key) > _LONGEST_KEY:
        return
    if len(cache) >= _CACHE_ENTRIES:
        cache.clear()
    cache[key] = ids
