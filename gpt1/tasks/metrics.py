"""Scores of predictions, in percent.

Axes: n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

Labels = npt.NDArray[Any]
Compute = Callable[[Labels, Labels], float]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels.

    Attributes:
        name: the name in the log, after ``tr_`` and ``va_``.
        title: the name in reports and in ``--metric``.
        lowest: the initial best score in percent; an evaluation is the best so far only if its
            score is higher.
        compute: takes predictions [n] and labels [n] and returns the score in percent.
        positive: the index of the class that the score is of, for F1.
    """

    name: str
    title: str
    lowest: float
    compute: Compute
    positive: int = 1


def accuracy(predictions: Labels, labels: Labels) -> float:
    """Return the share of right predictions in percent.

    Args:
        predictions, labels: [n].
    """
    return float(np.mean(predictions == labels) * 100)


def matthews(predictions: Labels, labels: Labels) -> float:
    """Return Matthews' correlation of classes in percent; 0 if all predictions are equal."""
    return 100 * float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Labels, labels: Labels) -> float:
    """Return Pearson's correlation in percent; 0 if all predictions or all labels are equal."""
    return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: Labels, labels: Labels) -> float:
    """Return Spearman's correlation of ranks in percent; 0 if one of both is constant."""
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(compute: Callable[..., Any], predictions: Labels, labels: Labels) -> float:
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return 100 * float(compute(predictions, labels).statistic)


def f1(positive: int = 1) -> Metric:
    """Return the metric F1 of one class: the harmonic mean of precision and recall.

    Args:
        positive: the index of the class; the score is 0 if that class is never predicted.
    """

    def compute(predictions: Labels, labels: Labels) -> float:
        found = f1_score(labels == positive, predictions == positive, zero_division=0)
        return 100 * float(found)

    return Metric("f1", "f1", -math.inf, compute, positive=positive)


ACCURACY = Metric("acc", "accuracy", 0.0, accuracy)
F1 = f1()
MATTHEWS = Metric("matthews", "matthews", -math.inf, matthews)
PEARSON = Metric("pearson", "pearson", -math.inf, pearson)
SPEARMAN = Metric("spearman", "spearman", -math.inf, spearman)
