"""Read settings from a configuration file: TOML, JSON, or the first line of a run's log."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text
from gpt1.settings.fields import Setting
from gpt1.settings.words import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib

LOG_SUFFIX = ".jsonl"
_WHAT = "the configuration file"


def read_config(path: str, settings: Mapping[str, Setting]) -> tuple[dict[str, Any], list[str]]:
    """Read the settings in a configuration file, whose keys are the names of flags.

    Args:
        path: a file that ends in ``.toml``, ``.json`` or ``.jsonl``. A ``.jsonl`` file is the log
            of a run: its first line is read, and keys in it that are not settings are ignored.
        settings: the settings of the command, by name.

    Returns:
        The values by name, without those that are null, and a problem for each wrong key or value.

    Raises:
        InputError: the file cannot be read at all.
    """
    table = _read_table(Path(path))
    if path.endswith(LOG_SUFFIX):
        table = {name: value for name, value in table.items() if name in settings}
    values, problems = {}, []
    for name, value in table.items():
        where = f"--config {path}: {name}"
        if name not in settings:
            problems.append(f"{where}: there is no such setting{did_you_mean(name, settings)}")
        elif value is not None:
            try:
                values[name] = _converted(settings[name], value)
            except ValueError as error:
                problems.append(f"{where} is {json.dumps(value, default=str):.60}: {error}")
    return values, problems


def _read_table(path: Path) -> dict[str, Any]:
    """Return the keys and values of a configuration file, as they are in the file.

    Raises:
        InputError: the file cannot be read, or is not a table in its format.
    """
    text = read_text(path, _WHAT)
    if path.suffix == LOG_SUFFIX:
        text = text.partition("\n")[0]
    try:
        table = _parse_toml(path, text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--config {path}: {_WHAT} is not {path.suffix.removeprefix('.').upper() or 'JSON'}: "
            f"{error!s:.200}; correct the file"
        ) from error
    if not isinstance(table, dict):
        raise InputError(f"--config {path}: expected keys with values, such as lr = 6.25e-5")
    return table


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        return tomllib.loads(text)
    raise InputError(f"--config {path}: TOML needs Python 3.11; write the file as JSON")


def _converted(setting: Setting, value: Any) -> Any:
    """Convert a value from the file to the type of the setting, as the command line does.

    Raises:
        ValueError: the value has another type; the message says what it must be.
    """
    if setting.many and not isinstance(value, list):
        raise ValueError("must be a list")
    values = [_converted_one(setting, each) for each in (value if setting.many else [value])]
    converted = tuple(values) if setting.many else values[0]
    if message := setting.problem(converted):
        raise ValueError(message)
    return converted


def _converted_one(setting: Setting, value: Any) -> Any:
    if isinstance(value, bool) != (setting.kind is bool) or not isinstance(
        value, bool | int | float | str
    ):
        raise ValueError(f"must be of type {setting.kind.__name__}")
    if setting.kind is str and not isinstance(value, str):
        raise ValueError("must be text, in quotes")
    return setting.convert(str(value).lower() if isinstance(value, bool) else str(value))
