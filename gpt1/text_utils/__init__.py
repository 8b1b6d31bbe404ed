"""Text to token ids and back: standardisation, words, byte-pair encoding.

:class:`TextEncoder` and :func:`text_standardize` are imported when they are first used: they need
spaCy, which takes half a second to import, and the special tokens of this package do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt1.text_utils.encoder import TextEncoder
    from gpt1.text_utils.words import text_standardize

__all__ = ["TextEncoder", "text_standardize"]

_MODULES = {"TextEncoder": "encoder", "text_standardize": "words"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
