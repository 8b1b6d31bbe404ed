"""Read JSON, with errors that say which file, which value, what was expected and what to do.

No library checks the values: the libraries that check JSON against declared types are not among
the dependencies of this package, and their messages name neither a line nor a remedy.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from gpt1.runtime.errors import InputError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Kind:
    """What a JSON value must be; :func:`parse_object` gives all numbers as floats.

    Attributes:
        words: what a message calls such a value.
        is_right: whether a value is of this kind.
    """

    words: str
    is_right: Callable[[Any], bool]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, float) and value.is_integer() and value >= least


# Types of dataclass fields that `typed` fills. A number may be NaN or infinite.
Text = Annotated[str, Kind("a text", lambda x: isinstance(x, str))]
TextOrNull = Annotated[
    str | None, Kind("a text or null", lambda x: x is None or isinstance(x, str))
]
Number = Annotated[float, Kind("a number", lambda x: isinstance(x, float))]
NumberOrNull = Annotated[
    float | None, Kind("a number or null", lambda x: x is None or isinstance(x, float))
]
FiniteNumberOrNull = Annotated[
    float | None,
    Kind("a number or null", lambda x: x is None or (isinstance(x, float) and math.isfinite(x))),
]
Count = Annotated[int, Kind("a whole number from 0", lambda x: _is_whole(x, 0))]
CountOrNull = Annotated[
    int | None, Kind("a whole number from 0 or null", lambda x: x is None or _is_whole(x, 0))
]
CountFrom1 = Annotated[int, Kind("a whole number from 1", lambda x: _is_whole(x, 1))]


def percentage(least: float) -> Any:
    """Return the annotated type of a percentage from ``least`` to 100."""
    words = f"a percentage from {least:g} to 100"
    return Annotated[float, Kind(words, lambda x: isinstance(x, float) and least <= x <= 100)]


def shown(text: str) -> str:
    """Quote a part of a file in a message: short and on one line."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def parse_object(text: str, where: str, remedy: str) -> dict[str, Any]:
    """Parse one JSON object, with all numbers as floats: no integer is then too long to read.

    Args:
        text: the JSON.
        where: the file, or the file and the line, for the message.
        remedy: what the user can do, for the message.

    Raises:
        InputError: the text is not JSON, or not an object.
    """
    try:
        values = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected one JSON object, found {shown(text)}; {remedy}")
    return values


def typed(made: type[Made], values: Mapping[str, Any], where: str, remedy: str) -> Made:
    """Make a dataclass from the values of a JSON object; values of other names are left alone.

    Args:
        made: the dataclass. The type of each field is one of the annotated types of this module,
            such as :data:`Count`, or another type with a :class:`Kind`.
        values: what :func:`parse_object` returned.
        where, remedy: as for :func:`parse_object`.

    Raises:
        InputError: a value is missing or of another kind; names the field.
    """
    return made(**checked(_hints(cast(Hashable, made)), values, where, remedy))


def checked(
    hints: Mapping[str, Any], values: Mapping[str, Any], where: str, remedy: str
) -> dict[str, Any]:
    """Return those values of a JSON object that are named here, after a check of their kinds.

    Args:
        hints: for each name one of the annotated types that :func:`typed` takes.
        values, where, remedy: as for :func:`typed`.

    Raises:
        InputError: a value is missing or of another kind; names it.
    """
    found = {}
    for name, hint in hints.items():
        of, kind = get_args(hint)
        if name not in values or not kind.is_right(values[name]):
            got = shown(json.dumps(values[name])) if name in values else "nothing"
            raise InputError(f"{where}: expected {name} to be {kind.words}, found {got}; {remedy}")
        is_whole = values[name] is not None and int in (of, *get_args(of))
        found[name] = int(values[name]) if is_whole else values[name]
    return found


@functools.cache
def _hints(made: Any) -> dict[str, Any]:
    """Return the annotated type of each field of a dataclass."""
    return get_type_hints(made, None, None, True)
