"""Import optional dependencies where they are needed, and say how to install a missing one."""

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
