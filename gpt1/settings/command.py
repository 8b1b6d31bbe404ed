"""Read the settings of a command: from the command line, a configuration file, or Python.

All mistakes are reported together, in one :class:`~gpt1.runtime.errors.InputError`. Flags are never
abbreviated, so that a new flag cannot change what an old command means. Where a flag is given
twice the last one counts; the command line counts more than the configuration file.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.config_file import read_config
from gpt1.settings.fields import Setting, is_required, settings_of

Group = TypeVar("Group")
Spelling = Callable[[str, object], str]
CONFIG = "config"
_CONFIG_HELP = "read flags from this file (.toml, .json, or the log of a run); flags given here win"


def as_flag(name: str, value: object) -> str:
    """Spell a setting as on the command line: ``--lr 0.1``, or ``--resume`` for True."""
    return f"--{name}" if value is True else f"--{name} {shorten(str(value))}"


def as_keyword(name: str, value: object) -> str:
    """Spell a setting as a keyword argument: ``lr=0.1``."""
    return f"{name}={shorten(repr(value))}"


def shorten(text: str, most: int = 60) -> str:
    """Make a user's text fit into a message: one line, at most ``most`` characters."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else text[:most] + "..."


@dataclass(frozen=True)
class Values:
    """The settings of one run of a command.

    Attributes:
        groups: an instance of each group by its class.
        given: names of the settings that the user gave, on the command line or in a file.
    """

    groups: Mapping[type, Any]
    given: frozenset[str] = frozenset()

    def __getitem__(self, group: type[Group]) -> Group:
        """The values of one group."""
        found: Group = self.groups[group]
        return found

    def flat(self) -> dict[str, Any]:
        """Every setting's value by its name."""
        return {
            item.name: getattr(values, item.name)
            for group, values in self.groups.items()
            for item in settings_of(group)
        }

    def changed(self, **changes: Any) -> Values:
        """These values with some replaced; what counts as given stays."""
        groups = {}
        for group, values in self.groups.items():
            own = {item.name for item in settings_of(group)} & changes.keys()
            groups[group] = replace(values, **{name: changes[name] for name in own})
        return Values(groups, self.given)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the program: its name, its help and its settings.

    Attributes:
        name: as the user types it after ``gpt1``.
        summary: what it does, in one sentence.
        groups: the groups of its settings, in the order of ``--help``.
        examples: commands to copy, each with a comment above it.
    """

    name: str
    summary: str
    groups: tuple[type, ...]
    examples: str = ""
    _settings: dict[str, Setting] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = {item.name: item for group in self.groups for item in settings_of(group)}
        object.__setattr__(self, "_settings", found)

    @property
    def program(self) -> str:
        """The words that start it: ``gpt1 NAME``."""
        return f"gpt1 {self.name}"

    def parse(self, argv: Sequence[str] | None) -> Values:
        """Read a command line; ``--help`` prints the help and ends the program.

        Args:
            argv: the words after the command's name, or None for those of this process.

        Raises:
            InputError: with every problem of the command line and the configuration file.
        """
        words = sys.argv[1:] if argv is None else argv
        if not {"-h", "--help"}.isdisjoint(words):
            print(self.help(), end="")
            raise SystemExit(0)
        texts, problems = self._read_words(words)
        flat: dict[str, Any] = {}
        for path in texts.pop(CONFIG, [])[-1:]:
            found, more = read_config(path, self._settings)
            flat, problems = dict(found), problems + more
        for name, given in texts.items():
            item = self._settings[name]
            for n, text in enumerate(given):
                try:
                    value = item.convert(text)
                except ValueError as error:
                    problems.append(f"{item.shown} {shorten(text)}: {error}")
                    continue
                earlier = flat.get(name, ()) if item.many and n else ()
                flat[name] = (*earlier, value) if item.many else value
        return self._checked(flat, problems, as_flag)

    def values(self, settings: Mapping[str, Any]) -> Values:
        """Check settings that a Python call gave by name.

        Raises:
            InputError: with every problem; speaks of arguments, not of flags.
        """
        problems = [
            f"{name}: there is no such argument{self._guess(name)}"
            for name in settings.keys() - self._settings.keys()
        ]
        known = {name: value for name, value in settings.items() if name in self._settings}
        problems += [
            f"{as_keyword(name, value)}: must be of type {self._settings[name].kind.__name__}"
            for name, value in known.items()
            if not _has_type(self._settings[name], value)
        ]
        return self._checked({} if problems else known, problems, as_keyword)

    def _checked(self, flat: Mapping[str, Any], problems: list[str], spell: Spelling) -> Values:
        """The groups of these values; missing ones have their defaults."""
        for name, value in flat.items():
            if message := self._settings[name].problem(value):
                problems.append(f"{spell(name, value)}: {message}")
        problems += [
            f"{item.shown}: must be given" if spell is as_flag else f"{item.name}: must be given"
            for item in self._settings.values()
            if is_required(item) and item.name not in flat and not problems
        ]
        if problems:
            raise InputError(join_problems(problems))
        groups = {}
        for group in self.groups:
            own = [item.name for item in settings_of(group)]
            groups[group] = group(**{name: flat[name] for name in own if name in flat})
        contradictions = [text for made in groups.values() for text in _contradictions(made)]
        if contradictions:
            raise InputError(join_problems(contradictions))
        return Values(groups, frozenset(flat))

    def _read_words(self, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
        """The texts given for each setting, and a problem for each word out of place.

        argparse would stop at its first complaint, and take ``-1e-3`` for a flag.
        """
        texts: dict[str, list[str]] = {}
        problems: list[str] = []
        places = [item for item in self._settings.values() if item.argument]
        rest = deque(words)
        while rest:
            word = rest.popleft()
            name, equals, text = word.removeprefix("--").partition("=")
            item = self._settings.get(name)
            if not word.startswith("--") and places:
                texts.setdefault(places[0].name, []).append(word)
                if not places[0].many:
                    places.pop(0)
            elif not word.startswith("--") or not (name == CONFIG or (item and not item.argument)):
                problems.append(
                    f"{shorten(word)}: there is no such flag or argument"
                    f"{self._guess(name) if word.startswith('--') else ''}; see --help"
                )
                if not equals and rest and not rest[0].startswith("--"):
                    rest.popleft()  # its value: one mistake is one problem
            elif item is not None and item.kind is bool:
                texts[name] = ["true"]
                if equals:
                    problems.append(f"--{name}={shorten(text)}: takes no value; give --{name}")
            elif equals or (rest and not rest[0].startswith("--")):
                texts.setdefault(name, []).append(text if equals else rest.popleft())
            else:
                problems.append(f"--{name}: a value is missing; give one after it")
        for name, given in texts.items():
            if name in self._settings and not self._settings[name].many:
                del given[:-1]  # where one is given twice the last one counts
        return texts, problems

    def _guess(self, name: str) -> str:
        """A hint at the setting whose name is most like ``name``, if one is much like it."""
        found = difflib.get_close_matches(name, [*self._settings, CONFIG], n=1)
        return f"; did you mean {found[0]}?" if found else ""

    def help(self) -> str:
        """The text of ``--help``: each group under its own title."""
        arguments = [item for item in self._settings.values() if item.argument]
        words = [item.name.upper() + (" ..." if item.many else "") for item in arguments]
        parser = argparse.ArgumentParser(
            prog=self.program,
            usage=" ".join([self.program, *words, "[--flag VALUE ...]"]),
            description=self.summary,
            epilog=f"examples:\n{self.examples}" if self.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        for group in self.groups:
            _add_to_help(parser.add_argument_group(_title(group)), settings_of(group))
        others = parser.add_argument_group("other flags")
        others.add_argument(f"--{CONFIG}", metavar="FILE", help=_CONFIG_HELP)
        others.add_argument("-h", "--help", action="store_true", help="show this help and end")
        return parser.format_help()


def _add_to_help(section: Any, items: Iterable[Setting]) -> None:
    for item in items:
        note = item.help
        if item.default not in (None, False, ()) and not is_required(item) and "[" not in note:
            note += f" [{item.default}]"
        note = note.replace("%", "%%")
        if item.argument:
            section.add_argument(item.name, metavar=item.name.upper(), help=note, nargs="*")
        elif item.kind is bool:
            section.add_argument(f"--{item.name}", help=note, action="store_true")
        else:
            section.add_argument(f"--{item.name}", help=note, metavar=item.place)


def _title(group: type) -> str:
    """A group's title in ``--help``: the first line of its docstring, in lower case."""
    line = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:]


def _contradictions(values: Any) -> Iterable[str]:
    """Problems between the values of one group, if the group looks for any."""
    find: Callable[[], Iterable[str]] = getattr(values, "contradictions", tuple)
    return find()


def _has_type(item: Setting, value: Any) -> bool:
    """Whether a Python value is of a setting's type; None means "not given"."""
    if value is None:
        return item.default is None
    if item.many:
        return isinstance(value, tuple | list) and all(isinstance(x, item.kind) for x in value)
    if item.kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, item.kind) and (item.kind is bool or not isinstance(value, bool))
