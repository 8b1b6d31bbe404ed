"""Read documents piece by piece: text files, folders of them, and files of JSON lines."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import check_regular, read_errors
from gpt1.text_utils.pieces import Piece, cut

JSON_SUFFIXES = (".jsonl", ".json")
FIELD = "text"
_BLOCK = 1 << 20  # bytes that are read at a time
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class Source:
    """A file of text as it was when it was found.

    Attributes:
        path: the file.
        n_bytes: its size.
        changed: when it was changed last, in nanoseconds.
    """

    path: str
    n_bytes: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> Source:
        """Look at a file.

        Raises:
            InputError: there is no such file, or it is no regular file.
        """
        check_regular(path, "the text")
        found = os.stat(path)
        return cls(str(path), found.st_size, found.st_mtime_ns)

    @property
    def is_json(self) -> bool:
        """Whether each line of the file is a document; otherwise the file is one document."""
        return Path(self.path).suffix.lower() in JSON_SUFFIXES

    def check_unchanged(self) -> None:
        """Check that the file is as it was.

        Raises:
            InputError: it has changed.
        """
        if Source.at(Path(self.path)) != self:
            raise InputError(
                f"{self.path}: was changed while it was read; start the command again when "
                "no program writes to the file"
            )


@dataclass(frozen=True)
class Place:
    """A place in the sources from which reading can go on.

    Attributes:
        source: the index of the file.
        line: the byte at which the document begins: 0, or the beginning of its line.
        offset: the number of bytes of the document that come before the place.
        entities, begins_line: see :class:`gpt1.text_utils.pieces.Piece`.
    """

    source: int = 0
    line: int = 0
    offset: int = 0
    entities: bool = True
    begins_line: bool = True


@dataclass(frozen=True)
class Located:
    """A piece of a document.

    Attributes:
        piece: the piece.
        after: the place behind it.
        may_split: whether the held-out part of the only document can begin behind the piece. It
            begins behind the last one of these pieces.
    """

    piece: Piece
    after: Place
    may_split: bool = False


def find_sources(names: Sequence[str]) -> list[Source]:
    """Find the files that the names stand for, in the order of the names.

    A directory stands for all files in it and below it whose names end in ``.txt``, in the order of
    their paths.

    Raises:
        InputError: a name stands for no file.
    """
    sources = []
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):
            sources.append(Source.at(path))
            continue
        found = sorted(each for each in path.rglob("*.txt") if each.is_file())
        if not found:
            raise InputError(
                f"{name}: no file in this directory ends in .txt; name the files themselves"
            )
        sources += [Source.at(each) for each in found]
    return sources


def read_pieces(
    sources: Sequence[Source], start: Place = Place(), *, held_out: float = 0.0
) -> Iterator[Located]:
    """Yield the pieces of all documents; a document without text may have none.

    Args:
        sources: the files.
        start: where to begin.
        held_out: the share of its bytes that is held out at the end of a document that is the only
            one, from the beginning of a line on.

    Raises:
        InputError: a file is not text, or a line is no JSON; the message names file and line.
        Gpt1Error: a file cannot be read.
    """
    for index in range(start.source, len(sources)):
        source = sources[index]
        place = start if index == start.source else Place(index)
        with read_errors(source.path, "the text"), open(source.path, "rb") as file:
            read = _pieces_of_lines if source.is_json else _pieces_of_text
            yield from read(file, source, place, held_out)
        source.check_unchanged()


def _pieces_of_text(
    file: IO[bytes], source: Source, place: Place, held_out: float
) -> Iterator[Located]:
    """Yield the pieces of a text file, which is one document."""
    if place.offset == 0 and file.read(len(_BOM)) == _BOM:
        place = replace(place, offset=len(_BOM))
    file.seek(place.offset)
    blocks = _decoded(_blocks(file), source.path, place.offset)
    yield from _located(blocks, place, _split_point(source.n_bytes, held_out))


def _pieces_of_lines(
    file: IO[bytes], source: Source, place: Place, held_out: float
) -> Iterator[Located]:
    """Yield the pieces of the documents in a file of JSON lines."""
    file.seek(place.line)
    for line in file:
        if not line.isspace():
            text = _text_of(line, source.path, place.line)
            data = _bytes_of(text)
            split = _split_point(len(data), held_out)
            rest = data[place.offset :].decode("utf-8", "surrogatepass")
            yield from _located([rest], place, split)
        place = Place(place.source, line=place.line + len(line))


def _split_point(n_bytes: int, held_out: float) -> int | None:
    """Return the last byte at which the held-out part of the only document may begin, if any."""
    return round(n_bytes * (1 - held_out)) if held_out else None


def _bytes_of(text: str) -> bytes:
    """Return a text in UTF-8; a JSON text may hold halves of surrogate pairs, which are kept."""
    return text.encode("utf-8", "surrogatepass")


def _located(blocks: Iterable[str], place: Place, split: int | None) -> Iterator[Located]:
    """Cut a document, or what comes behind a place in it, into pieces, and locate them.

    Args:
        blocks: the text behind the place.
        place: the place.
        split: the last byte at which the held-out part may begin; None if there is no such part.
    """
    for whole in cut(blocks, entities=place.entities, begins_line=place.begins_line):
        for piece in [whole] if split is None else _split(whole, split - place.offset):
            place = replace(
                place,
                offset=place.offset + len(_bytes_of(piece.text)),
                entities=piece.entities and "<" not in piece.text,
                begins_line=piece.ends_line,
            )
            may_split = piece.ends_line and not piece.ends_document
            may_split = may_split and split is not None and place.offset <= split
            yield Located(piece, place, may_split)


def _split(piece: Piece, n_bytes: int) -> list[Piece]:
    """Cut a piece after the last newline in its first ``n_bytes`` bytes, if there is one."""
    data = _bytes_of(piece.text)
    end = data.rfind(b"\n", 0, max(n_bytes, 0)) + 1
    if not 0 < end < len(data):
        return [piece]
    texts = [part.decode("utf-8", "surrogatepass") for part in (data[:end], data[end:])]
    entities = piece.entities and "<" not in texts[0]
    return [
        replace(piece, text=texts[0], ends_line=True, ends_document=False),
        replace(piece, text=texts[1], entities=entities, begins_line=True),
    ]


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _decoded(blocks: Iterable[bytes], path: str, offset: int) -> Iterator[str]:
    """Decode the blocks of a text file, without its byte-order mark.

    Args:
        blocks: the bytes from a place on, which is the beginning of a character.
        path: the file, for messages.
        offset: the bytes before the place.

    Raises:
        InputError: a byte is not UTF-8, or it is NUL, which no text file has.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in blocks:
        if b"\0" in block:
            raise _not_text(path, offset + block.index(b"\0"), "a NUL byte")
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            at = offset - pending + error.start
            raise _not_text(path, at, f"byte 0x{byte:02x}, which is not UTF-8") from error
        offset += len(block)
    if decoder.getstate()[0]:
        raise _not_text(path, offset, "an incomplete UTF-8 character at its end")


def _not_text(path: str, offset: int, found: str) -> InputError:
    """Make the error for a byte that a text file cannot have."""
    return InputError(
        f"{path}, line {_line_number(path, offset)}: expected text in UTF-8, found {found}; save "
        "the file as UTF-8, or leave it out."
    )


def _line_number(path: str, offset: int) -> int:
    """Return the number of the line, from 1, in which a byte of a file lies."""
    number = 1
    with open(path, "rb") as file:
        for block in _blocks(file):
            number += block.count(b"\n", 0, max(offset, 0))
            offset -= len(block)
            if offset <= 0:
                break
    return number


def _text_of(line: bytes, path: str, offset: int) -> str:
    """Return the text of a document in a JSON line.

    Raises:
        InputError: the line is no JSON object with a text.
    """
    try:
        value: Any = json.loads(line.removeprefix(_BOM if offset == 0 else b"").decode())
    except UnicodeDecodeError as error:
        raise _not_text(
            path, offset, f"byte 0x{line[error.start]:02x}, which is not UTF-8"
        ) from error
    except (ValueError, RecursionError):
        value = None
    text = value.get(FIELD) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(
            f'{path}, line {_line_number(path, offset)}: expected a JSON object with a "{FIELD}", '
            f'such as {{"{FIELD}": "Once upon a time ..."}}; correct or remove the line.'
        )
    return text
