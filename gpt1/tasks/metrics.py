"""Scores of predictions, in percent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Compute = Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels.

    Attributes:
        name: the name in the log, after ``tr_`` and ``va_``.
        title: the name in reports.
        lowest: the initial best score in percent; an evaluation is the best so far only if its
            score is higher.
        compute: takes predictions [n] and labels [n] and returns the score in percent.
    """

    name: str
    title: str
    lowest: float
    compute: Compute


def accuracy(predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Return the share of right predictions in percent.

    Args:
        predictions, labels: [n].
    """
    return float(np.mean(predictions == labels) * 100)


ACCURACY = Metric("acc", "accuracy", 0.0, accuracy)
