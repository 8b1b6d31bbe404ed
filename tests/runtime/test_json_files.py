"""JSON values become a dataclass, or one message that names the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gpt1.runtime.errors import InputError
from gpt1.runtime.json_files import (
    Count,
    CountFrom1,
    FiniteNumberOrNull,
    Number,
    NumberOrNull,
    Text,
    TextOrNull,
    parse_object,
    percentage,
    shown,
    typed,
)


@dataclass(frozen=True)
class Everything:
    a: Count
    b: CountFrom1
    c: Number
    d: NumberOrNull
    e: FiniteNumberOrNull
    f: percentage(0)
    g: Text
    h: TextOrNull


RIGHT = '{"a": 0, "b": 1, "c": NaN, "d": null, "e": -1, "f": 100, "g": "x", "h": null, "i": []}'


def read(text: str) -> Everything:
    values = parse_object(text, "x.json, line 3", "do this.")
    return typed(Everything, values, "x.json, line 3", "do that.")


def test_values_have_the_types_of_the_fields() -> None:
    found = read(RIGHT)
    assert (found.a, found.b, found.d, found.e, found.f) == (0, 1, None, -1.0, 100.0)
    assert found.c != found.c  # NaN
    assert type(found.a) is type(found.b) is int
    assert type(found.e) is float
    assert (found.g, found.h) == ("x", None)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("a", "-1", "a whole number from 0"),
        ("a", "true", "a whole number from 0"),
        ("b", "0", "a whole number from 1"),
        ("b", "1.5", "a whole number from 1"),
        ("b", "Infinity", "a whole number from 1"),
        ("c", "null", "a number"),
        ("d", '"1"', "a number or null"),
        ("e", "1e999", "a number or null"),
        ("f", "100.5", "a percentage from 0 to 100"),
        ("f", "NaN", "a percentage from 0 to 100"),
        ("g", "null", "a text"),
        ("h", "1", "a text or null"),
    ],
)
def test_a_value_of_another_kind_is_named(name: str, value: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(RIGHT.replace("}", f', "{name}": {value}}}'))  # the last of equal names counts
    message = str(caught.value)
    assert message.startswith(f"x.json, line 3: expected {name} to be {expected}, found ")
    assert message.endswith("; do that.")


def test_a_missing_value_is_named() -> None:
    with pytest.raises(InputError, match="expected a to be a whole number from 0, found nothing;"):
        read("{}")


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", "[" * 100_000, '{"a": 1}{'])
def test_what_is_no_object_is_shown(text: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    found = shown(text)
    assert str(caught.value) == (
        f"x.json, line 3: expected one JSON object, found {found}; do this."
    )
    assert len(found) < 50


def test_no_integer_is_too_long_to_read() -> None:
    assert parse_object('{"a": %s}' % ("1" * 5000), "x", "y") == {"a": float("inf")}


def test_what_is_shown_is_short_and_on_one_line() -> None:
    text: Any = "a\n" * 100
    assert shown(text) == repr("a\n" * 20 + "...")
    assert shown("\x1b[2J").isprintable()
