"""Learn a byte-pair encoding from counts of words (Sennrich et al. 2016; paper, section 4.1)."""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from gpt1.runtime.files import atomic_write
from gpt1.text_utils.words import EnglishWords, text_standardize

Pair = tuple[str, str]
NEWLINE = "\n"
"""The word that stands for a newline; it is one token, and no merge is learned from it."""


def count_words(text: str, words: EnglishWords) -> Counter[str]:
    """Count the words of a repaired text in small letters; newlines between lines are words, too.

    Args:
        text: what :func:`gpt1.text_utils.words.repair` returned.
        words: the rules that split a text into words.
    """
    lines = [line for line in text.split("\n") if not line.isspace() and line]
    chunks: Counter[str] = Counter()
    counts: Counter[str] = Counter({NEWLINE: len(lines) - 1} if len(lines) > 1 else {})
    dependent = set()
    for line in lines:
        chunks.update(line.split())
    known = {chunk: words.of_chunk(chunk) for chunk in chunks}
    dependent = {chunk for chunk, found in known.items() if found is None}
    for line in lines if dependent else ():
        if not dependent.isdisjoint(own := line.split()):
            chunks.subtract(own)
            counts.update(word.lower() for word in words.split(text_standardize(line)))
    for chunk, count in chunks.items():
        for word in known[chunk] or ():
            counts[word.lower()] += count
    return +counts


def learn_merges(
    counts: Mapping[str, int], n_merges: int | None = None, *, min_count: int
) -> list[Pair]:
    """Learn merges of byte pairs from words, most frequent pair first.

    At the beginning each character is a symbol, and the last one of a word ends in ``</w>``. In
    each round the pair of neighbouring symbols that occurs most often in the text becomes one
    symbol wherever it occurs, from left to right. Of equally frequent pairs the first in the order
    of their characters is merged first, so that the merges depend on the counts alone.

    The counts of pairs are kept up to date: a merge changes only the words that hold its pair.

    Args:
        counts: how often each word occurs.
        n_merges: the most merges to learn [no limit].
        min_count: a pair that occurs less often is not merged.
    """
    pairs = _Pairs(counts)
    merges: list[Pair] = []
    while n_merges is None or len(merges) < n_merges:
        best = pairs.most_frequent()
        if best is None or pairs.counts[best] < min_count:
            break
        merges.append(best)
        pairs.merge(best)
    return merges


class _Pairs:
    """The words of a text as symbols, and how often each pair of neighbouring symbols occurs.

    Attributes:
        counts: how often each pair occurs.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        own = [(word, count) for word, count in counts.items() if word != NEWLINE]
        self._words = [[*word[:-1], word[-1] + "</w>"] for word, _ in own]
        self._times = [count for _, count in own]
        self.counts: dict[Pair, int] = defaultdict(int)
        self._places: dict[Pair, set[int]] = defaultdict(set)  # words that hold the pair, or did
        for index, symbols in enumerate(self._words):
            for pair in pairwise(symbols):
                self.counts[pair] += self._times[index]
                self._places[pair].add(index)
        # A pair's smallest entry never has a lower count than the pair.
        self._heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self._heap)

    def most_frequent(self) -> Pair | None:
        """Return the pair that occurs most often, the first of several; None if there is none."""
        while self._heap:
            count, pair = self._heap[0]
            now = self.counts.get(pair, 0)
            if now == -count:
                return pair
            if now:
                heapq.heapreplace(self._heap, (-now, pair))
            else:
                heapq.heappop(self._heap)
        return None

    def merge(self, pair: Pair) -> None:
        """Make one symbol of a pair in all words, and bring the counts up to date."""
        changes: dict[Pair, int] = defaultdict(int)
        for index in self._places.pop(pair):
            old, times = self._words[index], self._times[index]
            new = _merged(old, pair)
            if len(new) == len(old):
                continue
            self._words[index] = new
            for gone in pairwise(old):
                changes[gone] -= times
            for made in pairwise(new):
                changes[made] += times
                self._places[made].add(index)
        for each, change in changes.items():
            self.counts[each] += change
            if self.counts[each] == 0:
                del self.counts[each]
            elif change > 0:
                heapq.heappush(self._heap, (-self.counts[each], each))


def _merged(symbols: Sequence[str], pair: Pair) -> list[str]:
    """Return the symbols of a word with every occurrence of a pair joined, from the left."""
    first, second = pair
    joined, at = [], 0
    while at < len(symbols):
        if symbols[at] == first and symbols[at + 1 : at + 2] == [second]:
            joined.append(first + second)
            at += 2
        else:
            joined.append(symbols[at])
            at += 1
    return joined


def tokens_of(words: Iterable[str], merges: Sequence[Pair]) -> dict[str, int]:
    """Return the ids of a learned vocabulary, in the order of the released one.

    The order is: the unknown token, which text never gives unless it has other characters, the
    characters, the characters that end a word, and the results of the merges.

    Args:
        words: the words from which the merges were learned.
        merges: from :func:`learn_merges`.
    """
    characters = sorted({character for word in words for character in word})
    ends = (character + "</w>" for character in characters)
    tokens = ["<unk>", *characters, *ends, *map("".join, merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def write_vocabulary(
    encoder_path: Path, bpe_path: Path, tokens: Mapping[str, int], merges: Sequence[Pair]
) -> None:
    """Write the two files that :class:`gpt1.text_utils.encoder.TextEncoder` reads.

    Raises:
        Gpt1Error: a file cannot be written.
    """
    with atomic_write(encoder_path, "w") as file:
        json.dump(tokens, file, ensure_ascii=True, indent=0)
    with atomic_write(bpe_path, "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges))
