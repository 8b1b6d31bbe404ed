"""What all pictures share: their size, colours and files (the extra ``plots``).

Each drawing is a matplotlib figure of its own. It is made without pyplot, so that no window opens
and nothing global changes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import import_extra
from gpt1.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
# The colours of Okabe and Ito, which most colour-blind people can tell apart, without the yellow,
# which is too pale for a line.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
NEUTRAL = "#444444"


def check_picture(path: str | Path, flag: str = "--out") -> None:
    """Check before any work whether a picture of this name can be drawn.

    Raises:
        InputError: the name does not end in one of :data:`SUFFIXES`, or matplotlib is missing.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"{flag} {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    matplotlib()


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Make an empty figure.

    Args:
        width, height: the size in inches.
        layout: matplotlib's layout engine; "compressed" suits axes whose shape is fixed.

    Raises:
        InputError: matplotlib is missing.
    """
    figure: Figure = matplotlib("figure").Figure((width, height), DPI, layout=layout)
    return figure


def matplotlib(module: str = "") -> Any:
    """Import the library, which the extra ``plots`` brings, or a module of it.

    Raises:
        InputError: the library is missing.
    """
    return import_extra(f"matplotlib.{module}".removesuffix("."), "plots")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix; the same figure gives the same bytes.

    Raises:
        Gpt1Error: the file cannot be written.
    """
    form = Path(path).suffix.lower()[1:]
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with warnings.catch_warnings(), matplotlib().rc_context({"svg.hashsalt": "gpt1"}):
        # A character that the font lacks is drawn as a box; that needs no words.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        with atomic_write(path) as file:
            figure.savefig(file, format=form, metadata=no_date.get(form))


def shortened(name: str, most: int = 60) -> str:
    """Shorten a name to ``most`` characters; the end of a long name is kept, as it says more."""
    return name if len(name) <= most else "..." + name[3 - most :]


def set_title(figure: Figure, title: str) -> None:
    """Write a title above a whole figure, in which a dollar sign is a dollar sign."""
    figure.suptitle(title, fontsize=11).set_parse_math(False)
