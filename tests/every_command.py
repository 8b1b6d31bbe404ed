"""The commands of the program that declare their settings."""

from __future__ import annotations

import importlib

from gpt1.commands import cli
from gpt1.settings.command import Command


def every_command() -> list[Command]:
    """Return all commands, including each command of ``gpt1 plot``."""
    modules = [importlib.import_module(f"gpt1.commands.{name}") for name in cli.COMMANDS]
    found = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Command)
    }
    return list(found.values())
