"""Parameters on disk: the released layout, full parameter lists and the model hub's layout."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt1.weights.parameters import from_list, to_list
    from gpt1.weights.released import load_released, save_released

__all__ = ["from_list", "load_released", "save_released", "to_list"]


def __getattr__(name: str) -> Any:
    """Import a public function on first use: :mod:`gpt1.weights.locate` must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "parameters" if name.endswith("_list") else "released"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
