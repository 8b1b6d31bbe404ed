"""What a model is to predict: how a label is encoded, and a prediction decided and written."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


class Target(Protocol):
    """The labels of a task, and the predictions that answer them."""

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Turn logits [n, C] into predictions [n]."""

    def write(self, predictions: Labels) -> list[str]:
        """Spell predictions as a submission has them."""


class ChoiceIndex:
    """The index of the right answer, counted from 0."""

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Choose the answer with the highest logit; of equal ones the first."""
        chosen: Labels = logits.argmax(-1).astype(np.int32)
        return chosen

    def write(self, predictions: Labels) -> list[str]:
        """Spell each prediction as its number."""
        return [str(int(each)) for each in predictions]
