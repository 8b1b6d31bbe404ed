"""Read the two files of a byte-pair encoding: its vocabulary and its merges."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_bytes, read_text

RELEASED_NAMES = ("encoder_bpe_40000.json", "vocab_40000.bpe")
"""The names that vocabulary and merges have in the released layout, whatever their size."""


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """Read the ids of all tokens, 0 to n - 1.

    Args:
        path: a JSON file of one object: tokens and their ids, in any order.

    Raises:
        InputError: the file cannot be read or is malformed; the message names the token.
    """
    remedy = 'expected one object such as {"the</w>": 0, "a</w>": 1}; get a whole copy'

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(token for token, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{path}: token {brief(twice)} is there twice; keep one of the two.")
        return found

    try:
        vocabulary = json.loads(read_text(path, "the vocabulary"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # the first kind names line and column
        raise InputError(f"{path}: the vocabulary is not JSON: {error}; {remedy}.") from error
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{path}: the vocabulary is not an object with tokens; {remedy}.")
    owners: dict[int, str] = {}
    last = len(vocabulary) - 1
    for token, i in vocabulary.items():
        if type(i) is not int or not 0 <= i <= last or owners.setdefault(i, token) != token:
            raise InputError(
                f"{path}: token {brief(token)} has id {brief(i)}; expected each number from 0 to "
                f"{last} for one of the {last + 1} tokens; number them anew."
            )
    return vocabulary


def read_merges(path: str | Path) -> dict[tuple[str, str], int]:
    """Read the rank of each pair of symbols, 0 for the first merge.

    Args:
        path: merges, best first, two symbols per line, after a version line. As in the original,
            text after the last newline is ignored.

    Raises:
        InputError: the file cannot be read or is malformed; the message names the line.
    """
    # Not splitlines(), which also breaks lines at characters that a symbol may hold.
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
                f"{path}, line {number}: expected two symbols and one space between them, found "
                f"{line[:40]!r}; correct or remove the line."
            )
        ranks[pair] = number - 2
    return ranks


def require_match(
    path: str | Path, merges: dict[tuple[str, str], int], vocabulary: dict[str, int]
) -> None:
    """Check that merges and vocabulary belong together.

    Every merge must make a token of the vocabulary, and every token that ends a word and is longer
    than one character must be made by a merge. Other tokens may be special tokens, which no merge
    makes.

    Args:
        path: the file of merges, for messages.
        merges: from :func:`read_merges`.
        vocabulary: from :func:`read_vocabulary`.

    Raises:
        InputError: a merge makes no token of the vocabulary, or no merge makes a token.
    """
    made = {one + two: rank for (one, two), rank in merges.items()}
    remedy = "the two files must be complete and belong together: get both again."
    for token, rank in made.items():
        if token not in vocabulary:
            raise InputError(
                f"{path}, line {rank + 2}: makes {brief(token)}, which the vocabulary lacks; "
                f"{remedy}"
            )
    for token in vocabulary:
        if token.endswith("</w>") and len(token) > len("x</w>") and token not in made:
            raise InputError(f"{path}: no merge makes {brief(token)} of the vocabulary; {remedy}")


def vocabulary_sha256(files: tuple[Path, Path]) -> str:
    """Return one SHA-256 for the content of the files of a vocabulary and its merges.

    Raises:
        InputError: a file cannot be read.
    """
    each = [hashlib.sha256(read_bytes(path, "the vocabulary")).digest() for path in files]
    return hashlib.sha256(b"".join(each)).hexdigest()
