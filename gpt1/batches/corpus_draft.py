"""A corpus that is being made: its files, and how far it is, so that the work can go on later.

The files lie in a directory beside the one that the corpus is to have. It gets that name when it
is complete, so that nothing half-written has the name of a corpus.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpt1.batches.corpus import (
    DOCUMENTS_FILE,
    TOKENS_FILE,
    Corpus,
    Header,
    documents_head,
    file_sha256,
    smallest_dtype,
    vocabulary_of,
)
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_writable, try_lock, write_errors
from gpt1.text_utils.documents import Place
from gpt1.text_utils.pieces import Joint
from gpt1.text_utils.vocabulary import vocabulary_sha256

_LOCK, _PROGRESS, _ENDS = "lock", "progress.json", "documents.bin"
_BLOCK = 1 << 20  # bytes that are read at a time
_LOCK_TRIES, _LOCK_PAUSE = 10, 0.1  # seconds


@dataclass
class Sizes:
    """Tokens, words and characters."""

    n_tokens: int = 0
    n_words: int = 0
    n_characters: int = 0

    def row(self) -> list[int]:
        """Return the three numbers, as a row of the table of documents has them."""
        return [self.n_tokens, self.n_words, self.n_characters]


@dataclass
class Progress:
    """How far the encoding of the documents is.

    Attributes:
        place: where reading goes on.
        joint: what is known of the document that is being read.
        sizes: of all text before ``place``.
        n_documents: documents that have ended and are not blank.
        split: the sizes of what comes before the held-out part, if there is only one document.
    """

    place: Place = field(default_factory=Place)
    joint: Joint[Any] = field(default_factory=Joint)
    sizes: Sizes = field(default_factory=Sizes)
    n_documents: int = 0
    split: Sizes | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Progress:
        """Return the progress that :func:`dataclasses.asdict` made a dictionary of."""
        return cls(
            place=Place(**values["place"]),
            joint=Joint(**values["joint"]),
            sizes=Sizes(**values["sizes"]),
            n_documents=values["n_documents"],
            split=None if values["split"] is None else Sizes(**values["split"]),
        )


class Draft(ExitStack):
    """The directory of an unfinished corpus, which one process at a time may write to.

    Args:
        out: the directory that the corpus is to have.
        recipe: what the corpus is made of. If there is a draft with another recipe, it is removed.

    Attributes:
        directory: where the files are.
        progress: how far the encoding is; None before it has begun.

    Raises:
        InputError: ``out`` holds something, or another process is making this corpus.
        Gpt1Error: the directory cannot be written.
    """

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        self.out = Path(os.path.realpath(out))
        self.directory = self.out.with_name(f".{self.out.name}.unfinished")
        self.progress: Progress | None = None
        self._recipe = json.loads(json.dumps(recipe))
        _check_free(out)
        check_writable(self.directory)
        lock = self.directory / _LOCK
        with write_errors(lock):
            file = self.enter_context(lock.open("a+b", buffering=0))
        if not _lock(file):
            raise InputError(
                f"--out {out}: another process is making a corpus there; wait for its end, or "
                "name another directory"
            )
        self._read_progress()

    def _read_progress(self) -> None:
        """Read how far an earlier process was; remove its files if they are of no use."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((self.directory / _PROGRESS).read_text("utf-8"))
            if values["recipe"] == self._recipe:
                self.progress = Progress.of(values["progress"])
                return
        for path in self.directory.iterdir():
            if path.name != _LOCK:
                path.unlink()

    @property
    def vocabulary(self) -> tuple[Path, Path]:
        """The paths of the vocabulary and the merges."""
        return vocabulary_of(self.directory)

    def begin(self, n_vocab: int) -> None:
        """Open the files of tokens and documents where the progress says that they end."""
        self.progress = self.progress or Progress()
        self.n_vocab, self.dtype = n_vocab, np.dtype(smallest_dtype(n_vocab)).newbyteorder("<")
        sizes = self.progress.sizes
        self._tokens = self._open(TOKENS_FILE, sizes.n_tokens * self.dtype.itemsize)
        self._ends = self._open(_ENDS, self.progress.n_documents * 3 * 8)

    def _open(self, name: str, n_bytes: int) -> io.FileIO:
        """Open a file, without a buffer, and drop what it has behind ``n_bytes`` bytes."""
        path = self.directory / name
        with write_errors(path):
            path.touch()
            file = self.enter_context(io.FileIO(path, "r+"))
            is_short = file.seek(0, os.SEEK_END) < n_bytes
            file.truncate(n_bytes)
            file.seek(n_bytes)
        if is_short:  # The caller removes the draft.
            raise InputError(
                f"{path}: was cut short or removed since an earlier process wrote it; start the "
                "same command again, which begins anew"
            )
        return file

    def add(self, ids: bytes, n_words: int) -> None:
        """Append the ids of some text, which has so many words."""
        assert self.progress is not None
        self._append(self._tokens, TOKENS_FILE, ids)
        self.progress.sizes.n_tokens += len(ids) // self.dtype.itemsize
        self.progress.sizes.n_words += n_words

    def end_document(self) -> None:
        """Note that a document ends here, if it is not blank."""
        assert self.progress is not None
        if self.progress.joint.has_text:
            row = np.array(self.progress.sizes.row(), "<i8")
            self._append(self._ends, _ENDS, row.tobytes())
            self.progress.n_documents += 1
        self.progress.joint = Joint()

    def _append(self, file: io.FileIO, name: str, data: bytes) -> None:
        rest = memoryview(data)
        with write_errors(self.directory / name):
            while rest:
                rest = rest[file.write(rest) :]

    def save(self) -> None:
        """Record the progress; the corpus can go on from here after a crash at any time."""
        assert self.progress is not None
        for file, name in ((self._tokens, TOKENS_FILE), (self._ends, _ENDS)):
            with write_errors(self.directory / name):
                os.fsync(file.fileno())
        values = {"recipe": self._recipe, "progress": asdict(self.progress)}
        with atomic_write(self.directory / _PROGRESS, "w") as text:
            json.dump(values, text)

    def finish(self, held_out: float) -> Corpus:
        """Write the remaining files, and give the directory its name.

        Args:
            held_out: the share of the documents that is held out: the last ones, at least one if
                the share is not 0. Of a single document the end is held out.

        Raises:
            InputError: there is no text, or none would be left to train on or to hold out.
        """
        assert self.progress is not None
        n_documents = self.progress.n_documents
        if n_documents == 0:
            raise InputError("the texts hold no words; name other files")
        sizes = self._sizes_of(n_documents)  # without blank documents at the end
        before = self._train_sizes(held_out, sizes)
        self._write_documents()
        Header(
            dtype=self.dtype.name,
            n_vocab=self.n_vocab,
            vocabulary_sha256=vocabulary_sha256(self.vocabulary),
            tokens_sha256=file_sha256(self.directory / TOKENS_FILE),
            n_documents=n_documents,
            **asdict(sizes),
            n_held_out_documents=_n_held_out(n_documents, held_out),
            n_held_out_tokens=sizes.n_tokens - before.n_tokens,
            n_held_out_words=sizes.n_words - before.n_words,
            n_held_out_characters=sizes.n_characters - before.n_characters,
        ).write(self.directory)
        Corpus.open(self.directory)  # Errors of the disk show here, not at the first training.
        self.close()
        for name in (_PROGRESS, _ENDS, _LOCK):
            (self.directory / name).unlink(missing_ok=True)
        with write_errors(self.out):
            os.rename(self.directory, self.out)
        return Corpus.open(self.out)

    def remove(self) -> None:
        """Remove all files."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _sizes_of(self, n_documents: int) -> Sizes:
        """Return the sizes of the first documents, at least one."""
        with open(self.directory / _ENDS, "rb") as file:
            file.seek((n_documents - 1) * 3 * 8)
            return Sizes(*np.frombuffer(file.read(3 * 8), "<i8").tolist())

    def _train_sizes(self, held_out: float, sizes: Sizes) -> Sizes:
        """Return the sizes of what comes before the held-out part of a corpus of these sizes."""
        assert self.progress is not None
        n_documents = self.progress.n_documents
        if not held_out:
            return sizes
        if n_documents > 1:
            return self._sizes_of(n_documents - _n_held_out(n_documents, held_out))
        split = self.progress.split
        if split is None or not 0 < split.n_tokens < sizes.n_tokens:
            raise InputError(
                f"--holdout {held_out:g}: the texts are one document, and no newline is where "
                "its end could be held out; give --holdout 0 or more text"
            )
        return split

    def _write_documents(self) -> None:
        """Write the table of documents."""
        assert self.progress is not None
        path = self.directory / DOCUMENTS_FILE
        with atomic_write(path) as table, open(self.directory / _ENDS, "rb") as ends:
            table.write(documents_head(self.progress.n_documents))
            table.write(np.zeros(3, "<i8").tobytes())
            shutil.copyfileobj(ends, table)


def _lock(file: IO[Any]) -> bool:
    """Lock a file; return whether that was possible.

    The processes of a killed program hold its lock until they have ended, a moment after it.
    """
    for _ in range(_LOCK_TRIES):
        if try_lock(file):
            return True
        time.sleep(_LOCK_PAUSE)
    return False


def _check_free(out: Path) -> None:
    """Check that nothing is lost when a corpus is written to a directory."""
    if not os.path.lexists(out):
        return
    if not os.path.isdir(out):
        raise InputError(f"--out {out}: this is a file; name a new directory")
    names = os.listdir(out)
    if names:
        kind = "a finished corpus" if {"corpus.json", TOKENS_FILE} <= {*names} else "other files"
        raise InputError(f"--out {out}: holds {kind} already; name a new directory")


def _n_held_out(n_documents: int, held_out: float) -> int:
    """Return how many documents are held out, in whole or in part."""
    return min(max(round(n_documents * held_out), 1), max(n_documents - 1, 1)) if held_out else 0
