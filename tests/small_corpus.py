"""A corpus of the words of the tiny task, for pretraining in a second."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import tiny

from gpt1.batches.corpus import (
    DOCUMENTS_FILE,
    TOKENS_FILE,
    Header,
    documents_head,
    smallest_dtype,
    vocabulary_of,
)
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.vocabulary import RELEASED_NAMES, vocabulary_sha256

N_SENTENCES, N_HELD_OUT = 300, 20


def sentences(n: int, seed: int = 3) -> list[str]:
    """Return sentences whose last word follows from one before it."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        name, thing = rng.choice(("anna", "ben", "carl")), rng.choice(("kite", "boat", "drum"))
        did, felt = rng.choice((("lost", "cried"), ("won", "smiled")))
        found.append(f"{name} had a {thing}. {name} {did} it. {name} {felt}.")
    return found


def write_corpus(directory: Path, n: int = N_SENTENCES, n_held_out: int = N_HELD_OUT) -> Path:
    """Write a corpus of ``n`` documents, of which the last ``n_held_out`` are held out."""
    directory.mkdir(parents=True)
    tiny.write_vocabulary(directory)
    files = vocabulary_of(directory)
    encoder = TextEncoder(*files)
    texts = sentences(n)
    ids = encoder.encode(texts, verbose=False)
    n_vocab = len(encoder.encoder)
    tokens = np.concatenate(ids).astype(smallest_dtype(n_vocab))
    tokens.tofile(directory / TOKENS_FILE)
    rows = [(len(own), len(text.split()), len(text)) for own, text in zip(ids, texts, strict=True)]
    table = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(rows, 0)])
    data = documents_head(n) + table.astype("<i8").tobytes()
    (directory / DOCUMENTS_FILE).write_bytes(data)
    held_out = table[-1] - table[n - n_held_out]
    names = ("tokens", "words", "characters")
    Header(
        dtype=tokens.dtype.name,
        n_vocab=n_vocab,
        vocabulary_sha256=vocabulary_sha256(files),
        tokens_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        n_documents=n,
        n_held_out_documents=n_held_out,
        **{f"n_{name}": int(x) for name, x in zip(names, table[-1], strict=True)},
        **{f"n_held_out_{name}": int(x) for name, x in zip(names, held_out, strict=True)},
    ).write(directory)
    return directory


def copy_vocabulary(corpus: Path, directory: Path) -> None:
    """Copy the vocabulary of a corpus into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in RELEASED_NAMES:
        shutil.copy(corpus / name, directory)
