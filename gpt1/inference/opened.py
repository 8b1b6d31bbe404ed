"""A model with its text encoder, which generation, scoring and attention maps use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from gpt1.model import DoubleHeadsModel
from gpt1.tasks.record import TaskRecord
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model and its text encoder.

    Attributes:
        module: the model, in evaluation mode, on its device.
        text_encoder: its vocabulary and the way from text to ids.
        has_choice_head: whether its classifier was trained; otherwise its values are random.
        source: the files it came from, for messages.
        has_special_rows: whether the rows of the three special tokens were read or trained;
            otherwise they are random.
        task: the record of the task that it was trained on; None if no file has one.
    """

    module: DoubleHeadsModel
    text_encoder: TextEncoder
    has_choice_head: bool
    source: str
    has_special_rows: bool = True
    task: TaskRecord | None = None

    @property
    def special(self) -> SpecialTokens:
        """The ids of the three special tokens."""
        return SpecialTokens.after(self.module.config.n_vocab)

    @overload
    def encode(self, text: str) -> list[int]: ...  # type: ignore[overload-overlap]

    @overload
    def encode(self, text: Sequence[str]) -> list[list[int]]: ...

    def encode(self, text: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Return the token ids of a text, or a list with the token ids of each of several texts."""
        if isinstance(text, str):
            return self.text_encoder.encode([text], verbose=False)[0]
        return self.text_encoder.encode(text, verbose=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the readable text of token ids, without special tokens."""
        n_vocab = self.module.config.n_vocab
        return self.text_encoder.decode(i for i in ids if i < n_vocab)
