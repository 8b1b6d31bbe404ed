"""Targets: how the logits of a task become predictions, and how predictions are written."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


class Target(Protocol):
    """What a task predicts: turns logits into predictions, and predictions into text."""

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Turn logits [n, C] of C outcomes into predictions [n]."""

    def write(self, predictions: Labels) -> list[str]:
        """Return the text of each prediction in a submission."""


class ChoiceIndex:
    """The index of the right answer, counted from 0."""

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Choose the answer with the highest logit; the first one if several are equal."""
        chosen: Labels = logits.argmax(-1).astype(np.int32)
        return chosen

    def write(self, predictions: Labels) -> list[str]:
        """Return the number of each predicted answer as text."""
        return [str(int(each)) for each in predictions]
