"""Read the settings of a command: from the command line, a configuration file, or Python.

All mistakes are reported together, in one :class:`~gpt1.runtime.errors.InputError`. Where a flag
is given twice the last one counts; the command line counts more than the configuration file.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gpt1.runtime.errors import Gpt1Error, InputError, join_problems
from gpt1.settings.config_file import read_config
from gpt1.settings.fields import Setting, is_required, settings_of
from gpt1.settings.help import help_text, title
from gpt1.settings.words import did_you_mean, read_words, shorten

Group = TypeVar("Group")
Spelling = Callable[[str, object], str]
CONFIG = Setting(
    name="config",
    kind=str,
    many=False,
    default=None,
    help="read flags from this file (.toml, .json, or the log of a run); flags given here win",
    check=None,
    choices=(),
    metavar="FILE",
    may_change=True,
    argument=False,
)


def as_flag(name: str, value: object) -> str:
    """Spell a setting as on the command line: ``--lr 0.1``, or ``--resume`` for True."""
    return f"--{name}" if value is True else f"--{name} {shorten(str(value))}"


def as_keyword(name: str, value: object) -> str:
    """Spell a setting as a keyword argument: ``lr=0.1``."""
    return f"{name}={shorten(repr(value))}"


def in_arguments(message: str, names: Collection[str]) -> str:
    """Rewrite a message that names flags so that it names the arguments of a Python call.

    Args:
        message: such as ``--n_iter 0: leave --submit out``, which becomes
            ``n_iter=0: leave submit out``.
        names: the arguments; other flags in the message stay.
    """

    def renamed(found: re.Match[str]) -> str:
        name, number = found.groups()
        if name not in names:
            return found[0]
        return f"{name}={number}" if number else name

    return re.sub(r"(?<![\w-])--(\w+)(?: (-?\d+(?:\.\d+)?(?:e-?\d+)?)(?!\w))?", renamed, message)


@contextmanager
def naming_arguments(names: Collection[str]) -> Iterator[None]:
    """Let the errors of a Python call name its arguments where they would name flags.

    Args:
        names: the arguments of the call.
    """
    try:
        yield
    except Gpt1Error as error:
        error.args = (in_arguments(str(error), names),)
        raise


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
        """Return the values of one group."""
        found: Group = self.groups[group]
        return found

    def flat(self) -> dict[str, Any]:
        """Return the value of every setting by its name."""
        return {
            item.name: getattr(values, item.name)
            for group, values in self.groups.items()
            for item in settings_of(group)
        }

    def changed(self, **changes: Any) -> Values:
        """Return these values with some of them replaced; :attr:`given` stays the same."""
        groups = {}
        for group, values in self.groups.items():
            own = {item.name for item in settings_of(group)} & changes.keys()
            groups[group] = replace(values, **{name: changes[name] for name in own})
        return Values(groups, self.given)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the program: its name, its help and its settings.

    Attributes:
        name: the name that the user types after ``gpt1``.
        summary: what the command does, in one sentence.
        groups: the groups of settings, in the order of ``--help``.
        examples: commands to copy, each with a comment above it.
    """

    name: str
    summary: str
    groups: tuple[type, ...]
    examples: str = ""

    @functools.cached_property
    def _settings(self) -> dict[str, Setting]:
        return {item.name: item for group in self.groups for item in settings_of(group)}

    @property
    def program(self) -> str:
        """The words that start the command: ``gpt1 NAME``."""
        return f"gpt1 {self.name}"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all groups."""
        return tuple(self._settings.values())

    def help(self) -> str:
        """Return the text of ``--help``."""
        sections = [(title(group), settings_of(group)) for group in self.groups]
        return help_text(
            self.program, self.summary, [*sections, ("other flags", [CONFIG])], self.examples
        )

    def parse(self, argv: Sequence[str] | None) -> Values:
        """Read a command line; ``--help`` prints the help and ends the program.

        Args:
            argv: the words after the command's name; None for the command line of this process.

        Raises:
            InputError: a setting is wrong; the message has every problem of the command line and
                of the configuration file.
        """
        words = sys.argv[1:] if argv is None else argv
        if not {"-h", "--help"}.isdisjoint(words):
            print(self.help(), end="")
            raise SystemExit(0)
        texts, problems = read_words(words, {**self._settings, CONFIG.name: CONFIG})
        flat: dict[str, Any] = {}
        for path in texts.pop(CONFIG.name, []):
            flat, more = self._read_config(path)
            problems += more
        # Required settings are not reported as missing while there are other problems: a mistyped
        # flag, or a flag without a value, may be the required one.
        missing = self._missing({*flat, *texts}) if not problems else []
        for name, given in texts.items():
            value, more = _converted(self._settings[name], given)
            problems += more
            if not more:
                flat[name] = value
        problems += [f"{item.shown}: must be given; see --help" for item in missing]
        return self._checked(flat, problems, as_flag)

    def _read_config(self, path: str) -> tuple[dict[str, Any], list[str]]:
        """Return the values in a configuration file, and a problem for each mistake in it."""
        if message := CONFIG.problem(path):
            return {}, [f"{as_flag(CONFIG.name, path)}: {message}"]
        try:
            return read_config(path, self._settings)
        except InputError as error:
            return {}, [str(error)]

    def values(self, settings: Mapping[str, Any]) -> Values:
        """Check settings that a Python call gave by name.

        Raises:
            InputError: a setting is wrong; the message has every problem and names arguments, not
                flags.
        """
        known = {name: value for name, value in settings.items() if name in self._settings}
        problems = [
            f"{name}: there is no such argument{did_you_mean(name, self._settings)}"
            for name in settings
            if name not in known
        ]
        problems = problems or [f"{item.name}: must be given" for item in self._missing(known)]
        for name, value in list(known.items()):
            if message := _problem_of_type(self._settings[name], value):
                problems.append(message)
                del known[name]
        return self._checked(known, problems, as_keyword)

    def _missing(self, given: Iterable[str]) -> list[Setting]:
        """Return the required settings that are not in ``given``."""
        return [item for item in self.settings if is_required(item) and item.name not in given]

    def _checked(self, flat: Mapping[str, Any], problems: list[str], spell: Spelling) -> Values:
        """Make the groups of these values; settings that are not given have their defaults.

        Raises:
            InputError: there are ``problems``, or a value is not allowed; the message has all.
        """
        items = [(self._settings[name], value) for name, value in flat.items()]
        problems = problems + _problems_of_values(items, spell)
        if problems:
            raise InputError(join_problems(problems))
        groups = {}
        for group in self.groups:
            own = [item.name for item in settings_of(group)]
            groups[group] = group(**{name: flat[name] for name in own if name in flat})
        contradictions = [
            text if spell is as_flag else in_arguments(text, self._settings)
            for made in groups.values()
            for text in _contradictions(made)
        ]
        if contradictions:
            raise InputError(join_problems(contradictions))
        return Values(groups, frozenset(flat))


def check_group(values: Any) -> None:
    """Check an instance of a group that a Python program made.

    Raises:
        InputError: a value is not allowed; the message has every problem and names arguments, not
            flags.
    """
    group: type = type(values)
    items = [(item, getattr(values, item.name)) for item in settings_of(group)]
    problems = [found for item in items if (found := _problem_of_type(*item))]
    problems = problems or _problems_of_values(items, as_keyword)
    if not problems:
        names = {item.name for item, _ in items}
        problems = [in_arguments(text, names) for text in _contradictions(values)]
    if problems:
        raise InputError(join_problems(problems))


def _converted(item: Setting, texts: Sequence[str]) -> tuple[Any, list[str]]:
    """Convert the texts given for a setting to its value; return also a problem per wrong text."""
    values, problems = [], []
    for text in texts:
        try:
            values.append(item.convert(text))
        except ValueError as error:
            problems.append(f"{item.shown} {shorten(text)}: {error}")
    if problems:
        return None, problems
    return (tuple(values) if item.many else values[-1]), []


def _problems_of_values(items: Iterable[tuple[Setting, Any]], spell: Spelling) -> list[str]:
    """Return a problem for each value that its setting does not allow."""
    problems = []
    for item, value in items:
        if message := item.problem(value):
            is_word = item.argument and spell is as_flag
            spelled = f"{item.shown} {shorten(str(value))}" if is_word else spell(item.name, value)
            problems.append(f"{spelled}: {message}")
    return problems


def _contradictions(values: Any) -> Iterable[str]:
    """Return the problems that the group's method ``contradictions`` finds, if it has one."""
    find: Callable[[], Iterable[str]] = getattr(values, "contradictions", tuple)
    return find()


def _problem_of_type(item: Setting, value: Any) -> str | None:
    """Return a problem if a Python value is not of a setting's type."""
    if _has_type(item, value):
        return None
    return f"{as_keyword(item.name, value)}: must be of type {item.kind.__name__}"


def _has_type(item: Setting, value: Any) -> bool:
    """Return whether a Python value has a setting's type; None means "not given"."""
    if value is None:
        return item.default is None
    if item.many:
        return isinstance(value, tuple | list) and all(isinstance(x, item.kind) for x in value)
    if item.kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, item.kind) and (item.kind is bool or not isinstance(value, bool))
