"""Text to token ids and back: standardise, split into words, byte-pair encode.

The ids are those of the original ``TextEncoder``. :meth:`TextEncoder._encode_directly` is the
plain way to them. :meth:`TextEncoder.encode` reaches the same ids faster: what becomes of a
white-space delimited piece does not depend on its neighbours, so each piece is worked out once.
Where that could fail (see :class:`EnglishWords`), it falls back on the plain way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise, repeat
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import ftfy
from tqdm import tqdm

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text

SPACY_RULES = ("2.0", "installed")

_TYPOGRAPHY = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# A backslash is not among these: in the original's pattern, which is not a raw string, the
# alternative that looks like a run of backslashes is a second run of plus signs.
_SET_APART = re.compile(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)')
_AROUND_NEWLINE = re.compile(r"\s*\n\s*")
_OTHER_SPACE = re.compile(r"[^\S\n]+")

# Letters, perhaps a possessive, perhaps a mark. No affix or infix rule of spaCy's English looks
# at ASCII letters alone; "'s" is a suffix, and so is "." after a small letter; the other marks
# are set apart by text_standardize. Only special cases can split such a piece otherwise.
_PLAIN_PIECE = re.compile(r"([A-Za-z]*[a-z])('s)?([.,!?]?)")

_CACHE_ENTRIES = 1 << 16
_LONGEST_KEY = 64  # characters; with the above it bounds each cache to some tens of MB
_BAR_DELAY = 1.0  # seconds of work before a progress bar appears
_NO_MERGE = 1 << 60  # the rank of a pair that is not in the merges


def text_standardize(text: str) -> str:
    """``text`` with plain dashes, set-apart punctuation and single spaces.

    Long dashes, the ellipsis and the acute accent become ASCII; runs of one of
    ``- ~ ! " ; ? + , ) ( / * [ ] } { | _`` get a space on both sides; white space around
    newlines becomes ``" \\n "``, any other white space one space. Source: the original's
    function of the same name.

    >>> text_standardize("Wait—what?!\\tNo")
    'Wait - what ? ! No'
    """
    text = text.translate(_TYPOGRAPHY)
    text = _SET_APART.sub(r" \1 ", text)
    text = _AROUND_NEWLINE.sub(" \n ", text)
    return _OTHER_SPACE.sub(" ", text).strip()


class TextEncoder:
    """The original's text encoder: ftfy, :func:`text_standardize`, spaCy words, BPE.

    The byte-pair encoding is that of the paper, section 4.1, over characters, the last one of
    a word carrying ``</w>``. Safe to share between threads; ids never depend on what was
    encoded before.

    Attributes:
        encoder: piece to id. A plain dict; the caller adds the three special tokens to it.
            Words once encoded keep their ids, so add pieces that words may hold before that.
        decoder: id to piece.

    Args:
        encoder_path: JSON file, one object of pieces and their ids, 0, 1, 2, ... in any order.
        bpe_path: merges, best first, two pieces a line, after a ``#version`` line. As in the
            original, what follows the last newline is ignored.
        spacy_rules: special cases of English words: ``"2.0"``, which the released model's text
            was split by, or ``"installed"``, those of the spaCy at hand, as the original would
            use when run today.
        check_merges: see also that the merges are the vocabulary's, all of them: others, or
            some of them, give ids too, but not those that a model was trained on.

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
        self.encoder = _read_vocabulary(encoder_path)
        self.decoder = {i: piece for piece, i in self.encoder.items()}
        self._n_vocab = len(self.encoder)
        self._ranks = _read_merges(bpe_path)
        if check_merges:
            self._check_merges(bpe_path)
        self._words = EnglishWords(spacy_rules)
        # Tuples: the garbage collector soon stops looking at those that hold only numbers.
        self._ids_of_word: dict[str, tuple[int, ...]] = {}
        self._ids_of_piece: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Iterable[str], verbose: bool = True) -> list[list[int]]:
        """The token ids of each text; a piece outside the vocabulary is id 0.

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
        """Readable text of ``ids``: one space between words, newlines kept, none at the ends.

        What the encoder drops (capitals, spacing around punctuation) does not come back. Ids
        that were added to :attr:`encoder` read as words of their own.

        Raises:
            InputError: an id is in neither :attr:`decoder` nor :attr:`encoder`.
        """
        text = "".join(self._readable(int(i)) for i in ids)
        return re.sub(" +", " ", re.sub(" *\n *", "\n", text)).strip(" ")

    def bpe(self, word: str) -> str:
        """The pieces of one word, separated by spaces, the last one ending in ``</w>``.

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
        pieces = " ".join(parts)
        # What spaCy makes of a newline inside a text is "\n "; the vocabulary has "\n</w>".
        return "\n</w>" if pieces == "\n  </w>" else pieces

    def _check_merges(self, bpe_path: str | Path) -> None:
        """Raise an :class:`InputError` unless merges and vocabulary make one another's pieces.

        Pieces that do not end a word may be special tokens, which no merge makes.
        """
        made = {one + two: rank for (one, two), rank in self._ranks.items()}
        remedy = "the two files must be whole, and from one place: get both again."
        for piece, rank in made.items():
            if piece not in self.encoder:
                raise InputError(
                    f"{bpe_path}, line {rank + 2}: makes {brief(piece)}, which the vocabulary "
                    f"lacks; {remedy}"
                )
        for piece in self.encoder:
            if piece.endswith("</w>") and len(piece) > len("x</w>") and piece not in made:
                raise InputError(
                    f"{bpe_path}: no merge makes {brief(piece)} of the vocabulary; {remedy}"
                )

    def _encode_directly(self, text: str) -> list[int]:
        """The ids of ``text`` as the original finds them, only words remembered."""
        words = self._words.split(text_standardize(ftfy.fix_text(text)))
        return [i for word in words for i in self._word_ids(word.lower())]

    def _encode_text(self, text: str, index: int) -> list[int]:
        if not isinstance(text, str):
            raise InputError(
                f"TextEncoder.encode: text {index} is {type(text).__name__}, expected str; "
                "convert it, or leave it out."
            )
        ids: list[int] = []
        for piece in _pieces(text):
            known = self._ids_of_piece.get(piece)
            if known is None:
                words = self._words.of_piece(piece)
                if words is None:
                    return self._encode_directly(text)
                known = tuple([i for word in words for i in self._word_ids(word.lower())])
                _remember(self._ids_of_piece, piece, known)
            ids += known
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        ids = self._ids_of_word.get(word)
        if ids is None:
            ids = tuple([self.encoder.get(piece, 0) for piece in self.bpe(word).split(" ")])
            _remember(self._ids_of_word, word, ids)
        return ids

    def _readable(self, i: int) -> str:
        if i not in self.decoder:  # perhaps added to the encoder since
            self.decoder.update({new: piece for piece, new in self.encoder.items()})
        if i not in self.decoder:
            raise InputError(
                f"TextEncoder.decode: id {i} is not in the vocabulary of {len(self.encoder)} "
                "pieces; decode with the encoder that made the ids."
            )
        piece = self.decoder[i]
        return f" {piece} " if i >= self._n_vocab else piece.replace("</w>", " ")


class EnglishWords:
    """spaCy's English tokenizer, alone, with the special cases of a certain spaCy.

    spaCy splits text at white space, cuts each chunk by rules, then looks through the tokens of
    the whole text for special cases that the rules cut up and joins them: "x=D" becomes "x", "=",
    "D" and then "x", "=D". Tokens that look like a case across a space are not joined, but they
    keep an overlapping case from being joined: "=D=x" gives other words after "(" than alone,
    because of the case "(=". Only through this second pass does a chunk depend on neighbours.
    """

    def __init__(self, rules: str) -> None:
        self._cases = _special_cases(rules)
        self._tokenizer = _tokenizer(self._cases)
        self._joined = self._ends_of_joined_cases()

    def split(self, text: str) -> list[str]:
        """The words of a standardised text, case kept."""
        return [token.text for token in self._tokenizer(text)]

    def of_piece(self, piece: str) -> list[str] | None:
        """The words of a piece without white space, or of a newline.

        None if they may depend on what stands around the piece.
        """
        if piece == "\n":  # standardising it alone would leave nothing
            return [piece]
        if plain := self._of_plain(piece):
            return plain
        words = []
        for chunk in text_standardize(piece).split(" "):
            more = self._of_plain(chunk) or self._of_chunk(chunk)
            if more is None:
                return None
            words += more
        return words

    def _of_plain(self, piece: str) -> list[str] | None:
        """The words of a piece so simple that spaCy need not be asked, else None."""
        match = _PLAIN_PIECE.fullmatch(piece)
        if match is None:
            return None
        stem, possessive, mark = match.groups()
        cases = self._cases
        if stem in cases or piece in cases or (possessive and stem + possessive in cases):
            return None
        return [part for part in (stem, possessive, mark) if part]

    def _of_chunk(self, chunk: str) -> list[str] | None:
        """The words of a standardised chunk, None if the second pass may have joined any."""
        words = self.split(chunk)
        if self._joined.isdisjoint(words) or words == self._cases.get(chunk):
            return words
        return None

    def _ends_of_joined_cases(self) -> frozenset[str]:
        """The last words of all special cases that the second pass can put in place.

        These are the cases with an affix or infix that the rules alone would split otherwise.
        """
        bare = _tokenizer({})
        finds = (bare.find_prefix, bare.find_suffix, bare.find_infix)
        return frozenset(
            words[-1]
            for case, words in self._cases.items()
            if any(find(case) for find in finds) and [token.text for token in bare(case)] != words
        )


def _pieces(text: str) -> list[str]:
    """The white-space delimited pieces of a text, with "\\n" for each (run of) newline."""
    # On printable ASCII without entities every step of ftfy.fix_text changes nothing: there are
    # no entities, escapes, control characters, line ends, non-ASCII quotes or mojibake in it.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.split()
    text = text_standardize(ftfy.fix_text(text))
    return text.split(" ") if text else []


def _remember(cache: dict[str, tuple[int, ...]], key: str, ids: tuple[int, ...]) -> None:
    """Keep a result; a full cache starts anew, a key too long to recur is not kept."""
    if len(key) > _LONGEST_KEY:
        return
    if len(cache) >= _CACHE_ENTRIES:
        cache.clear()
    cache[key] = ids


def _special_cases(rules: str) -> dict[str, list[str]]:
    """spaCy's English special cases and their words, for one of ``SPACY_RULES``."""
    from spacy.lang.en import English
    from spacy.symbols import ORTH

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
    """spaCy's English tokenizer with these special cases; needs no model and no pipeline."""
    from spacy import util
    from spacy.lang.en import English
    from spacy.symbols import ORTH
    from spacy.tokenizer import Tokenizer
    from spacy.vocab import Vocab

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


def _read_vocabulary(path: str | Path) -> dict[str, int]:
    """The pieces and their ids 0 .. n - 1, or an :class:`InputError`."""
    remedy = 'expected one object such as {"the</w>": 0, "a</w>": 1}; get a whole copy'

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(piece for piece, _ in pairs).most_common(1)[0][0]
            raise InputError(
                f"{path}: piece {brief(twice)} stands there twice; keep one of the two."
            )
        return found

    try:
        vocabulary = json.loads(read_text(path, "the vocabulary"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # the first kind names line and column
        raise InputError(f"{path}: the vocabulary is not JSON: {error}; {remedy}.") from error
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{path}: the vocabulary is not an object with pieces; {remedy}.")
    owners: dict[int, str] = {}
    last = len(vocabulary) - 1
    for piece, i in vocabulary.items():
        if type(i) is not int or not 0 <= i <= last or owners.setdefault(i, piece) != piece:
            raise InputError(
                f"{path}: piece {brief(piece)} has id {brief(i)}; expected each number from 0 to "
                f"{last} for one of the {last + 1} pieces; number them anew."
            )
    return vocabulary


def _read_merges(path: str | Path) -> dict[tuple[str, str], int]:
    """The rank of each pair of pieces, 0 for the first merge, or an :class:`InputError`."""
    # Not splitlines(), which also breaks lines at characters that may stand in a piece.
    text = read_text(path, "the BPE merges").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not text.startswith("#"):
        raise InputError(
            f"{path}, line 1: expected a version line such as '#version: 0.2', which is not a "
            f"merge, found {lines[0][:40]!r}; put one before the first merge."
        )
    ranks: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        pair = tuple(line.split())
        if len(pair) != 2:
            raise InputError(
                f"{path}, line {number}: expected two pieces and one space between them, found "
                f"{line[:40]!r}; mend or remove the line."
            )
        ranks[pair] = number - 2
    return ranks
