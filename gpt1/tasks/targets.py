"""Targets: what the head computes for a task, and how its logits become predictions.

Axes: n examples, C outcomes (classes, answers or whole grades).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

Labels = npt.NDArray[Any]
"""Labels or predictions [n]: int32 indices, or float64 grades."""


class Target(Protocol):
    """What a task predicts.

    Attributes:
        n_outputs: number of outputs of the head: 1 for a logit per sequence, or the number of
            classes for logits that are computed from the sum of the states of all sequences.
    """

    @property
    def n_outputs(self) -> int: ...

    def encode(self, labels: Sequence[float]) -> npt.NDArray[Any]:
        """Turn n labels into the targets of the cross entropy.

        Returns:
            int32 [n], the index of the right outcome, or float32 [n, C], its probabilities.
        """

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Turn logits [n, C] into predictions [n], which are compared with labels."""

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the softmax over the outcomes, in float64; NaN where logits are not finite."""
        with np.errstate(invalid="ignore"):
            probabilities: npt.NDArray[np.float64] = softmax(logits.astype(np.float64), axis=-1)
        return probabilities

    def spell(self, prediction: float) -> str:
        """Return a prediction as a submission has it."""


@dataclass(frozen=True)
class _Index(Target):
    """Targets whose label is the index of an outcome, counted from 0.

    Attributes:
        names: what the outcomes are called in files; empty for their numbers from 0.
    """

    names: tuple[str, ...] = ()

    def encode(self, labels: Sequence[float]) -> npt.NDArray[np.int32]:
        """Return the labels as int32 [n]."""
        return np.asarray(labels, dtype=np.int32)

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Choose the outcome with the highest logit; the first one if several are equal."""
        chosen: Labels = logits.argmax(-1).astype(np.int32)
        return chosen

    def spell(self, prediction: float) -> str:
        """Return the name of an outcome."""
        return self.names[int(prediction)] if self.names else str(int(prediction))


@dataclass(frozen=True)
class ChoiceIndex(_Index):
    """The index of the right answer; the head computes one logit per answer."""

    @property
    def n_outputs(self) -> int:
        """1: each answer has a sequence, and each sequence a logit."""
        return 1


@dataclass(frozen=True)
class Classes(_Index):
    """The index of a class; the classes have names."""

    @property
    def n_outputs(self) -> int:
        """The number of classes."""
        return len(self.names)


N_GRADES = 6


@dataclass(frozen=True)
class Grades(Target):
    """A grade on a scale, by the probabilities of six whole grades.

    A grade y on the scale from 0 to 5 is the probability 1 - (y - floor(y)) of the whole grade
    floor(y), and the rest for the next one; the prediction is the expected grade (the original's
    ``stsb_label_encoding``). A scale with other ends is mapped to 0..5 linearly.

    Attributes:
        lowest, highest: the ends of the scale.
    """

    lowest: float = 0.0
    highest: float = 5.0

    @property
    def n_outputs(self) -> int:
        """The number of whole grades, 6."""
        return N_GRADES

    @property
    def _unit(self) -> float:
        """The distance of two whole grades on the scale of the labels."""
        return (self.highest - self.lowest) / (N_GRADES - 1)

    def encode(self, labels: Sequence[float]) -> npt.NDArray[np.float32]:
        """Return the probabilities of the whole grades, float32 [n, 6].

        A label beyond an end of the scale counts as that end.
        """
        grades = (np.asarray(labels, dtype=np.float64) - self.lowest) / self._unit
        distance = np.abs(grades.clip(0, N_GRADES - 1)[:, None] - np.arange(N_GRADES))
        probabilities: npt.NDArray[np.float32] = np.maximum(1 - distance, 0).astype(np.float32)
        return probabilities

    def decide(self, logits: npt.NDArray[Any]) -> Labels:
        """Return the expected grades, float64 [n], on the scale of the labels."""
        return self.lowest + self._unit * (self.probabilities(logits) @ np.arange(N_GRADES))

    def spell(self, prediction: float) -> str:
        """Return a grade with the digits that give the same number when it is read."""
        return repr(float(prediction))
