"""Cut a long document into pieces whose ids, put together, are the ids of the whole document.

A document may be larger than memory. Therefore only pieces of it are read, repaired and encoded, in
several processes. The ids may not depend on where the pieces begin and end. There are two kinds of
cuts with this property.

After a newline
    ftfy repairs each line by itself; :func:`gpt1.text_utils.words.repair` describes the one fact
    that it carries on, :attr:`Piece.entities`, and keeps the newline at a line's end.
    ``text_standardize`` sets runs of one character apart, and no such run holds a newline. It makes
    one newline of all white space around newlines. spaCy cuts the text at white space, and no
    special case holds a newline, so that its second pass joins nothing across one (see
    :class:`~gpt1.text_utils.words.EnglishWords`). Therefore the words of the whole text are those
    of its lines that are not blank, with one newline between two of them.

Within a line that is too long to be one piece
    ftfy itself cuts a line after each :data:`~gpt1.text_utils.words.LONGEST_SEGMENT` characters, so
    that these parts can be repaired one by one. Words may continue across such a cut. A part is
    therefore encoded only between two spaces of the repaired text, each of which follows a word
    that stands apart (:meth:`~gpt1.text_utils.words.EnglishWords.stands_apart`) and precedes a
    letter: ``text_standardize`` changes nothing there, and no special case reaches across. What
    lies between two such ranges is put together from both parts by :class:`Joint`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpt1.text_utils.words import LONGEST_SEGMENT, EnglishWords, repair

PIECE = 1 << 17
"""Most characters of a piece, unless a line is longer."""

# A word of small letters, long enough to be in few special cases, between white space and a space
# that precedes a letter.
_BEFORE_A_CUT = re.compile(r"(?<=\s)([a-z]{4,}) (?=[A-Za-z])")

Body = TypeVar("Body")


@dataclass(frozen=True)
class Piece:
    """A part of a document.

    Attributes:
        text: the characters of the document.
        entities: whether entities such as "&amp;" are replaced in the first line of the piece.
        begins_line: whether the piece begins the document or follows a newline.
        ends_line: whether the piece ends the document or ends in a newline.
        ends_document: whether the piece ends the document.
    """

    text: str
    entities: bool = True
    begins_line: bool = True
    ends_line: bool = True
    ends_document: bool = True


@dataclass(frozen=True)
class Parts(Generic[Body]):
    """What was made of one piece.

    Attributes:
        head: repaired text that continues the line of the piece before; "" if there is none.
        body: what was made of the repaired text between head and tail. None if there is no cut in
            the piece: the head is then the whole piece.
        tail: repaired text that the next piece continues; "" if there is none.
        ends_line: see :class:`Piece`.
    """

    head: str
    body: Body | None
    tail: str
    ends_line: bool


def cut(
    blocks: Iterable[str],
    *,
    entities: bool = True,
    begins_line: bool = True,
    size: int | None = None,
) -> Iterator[Piece]:
    """Cut a document into pieces; an empty document has none.

    Args:
        blocks: the text, in parts of any length.
        entities, begins_line: of the first piece, where the text is the rest of a document.
        size: most characters of a piece, unless a line is longer [:data:`PIECE`].
    """
    blocks, text, size = iter(blocks), "", min(size or PIECE, LONGEST_SEGMENT)
    while True:
        while len(text) <= LONGEST_SEGMENT and (block := next(blocks, "")):
            text += block
        if not text:
            return
        end = _end_of_piece(text, size)
        piece, text = text[:end], text[end:]
        ends_line = piece.endswith("\n") or not text
        yield Piece(piece, entities, begins_line, ends_line, ends_document=not text)
        entities, begins_line = entities and "<" not in piece, ends_line


def _end_of_piece(text: str, size: int) -> int:
    """Return where the piece ends that begins a text; the text is more than a segment, or all."""
    if len(text) <= size:
        return len(text)
    end = text.rfind("\n", 0, size) + 1 or text.find("\n", 0, LONGEST_SEGMENT) + 1
    return end or min(len(text), LONGEST_SEGMENT)


def parts_of(piece: Piece, words: EnglishWords, make: Callable[[str], Body]) -> Parts[Body]:
    """Repair a piece, and make something of the text between its first and its last cut.

    Args:
        piece: the piece.
        words: the rules that say where a line may be cut.
        make: a function of the repaired text.
    """
    text = repair(piece.text, entities=piece.entities)
    first = 0 if piece.begins_line else _first_cut(text, words)
    last = len(text) if piece.ends_line else _last_cut(text, words)
    if first is None or last is None:
        return Parts(text, None, "", piece.ends_line)
    return Parts(text[:first], make(text[first:last]), text[last:], piece.ends_line)


def _first_cut(text: str, words: EnglishWords) -> int | None:
    """Return the first place within a line at which a repaired text may be cut."""
    found = _BEFORE_A_CUT.finditer(text)
    return next((match.end() for match in found if words.stands_apart(match[1])), None)


def _last_cut(text: str, words: EnglishWords) -> int | None:
    """Return the last place within a line at which a repaired text may be cut."""
    found = list(_BEFORE_A_CUT.finditer(text))
    return next((match.end() for match in reversed(found) if words.stands_apart(match[1])), None)


@dataclass
class Joint(Generic[Body]):
    """Puts the parts of one document together.

    Attributes:
        carried: repaired text whose end has not been read yet.
        newline_due: whether a newline comes before the next text that is not blank.
        has_text: whether any text has come that is not blank.
    """

    carried: str = ""
    newline_due: bool = False
    has_text: bool = False

    def add(self, parts: Parts[Body], make: Callable[[str], Body], newline: Body) -> Iterator[Body]:
        """Yield what the parts of the next piece add to the document, in order.

        Args:
            parts: of the next piece.
            make: the function with which the bodies were made; blank text makes a false value.
            newline: what the newline between two lines is.
        """
        self.carried += parts.head
        if parts.body is not None:
            yield from self._with_newline(make(self.carried), newline)
            yield from self._with_newline(parts.body, newline)
            self.carried = parts.tail
        if parts.ends_line:
            yield from self._with_newline(make(self.carried), newline)
            self.carried, self.newline_due = "", self.has_text

    def _with_newline(self, body: Body, newline: Body) -> Iterator[Body]:
        if not body:
            return
        if self.newline_due:
            yield newline
        self.newline_due, self.has_text = False, True
        yield body
