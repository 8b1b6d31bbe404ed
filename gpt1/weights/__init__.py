"""Parameters on disk: released shards, parameter lists, the model hub layout."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt1.weights.parameters import from_list, to_list
    from gpt1.weights.released import load_released, save_released

__all__ = ["from_list", "load_released", "save_released", "to_list"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: :mod:`gpt1.weights.locate` does without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "parameters" if name.endswith("_list") else "released"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
