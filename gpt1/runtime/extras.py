"""Import a library where it is needed, and say how to install a missing optional one."""

from __future__ import annotations

import importlib
from typing import Any

from gpt1.runtime.errors import InputError

PACKAGES = {"plots": "matplotlib", "tensorboard": "tensorboard"}
"""The package that each extra of ``pyproject.toml`` brings."""


def import_extra(module: str, extra: str) -> Any:
    """Import a module that needs an optional dependency.

    Args:
        module: the module.
        extra: the extra of ``pyproject.toml`` that brings what the module needs.

    Raises:
        InputError: the package of that extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(extra) from error


def missing_extra(extra: str) -> InputError:
    """Make the error that says how to install the package of an extra."""
    return InputError(
        f"{PACKAGES[extra]} is missing: run pip install -e '.[{extra}]' in the directory of the "
        "project"
    )


class _Late:
    """A stand-in for a module, which imports the module when one of its names is first asked for.

    Args:
        module: the module.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


def late(module: str) -> Any:
    """Return a stand-in for a module, which is imported when one of its names is first used.

    The libraries that read text take half a second to import. A machine that computes on token ids
    made elsewhere need not have them.
    """
    return _Late(module)
