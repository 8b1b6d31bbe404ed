"""Declare settings: each field of a frozen dataclass group is one flag of a command line.

A group is written once, with help, bounds and choices beside each field; the command line, the
configuration file and Python calls all read it through :class:`Setting`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

Check = Callable[[Any], str | None]
"""A function of a value: returns None if the value is allowed, else a message such as "must be at
least 1"."""


def at_least(low: float) -> Check:
    """Accept numbers that are at least ``low``."""
    return lambda x: None if x >= low else f"must be at least {low:g}"


def above(low: float) -> Check:
    """Accept numbers greater than ``low``."""
    return lambda x: None if x > low else f"must be greater than {low:g}"


def between(low: float, high: float) -> Check:
    """Accept numbers from ``low`` to ``high``, both included."""
    return lambda x: None if low <= x <= high else f"must be from {low:g} to {high:g}"


def fraction(x: float) -> str | None:
    """Accept numbers that are at least 0 and less than 1."""
    return None if 0 <= x < 1 else "must be at least 0 and less than 1"


def not_negative(x: float) -> str | None:
    """Accept numbers that are at least 0.

    The original treats a negative value as 0 but logs the negative value.
    """
    return None if x >= 0 else "must be at least 0; the original treats a negative value as 0"


def rate(x: float) -> str | None:
    """Accept dropout rates."""
    return not_negative(x) if x < 0 else fraction(x)


def warmup_share(x: float) -> str | None:
    """Accept shares of all updates, from 0 to 1.

    A larger number is likely to be meant as a number of updates, with which the learning rate
    would stay near 0.
    """
    return (
        None
        if 0 <= x <= 1
        else "must be from 0 to 1: it is a share of all updates, not a number of updates"
    )


def seed_number(x: int) -> str | None:
    """Accept the seeds that NumPy takes."""
    return None if 0 <= x < 2**32 else "must be at least 0 and less than 2**32"


def plain_name(x: str) -> str | None:
    """Accept names of a file or a directory without a path, so that they lead to no other place."""
    if x in ("", ".", "..") or set(x) & set("/\\\0\n"):
        return "must be a name without slashes, because log and save files are named after it"
    if len(x) > 100:
        return "must be at most 100 characters, because log and save files are named after it"
    return file_name(x)


def file_name(x: str) -> str | None:
    """Accept texts that can be the name or the path of a file or a directory."""
    if not x:
        return "must not be empty"
    if "\0" in x or any(len(os.fsencode(part)) > 255 for part in Path(x).parts):
        return "must be a name that a file can have"
    return None


def setting(
    default: Any,
    help: str,
    check: Check | None = None,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    may_change: bool = False,
    argument: bool = False,
) -> Any:
    """Declare a field of a group.

    Args:
        default: the value if the user gives none; ``dataclasses.MISSING`` if one must be given.
        help: what the setting means, for ``--help``, which adds the default unless the text has
            brackets.
        check: refuses values that the field's type and ``choices`` allow.
        choices: the only values allowed; empty if all values are.
        metavar: what ``--help`` shows for the value [all choices; ``N`` or ``X`` for numbers]. With
            ``FILE`` or ``DIR`` the value must be a name that a file can have.
        may_change: whether a resumed run may have another value than the run that it continues.
        argument: whether the command takes a positional argument instead of a flag.
    """
    rules = {
        "help": help,
        "check": check,
        "choices": choices,
        "metavar": metavar,
        "may_change": may_change,
        "argument": argument,
    }
    return field(default=default, metadata=rules)


def as_in(group: type, name: str, **changes: Any) -> Any:
    """Declare a field that another group has too.

    Args:
        group: the other group.
        name: the name of its field.
        changes: arguments of :func:`setting` that are others here, such as ``default``.
    """
    (declared,) = (item for item in dataclasses.fields(group) if item.name == name)
    return setting(**{"default": declared.default, **declared.metadata, **changes})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One declared setting.

    Attributes:
        name: name of the flag, without dashes, and of the keyword argument.
        kind: ``bool``, ``int``, ``float`` or ``str``: the type of the value, or of each value.
        many: whether the value is a tuple of values.
        default: the value if the user gives none; ``MISSING`` if one must be given.
        help, check, choices, metavar, may_change, argument: see :func:`setting`.
    """

    name: str
    kind: type
    many: bool
    default: Any
    help: str
    check: Check | None
    choices: tuple[str, ...]
    metavar: str
    may_change: bool
    argument: bool

    @property
    def shown(self) -> str:
        """The name as the command line spells it: ``--lr`` for a flag, ``FILE`` for an argument."""
        return self.name.upper() if self.argument else f"--{self.name}"

    @property
    def place(self) -> str:
        """What ``--help`` shows in place of a value."""
        if self.choices and not self.metavar:
            return "{" + ",".join(self.choices) + "}"
        return self.metavar or {int: "N", float: "X"}.get(self.kind, "TEXT")

    def convert(self, text: str) -> Any:
        """Convert the text of one value to the setting's type.

        Raises:
            ValueError: the text is not of that type; the message says what it must be.
        """
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError("must be true or false")
            return text == "true"
        if self.kind is int:
            return _number(int, text, "must be a whole number")
        if self.kind is float:
            return _number(float, text, "must be a number")
        return text

    def problem(self, value: Any) -> str | None:
        """Return None if a value is allowed, else a message that says what it must be.

        The value None means "not given" and is always allowed.
        """
        if value is None:
            return None
        messages = map(self._problem_of_one, value if self.many else (value,))
        return next((message for message in messages if message), None)

    def _problem_of_one(self, value: Any) -> str | None:
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.kind is float and not abs(value) < math.inf:
            return "must be a finite number"
        if self.metavar in ("FILE", "DIR") and (message := file_name(value)):
            return message
        return None if self.check is None else self.check(value)


def _number(kind: Callable[[str], Any], text: str, message: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(message) from None


@functools.cache
def settings_of(group: type) -> tuple[Setting, ...]:
    """Return the settings that a group declares, in the order of its fields."""
    hints = typing.get_type_hints(group)
    found = []
    for item in dataclasses.fields(group):
        if "help" in item.metadata:
            kind, many = _kind(hints[item.name])
            found.append(
                Setting(name=item.name, kind=kind, many=many, default=item.default, **item.metadata)
            )
    return tuple(found)


def _kind(hint: Any) -> tuple[type, bool]:
    """Return the type of a field's value or values, and whether there are several.

    ``None`` in the type of the field is ignored.
    """
    if isinstance(hint, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not types.NoneType)
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many


def is_required(setting: Setting) -> bool:
    """Return whether the user must give a value, since there is no default."""
    return setting.default is MISSING
