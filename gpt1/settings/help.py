"""Write the text of ``--help``: each group of settings under its own title."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence

from gpt1.settings.fields import Setting, is_required

WIDTH = 78
"""Characters per line of the texts that argparse does not wrap."""


def help_text(
    program: str,
    summary: str,
    sections: Sequence[tuple[str, Sequence[Setting]]],
    examples: str,
) -> str:
    """Write the help of a command.

    Args:
        program: the words that start the command.
        summary: what the command does.
        sections: each title with the settings below it; ``-h`` is added to the last section.
        examples: commands to copy, with a comment above each; empty if there are none.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=_usage(program, [item for _, settings in sections for item in settings]),
        description=textwrap.fill(summary, WIDTH),
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for title, settings in sections:
        section = parser.add_argument_group(title)
        _add(section, settings)
    section.add_argument("-h", "--help", action="store_true", help="show this help and end")
    return parser.format_help()


def title(group: type) -> str:
    """Return the title of a group: the first line of its docstring, in lower case."""
    line = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:]


def _usage(program: str, items: Sequence[Setting]) -> str:
    """Return the usage line: arguments, then required flags. Optional flags are not listed."""
    words = [program]
    for item in items:
        if item.argument:
            text = item.shown + (" ..." if item.many else "")
            words.append(text if is_required(item) else f"[{text}]")
    words += [
        f"{item.shown} {item.place}" for item in items if is_required(item) and not item.argument
    ]
    # A flag stays on one line with its value: textwrap does not break at non-breaking spaces.
    line = " ".join(word.replace(" ", "\xa0") for word in [*words, "[--flag VALUE ...]"])
    indent = " " * len("usage: ")
    return textwrap.fill(line, WIDTH - len(indent), subsequent_indent=indent).replace("\xa0", " ")


def _add(section: argparse._ArgumentGroup, items: Iterable[Setting]) -> None:
    for item in items:
        note = item.help
        if item.default not in (None, False, ()) and not is_required(item) and "[" not in note:
            note += f" [{item.default}]"
        note = note.replace("%", "%%")
        if item.argument:
            section.add_argument(item.name, metavar=item.shown, help=note, nargs="*")
        elif item.kind is bool:
            section.add_argument(item.shown, help=note, action="store_true")
        else:
            section.add_argument(item.shown, help=note, metavar=item.place)
