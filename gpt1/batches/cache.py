"""The cache of encoded texts: files under a digest of everything that the token ids depend on."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1.batches import encoded, encoding
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.encoding import Encoding, Texts
from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.files import atomic_write, remove_leftovers
from gpt1.text_utils import encoder, vocabulary, words

WORTH_CACHING = 1 << 20
"""Characters from which a split is cached; to encode fewer takes a fraction of a second."""
MOST_BYTES = 2_000_000_000
"""Bytes of all files of the cache; the files that were used least recently are removed first."""
SWITCHED_OFF = "none"
"""The value of ``--cache_dir`` that switches the cache off."""
_SUFFIX = ".ids"
_DIGEST = 32  # bytes of SHA-256
_PROGRAM = (encoder, vocabulary, words, encoded, encoding)  # what makes ids, besides the layout
_AT_A_TIME = 4096  # examples that are hashed at a time


@dataclass(frozen=True)
class Cache:
    """A directory of encoded splits.

    Nothing depends on it: a file that is missing or damaged is encoded anew, and a file that cannot
    be written is left out.

    Attributes:
        directory: the directory, which is made when the first file is written.
        note: is called with a message on a file that cannot be used.
    """

    directory: Path
    note: Callable[[str], None]

    def load(self, key: str) -> EncodedSplit | None:
        """Return the split under a key of :func:`key_of`; None if it is not there whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:
            self.note(f"{path}: cannot be read: {error}; the texts are encoded again")
            return None
        content = memoryview(data)[_DIGEST:]
        if hashlib.sha256(content).digest() != data[:_DIGEST]:
            self.note(f"{path}: damaged; the texts are encoded again")
            return None
        with suppress(OSError):
            os.utime(path)  # It is the last one to be removed now.
        file = io.BytesIO(content)
        return EncodedSplit(
            lengths=np.load(file, allow_pickle=False), ids=np.load(file, allow_pickle=False)
        )

    def save(self, key: str, split: EncodedSplit) -> None:
        """Keep a split without its labels, and remove old files of more than the largest size."""
        file = io.BytesIO()
        for array in (split.lengths, split.ids):
            np.save(file, array, allow_pickle=False)
        content = file.getbuffer()
        if len(content) > MOST_BYTES:
            return
        try:
            with atomic_write(self._path(key)) as whole:
                whole.write(hashlib.sha256(content).digest())
                whole.write(content)
        except Gpt1Error as error:
            self.note(f"{error} The run goes on without it; --cache_dir names another directory.")
        else:
            self._remove_oldest()

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"

    def _remove_oldest(self) -> None:
        """Remove what killed processes left, and the oldest files beyond :data:`MOST_BYTES`."""
        remove_leftovers(self.directory, f"*{_SUFFIX}")
        found = []
        for path in self.directory.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # Another process may have removed it.
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > MOST_BYTES:
                with suppress(OSError):
                    path.unlink()


def find_cache(cache_dir: str | None, note: Callable[[str], None]) -> Cache | None:
    """Return the cache that ``--cache_dir`` names; None if it is switched off.

    The default is ``gpt1`` in ``XDG_CACHE_HOME``, or in ``.cache`` of the home directory.

    Args:
        cache_dir: the value of ``--cache_dir``.
        note: is called with a message on what cannot be used.
    """
    if cache_dir == SWITCHED_OFF:
        return None
    if cache_dir is not None:
        return Cache(Path(cache_dir), note)
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):  # The specification has programs ignore other values.
        return Cache(Path(home, "gpt1"), note)
    with suppress(RuntimeError):  # There is no home directory.
        return Cache(Path.home() / ".cache" / "gpt1", note)
    return None


def key_of(encoding: Encoding, examples: Sequence[Texts]) -> str:
    """Return a digest of all that the encoded examples depend on: texts, rules and program."""
    digest = hashlib.sha256()
    for part in _ingredients(encoding, examples):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _ingredients(encoding: Encoding, examples: Sequence[Texts]) -> Iterator[object]:
    special, layout = encoding.special, encoding.layout
    yield encoding.encoder.rules()
    yield [special.start, special.delimiter, special.classify, encoding.n_ctx, repr(layout)]
    yield [_source(name) for name in (*[m.__name__ for m in _PROGRAM], type(layout).__module__)]
    for begin in range(0, len(examples), _AT_A_TIME):
        yield examples[begin : begin + _AT_A_TIME]


def _source(module: str) -> str:
    """Return the source of a module, so that a changed program finds no ids of the old one."""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return module
