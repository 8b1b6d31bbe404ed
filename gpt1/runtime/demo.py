"""Where the bundled demo lies: a few stories and a small model, for a machine without real ones.

The repository holds one copy, in ``data/demo`` and ``model/demo``. The wheel holds a copy that is
made when it is built (``setup.py``), so that an installed package runs the demo in any directory.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Literal

Kind = Literal["data", "model"]
DEMO = "demo"


def demo_dir(kind: Kind) -> Path:
    """Return the directory of the demo's stories (``data``) or of its model (``model``).

    It is ``data/demo`` or ``model/demo`` in the current directory. If there is none, it is the copy
    in the installed package, or that of the repository from which the package is imported.
    """
    return next((place for place in _places(kind) if place.is_dir()), Path(kind, DEMO))


def is_demo_dir(kind: Kind, path: str | Path) -> bool:
    """Return whether a directory is one in which :func:`demo_dir` looks for the demo."""
    return any(os.path.realpath(path) == os.path.realpath(place) for place in _places(kind))


def _places(kind: Kind) -> tuple[Path, ...]:
    package = Path(str(resources.files("gpt1")))
    return Path(kind, DEMO), package / DEMO / kind, package.parent / kind / DEMO
