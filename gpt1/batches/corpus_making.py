"""Make a corpus: read documents, learn a vocabulary if asked to, and encode them on all cores."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from gpt1.batches.corpus import Corpus
from gpt1.batches.corpus_draft import Draft
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, read_bytes
from gpt1.runtime.workers import apply_in_order, available_cores
from gpt1.text_utils import pieces
from gpt1.text_utils.documents import Located, Place, Source, read_pieces
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.learning import (
    NEWLINE,
    count_words,
    learn_merges,
    tokens_of,
    write_vocabulary,
)
from gpt1.text_utils.pieces import Joint, Parts, parts_of
from gpt1.text_utils.vocabulary import (
    read_merges,
    read_vocabulary,
    require_match,
    vocabulary_sha256,
)
from gpt1.text_utils.words import EnglishWords

MIN_COUNT = 2  # A pair that occurs once would become a token that occurs once.
SAVE_EVERY = 2.0  # seconds between two records of the progress
_BYTES_PER_PROCESS = 1 << 20  # with less text a process would start longer than it works
_RULES = "2.0"

Body = TypeVar("Body")


class Ids(NamedTuple):
    """The ids of some text, as bytes of the token file, and the number of its words."""

    ids: bytes
    n_words: int

    def __bool__(self) -> bool:
        return bool(self.ids)


@dataclass(frozen=True)
class Work:
    """Pieces that a process takes at once."""

    pieces: Sequence[Located]


def make_corpus(
    sources: Sequence[Source],
    out: Path,
    *,
    vocabulary: tuple[Path, Path] | None,
    n_merges: int = 0,
    held_out: float,
    n_processes: int | None = None,
) -> Corpus:
    """Encode documents into the directory of a corpus.

    If the process is killed, or the disk is full, the same call goes on where it ended and writes
    the same bytes.

    Args:
        sources: the files.
        out: the directory, which must be missing or empty.
        vocabulary: the files of the vocabulary and the merges. With None, a vocabulary is learned
            from the texts.
        n_merges: the number of merges to learn.
        held_out: the share that is held out: of the documents, the last ones; of a single document,
            the end.
        n_processes: the number of processes [the number of cores; fewer for little text].

    Raises:
        InputError: a file is no text, there is no text at all, ``out`` holds something, or the
            vocabulary does not fit the merges; nothing is left in ``out``.
        Gpt1Error: a file cannot be read or written.
    """
    if vocabulary is not None:
        require_match(vocabulary[1], read_merges(vocabulary[1]), read_vocabulary(vocabulary[0]))
    n_bytes = sum(source.n_bytes for source in sources)
    n_processes = n_processes or min(available_cores(), 1 + n_bytes // _BYTES_PER_PROCESS)
    recipe = {
        "sources": [
            asdict(replace(source, path=str(Path(source.path).absolute()))) for source in sources
        ],
        "vocabulary": n_merges if vocabulary is None else vocabulary_sha256(vocabulary),
        "held_out": held_out,
        "versions": {name: version(name) for name in ("ftfy", "spacy")},
    }
    with Draft(out, recipe) as draft:
        try:
            if draft.progress is None:
                if vocabulary is None:
                    _learn_vocabulary(sources, draft.vocabulary, n_merges, n_processes)
                else:
                    _copy(vocabulary, draft.vocabulary)
            _encode(sources, draft, held_out, n_processes)
            return draft.finish(held_out)
        except InputError:
            draft.remove()
            raise
        except BaseException:
            if draft.progress is None:
                draft.remove()
            raise


def _copy(files: Iterable[Path], copies: Iterable[Path]) -> None:
    """Copy files byte for byte."""
    for path, copy in zip(files, copies, strict=True):
        with atomic_write(copy) as file:
            file.write(read_bytes(path, "the vocabulary"))


def _learn_vocabulary(
    sources: Sequence[Source], files: tuple[Path, Path], n_merges: int, n_processes: int
) -> None:
    """Count the words of all documents, learn merges from them, and write both files.

    Raises:
        InputError: the texts have fewer merges.
    """
    words, counts = EnglishWords(_RULES), Counter[str]()
    count = partial(count_words, words=words)
    newline = Counter({NEWLINE: 1})
    joint: Joint[Counter[str]] = Joint()
    done = _done(sources, Place(), "count words", 0.0, partial(_counter, words), n_processes)
    for located, parts in done:
        for body in joint.add(parts, count, newline):
            counts.update(body)
        if located.piece.ends_document:
            joint = Joint()
    merges = learn_merges(counts, n_merges, min_count=MIN_COUNT)
    if len(merges) < n_merges:
        raise InputError(
            f"--n_merges {n_merges}: the texts have {len(merges)} merges of pairs that occur at "
            f"least {MIN_COUNT} times; give --n_merges {len(merges) or 1} or more text"
        )
    write_vocabulary(*files, tokens_of(counts, merges), merges)


def _encode(sources: Sequence[Source], draft: Draft, held_out: float, n_processes: int) -> None:
    """Encode all documents from the draft's progress on."""
    sha256 = vocabulary_sha256(draft.vocabulary)
    encoder = _opened(draft.vocabulary, sha256)
    draft.begin(len(encoder.encoder))
    draft.save()
    progress = draft.progress
    assert progress is not None
    encode = partial(_ids_of, encoder, draft.dtype.str)
    newline = Ids(np.array(encoder.newline, draft.dtype).tobytes(), 0)
    make = partial(_encoder, draft.vocabulary, sha256, draft.dtype.str)
    done = _done(sources, progress.place, "encode", held_out, make, n_processes)
    saved = time.monotonic()
    for located, parts in done:
        for body in progress.joint.add(parts, encode, newline):
            draft.add(*body)
        progress.sizes.n_characters += len(located.piece.text)
        progress.place = located.after
        if located.may_split and not progress.n_documents:
            progress.split = replace(progress.sizes)
        if located.piece.ends_document:
            draft.end_document()
        if time.monotonic() - saved > SAVE_EVERY:
            draft.save()
            saved = time.monotonic()
    draft.save()


def _done(
    sources: Sequence[Source],
    start: Place,
    title: str,
    held_out: float,
    make: Callable[[], Callable[[Work], list[Parts[Body]]]],
    n_processes: int,
) -> Iterator[tuple[Located, Parts[Body]]]:
    """Yield every piece from a place on with what was made of it, and show a progress bar."""
    before = [0]
    for source in sources:
        before.append(before[-1] + source.n_bytes)

    def bytes_at(place: Place) -> int:
        return before[place.source] + place.line + place.offset

    works = _works(read_pieces(sources, start, held_out=held_out))
    with ExitStack() as stack:
        bar = None
        for work, made in apply_in_order(make, works, n_processes):
            if bar is None:
                bar = stack.enter_context(_bar(title, before[-1], bytes_at(start)))
            yield from zip(work.pieces, made, strict=True)
            bar.update(bytes_at(work.pieces[-1].after) - bar.n)


class _Bar(tqdm):  # type: ignore[misc]
    """A progress bar without tqdm's thread, with which no process could be forked."""

    monitor_interval = 0


def _bar(title: str, n_bytes: int, n_done: int) -> _Bar:
    """Return a bar on stderr for so many bytes of text; it is hidden where that is no terminal."""
    shown = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
    return _Bar(desc=title, total=n_bytes, initial=n_done, **shown)


def _works(located_pieces: Iterable[Located]) -> Iterator[Work]:
    """Put pieces together until they are as long as one piece may be."""
    waiting: list[Located] = []
    length = 0
    for located in located_pieces:
        waiting.append(located)
        length += len(located.piece.text)
        if length >= pieces.PIECE // 2:
            yield Work(waiting)
            waiting, length = [], 0
    if waiting:
        yield Work(waiting)


def _ids_of(encoder: TextEncoder, dtype: str, text: str) -> Ids:
    """Encode a repaired text."""
    ids = np.array(encoder.encode_repaired(text), dtype)
    return Ids(ids.tobytes(), len(text.split()))


@lru_cache(maxsize=1)
def _opened(files: tuple[Path, Path], sha256: str) -> TextEncoder:
    """Open a vocabulary; processes that are forked find it open.

    Args:
        files: vocabulary and merges.
        sha256: the digest of their content, so that other files of the same names are opened anew.
    """
    return TextEncoder(*files, spacy_rules=_RULES)


def _encoder(
    files: tuple[Path, Path], sha256: str, dtype: str
) -> Callable[[Work], list[Parts[Ids]]]:
    """Make the function that encodes pieces."""
    encode = partial(_ids_of, _opened(files, sha256), dtype)
    return partial(_parts_of_all, EnglishWords(_RULES), encode)


def _counter(words: EnglishWords) -> Callable[[Work], list[Parts[Counter[str]]]]:
    """Make the function that counts the words of pieces."""
    return partial(_parts_of_all, words, partial(count_words, words=words))


def _parts_of_all(words: EnglishWords, make: Callable[[str], Any], work: Work) -> list[Parts[Any]]:
    """Make something of each piece."""
    return [parts_of(located.piece, words, make) for located in work.pieces]
