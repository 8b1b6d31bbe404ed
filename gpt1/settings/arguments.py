"""The argparse parser that the command lines of scripts and benchmarks share."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable
from typing import Any

from gpt1.runtime.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises :class:`InputError` and keeps the lines of its examples.

    Flags are never abbreviated: a new flag must not change what an old command means.

    Args:
        prog: the name that usage shows.
        description: one sentence on what the program does.
        examples: commands to copy, with a comment above each.
    """

    def __init__(self, prog: str, description: str, examples: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> typing.NoReturn:
        """Raise an :class:`InputError` with argparse's message about a wrong command line."""
        raise InputError(f"{message.removeprefix('argument ')}; see --help")


def number(
    kind: type[int] | type[float], low: float, high: float = float("inf")
) -> Callable[[str], Any]:
    """Return a ``type=`` for argparse: an int or a float from ``low`` to ``high`` inclusive."""
    what = "a whole number" if kind is int else "a number"
    between = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be {what} {between}")
        return value

    return convert
