"""A corpus: the token ids of many documents in one file, which is mapped into memory, not read.

A corpus is a directory:

``tokens.bin``
    the ids of all documents, one after another, as little-endian ``uint16``, or ``uint32`` where
    the vocabulary has more than 65,536 tokens.
``documents.npy``
    int64 [n_documents + 1, 3]: for each document the tokens, words and characters that come before
    it, and last those of the whole corpus.
``corpus.json``
    the :class:`Header`, written last.
``encoder_bpe_40000.json``, ``vocab_40000.bpe``
    the vocabulary and its merges, under the names of the released layout.

The last tokens are held out for validation.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_regular, read_errors, read_text
from gpt1.runtime.json_files import Count, CountFrom1, Kind, Text, parse_object, typed
from gpt1.text_utils.vocabulary import RELEASED_NAMES, read_vocabulary, vocabulary_sha256

FORMAT, VERSION = "gpt1 corpus", 1
HEADER_FILE, TOKENS_FILE, DOCUMENTS_FILE = "corpus.json", "tokens.bin", "documents.npy"
FILES = (HEADER_FILE, TOKENS_FILE, DOCUMENTS_FILE, *RELEASED_NAMES)
_REMEDY = "make the corpus again with gpt1 corpus"
_DTYPES = ("uint16", "uint32")

Dtype = Annotated[str, Kind(" or ".join(_DTYPES), lambda x: x in _DTYPES)]


def smallest_dtype(n_vocab: int) -> str:
    """Return the type of the ids of a vocabulary of ``n_vocab`` tokens in a token file."""
    return _DTYPES[0] if n_vocab <= 1 << 16 else _DTYPES[1]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What ``corpus.json`` records besides the format and its version.

    Attributes:
        dtype: the type of the ids in the token file.
        n_vocab: the number of tokens in the vocabulary.
        vocabulary_sha256: see :func:`gpt1.text_utils.vocabulary.vocabulary_sha256`.
        tokens_sha256: the SHA-256 of the token file.
        n_documents: documents that are not blank.
        n_tokens: tokens of all documents.
        n_words: words between white space, in the text as ftfy repairs it.
        n_characters: characters of the text, as it was read.
        n_held_out_documents, n_held_out_tokens, n_held_out_words, n_held_out_characters: how much
            of that the held-out part has. If there is only one document, its end is held out.
    """

    dtype: Dtype
    n_vocab: CountFrom1
    vocabulary_sha256: Text
    tokens_sha256: Text
    n_documents: CountFrom1
    n_tokens: CountFrom1
    n_words: Count
    n_characters: CountFrom1
    n_held_out_documents: Count
    n_held_out_tokens: Count
    n_held_out_words: Count
    n_held_out_characters: Count

    def write(self, directory: Path) -> None:
        """Write ``corpus.json`` into a directory."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with atomic_write(directory / HEADER_FILE, "w") as file:
            file.write(json.dumps(values, indent=1) + "\n")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus on the disk, open for reading.

    Attributes:
        directory: where it is.
        header: its sizes.
        tokens: the ids of all documents, [n_tokens], mapped into memory.
        documents: int64 [n_documents + 1, 3], mapped into memory; see the top of this module.
    """

    directory: Path
    header: Header
    tokens: npt.NDArray[Any]
    documents: npt.NDArray[np.int64]

    @classmethod
    def open(cls, directory: str | Path) -> Corpus:
        """Open a corpus, and check that its files belong together.

        The ids themselves are not read; :attr:`Header.tokens_sha256` is the digest of them.

        Raises:
            InputError: there is no corpus, it is unfinished, of another version or damaged, or the
                vocabulary in the directory is another one.
        """
        directory = Path(directory)
        header = _read_header(directory)
        return cls(
            directory, header, _map_tokens(directory, header), _map_documents(directory, header)
        )

    def check_tokens(self) -> None:
        """Check that the ids are those that were written.

        Raises:
            InputError: they are not; the file is damaged.
        """
        path = self.directory / TOKENS_FILE
        if file_sha256(path) != self.header.tokens_sha256:
            raise InputError(
                f"{path}: is damaged: its SHA-256 is not that in {HEADER_FILE}; {_REMEDY}"
            )

    @property
    def train(self) -> npt.NDArray[Any]:
        """The ids to train on, [n_tokens - n_held_out_tokens]."""
        return self.tokens[: self.header.n_tokens - self.header.n_held_out_tokens]

    @property
    def held_out(self) -> npt.NDArray[Any]:
        """The ids to validate on, [n_held_out_tokens]."""
        return self.tokens[self.header.n_tokens - self.header.n_held_out_tokens :]

    @property
    def vocabulary(self) -> tuple[Path, Path]:
        """The paths of the vocabulary and the merges."""
        return vocabulary_of(self.directory)


def vocabulary_of(directory: Path) -> tuple[Path, Path]:
    """Return the paths of vocabulary and merges in the directory of a corpus."""
    return directory / RELEASED_NAMES[0], directory / RELEASED_NAMES[1]


def _read_header(directory: Path) -> Header:
    """Read ``corpus.json``, and check its values and the vocabulary.

    Raises:
        InputError: see :meth:`Corpus.open`.
    """
    path = directory / HEADER_FILE
    if not os.path.lexists(path):
        raise InputError(
            f"{directory}: there is no corpus in this directory, which needs a {HEADER_FILE}; name "
            "the directory that gpt1 corpus wrote with --out"
        )
    values = parse_object(read_text(path, "the header of the corpus"), str(path), _REMEDY)
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise InputError(
            f"{path}: is not the header of a corpus of version {VERSION}, which alone is read; "
            f"{_REMEDY}"
        )
    header = typed(Header, values, str(path), _REMEDY)
    _check_sizes(path, header)
    files = vocabulary_of(directory)
    n_vocab = len(read_vocabulary(files[0]))
    if vocabulary_sha256(files) != header.vocabulary_sha256 or n_vocab != header.n_vocab:
        raise InputError(
            f"{directory}: {' and '.join(RELEASED_NAMES)} are not the vocabulary with which the "
            f"corpus was made; put the right ones back, or {_REMEDY}"
        )
    return header


def _check_sizes(path: Path, header: Header) -> None:
    """Check that the numbers of a header can be true together."""
    for name in ("documents", "tokens", "words", "characters"):
        all_of_them = getattr(header, f"n_{name}")
        held_out = getattr(header, f"n_held_out_{name}")
        if held_out > all_of_them:
            raise InputError(
                f"{path}: n_held_out_{name} {held_out} is more than n_{name} {all_of_them}; "
                f"{_REMEDY}"
            )
    if header.dtype != smallest_dtype(header.n_vocab):
        raise InputError(
            f"{path}: {header.dtype} is not the type of ids of n_vocab {header.n_vocab}; {_REMEDY}"
        )


def _map_tokens(directory: Path, header: Header) -> npt.NDArray[Any]:
    """Map the token file into memory.

    Raises:
        InputError: it is missing, or its size is not that of the header.
    """
    path, dtype = directory / TOKENS_FILE, np.dtype(header.dtype).newbyteorder("<")
    check_regular(path, "the token file")
    size, expected = os.path.getsize(path), header.n_tokens * dtype.itemsize
    if size != expected:
        raise InputError(
            f"{path}: has {size} bytes, but {expected} were expected by {HEADER_FILE}: it was cut "
            f"short or replaced; copy it again, or {_REMEDY}"
        )
    with read_errors(path, "the token file"):
        return np.memmap(path, dtype, mode="r")


def _map_documents(directory: Path, header: Header) -> npt.NDArray[np.int64]:
    """Map the table of documents into memory.

    Raises:
        InputError: it is missing or damaged, or does not fit the header.
    """
    path, head = directory / DOCUMENTS_FILE, documents_head(header.n_documents)
    shape = (header.n_documents + 1, 3)
    check_regular(path, "the table of documents")
    with read_errors(path, "the table of documents"), open(path, "rb") as file:
        is_whole = file.read(len(head)) == head
        is_whole = is_whole and os.path.getsize(path) == len(head) + 8 * shape[0] * shape[1]
    if is_whole:
        table = np.memmap(path, "<i8", mode="r", offset=len(head), shape=shape)
        totals = [header.n_tokens, header.n_words, header.n_characters]
        if table[0].tolist() == [0, 0, 0] and table[-1].tolist() == totals:
            return table
    raise InputError(f"{path}: is not the table of this corpus's documents; {_REMEDY}")


def documents_head(n_documents: int) -> bytes:
    """Return the bytes before the numbers of ``documents.npy``, in version 1.0 of NumPy's format.

    NumPy's own functions write other spaces in other versions, and raise errors of many kinds when
    they read a damaged file.
    """
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({n_documents + 1}, 3), }}"
    return b"\x93NUMPY\x01\x00v\x00" + f"{text:117}\n".encode()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
