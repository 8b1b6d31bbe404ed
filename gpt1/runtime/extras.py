"""Import a library that only an extra of the package installs, such as ``gpt1[plots]``."""

from __future__ import annotations

import importlib
from typing import Any

from gpt1.runtime.errors import InputError

LIBRARIES = {"plots": "matplotlib", "tensorboard": "tensorboard"}
"""The library of each extra."""


def import_extra(extra: str, module: str) -> Any:
    """Import a module that needs the library of an extra.

    Args:
        extra: a name in :data:`LIBRARIES`.
        module: the full name of the module, such as ``"matplotlib.figure"``.

    Raises:
        InputError: the library is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = LIBRARIES[extra]
        raise InputError(f"{library} is missing: pip install 'gpt1[{extra}]'") from error
