"""Read the words of a command line: which text belongs to which flag or argument.

argparse is not used for this, because it stops at the first mistake, takes ``-1e-3`` for a flag,
and does not suggest the flag that a mistyped one resembles.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from gpt1.settings.fields import Setting


def shorten(text: str, most: int = 60) -> str:
    """Shorten a user's text for a message: one line, at most ``most`` characters and "..."."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else text[:most] + "..."


def counted(n: int, what: str) -> str:
    """Return a number with the singular or the plural of what is counted, such as ``1 thread``."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def did_you_mean(name: str, names: Iterable[str], *, prefix: str = "", least: float = 0.6) -> str:
    """Return a question that suggests the most similar of ``names``; "" if none is similar.

    Args:
        name: a name that does not exist.
        names: the names that exist.
        prefix: what the user writes before each of ``names``.
        least: the smallest similarity that counts, from 0 to 1.
    """
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=least)
    return f"; did you mean {prefix}{shorten(found[0])}?" if found else ""


def read_words(
    words: Sequence[str], settings: Mapping[str, Setting]
) -> tuple[dict[str, list[str]], list[str]]:
    """Sort the words of a command line.

    Flags are never abbreviated, so that a new flag cannot change what an old command means.

    Args:
        words: the words after the name of the command.
        settings: the settings of the command, by name.

    Returns:
        The texts given for each setting, by its name, and one problem for each mistake. If a
        setting that takes one value is given several, only the last of them is returned.
    """
    reader = _Reader(words, settings)
    while reader.rest:
        reader.read_next()
    for name, given in reader.texts.items():
        if not settings[name].many:
            del given[:-1]
    return reader.texts, reader.problems


class _Reader:
    """Reads the words of a command line one after another.

    Attributes:
        rest: the words that are not read yet.
        texts: the texts read for each setting, by its name.
        problems: one message for each mistake found.
    """

    def __init__(self, words: Sequence[str], settings: Mapping[str, Setting]) -> None:
        self.rest = deque(words)
        self.texts: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self._settings = settings
        self._places = deque(item for item in settings.values() if item.argument)

    def read_next(self) -> None:
        """Read a flag with its value, or an argument."""
        word = self.rest.popleft()
        name, equals, text = word.removeprefix("--").partition("=")
        item = self._settings.get(name)
        if word.startswith("--") and item is not None and not item.argument:
            self._read_flag(item, text if equals else None)
        elif self._places and (word == "-" or not word.startswith("-")):
            place = self._places[0]
            self._give(place, word)
            if not place.many:
                self._places.popleft()
        else:
            self._reject(word)

    def _read_flag(self, item: Setting, text: str | None) -> None:
        """Read the value of a flag, which ``text`` holds if it came after an equals sign."""
        if item.kind is bool:
            self._give(item, "true")
            if text is not None:
                value = shorten(text)
                self.problems.append(
                    f"{item.shown}={value}: takes no value; give {item.shown} alone"
                )
        elif text is not None:
            self._give(item, text)
        elif self._value_follows():
            self._give(item, self.rest.popleft())
        else:
            self.problems.append(f"{item.shown}: a value is missing; give one after it")

    def _reject(self, word: str) -> None:
        """Add a problem for a word that is neither a flag nor an argument.

        A word after an unknown flag is taken for its value and skipped, so that one mistake gives
        one problem.
        """
        is_flag = word.startswith("-") and word.strip("-")[:1].isalpha()  # not a number
        flags = [name for name, item in self._settings.items() if not item.argument]
        name = word.partition("=")[0].lstrip("-")
        guess = did_you_mean(name, flags, prefix="--", least=0.6 if is_flag else 0.85)
        see = " See --help" if guess else "; see --help"
        self.problems.append(f"{shorten(word)}: there is no such flag or argument{guess}{see}")
        if is_flag and "=" not in word and self._value_follows():
            self.rest.popleft()

    def _value_follows(self) -> bool:
        return bool(self.rest) and not self.rest[0].startswith("--")

    def _give(self, item: Setting, text: str) -> None:
        self.texts.setdefault(item.name, []).append(text)
