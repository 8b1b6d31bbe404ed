"""Scores of predictions, in percent.

Axes: n examples, R resamples of them, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

Labels = npt.NDArray[Any]
Compute = Callable[[Labels, Labels], float]
Rows = npt.NDArray[np.intp]
Scores = npt.NDArray[np.float64]
OfResamples = Callable[[Rows], Scores]
"""Takes the rows of the examples in each resample [R, n], and returns the score of each [R]."""


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels.

    Attributes:
        name: the name in the log, after ``tr_`` and ``va_``.
        title: the name in reports and in ``--metric``.
        lowest: the initial best score in percent; an evaluation is the best so far only if its
            score is higher.
        compute: takes predictions [n] and labels [n] and returns the score in percent.
        resampled: takes the same, and returns the function that computes ``compute`` of many
            resamples of these examples at once, for the bootstrap; None for accuracy, whose
            interval has a formula.
        least: the smallest possible score in percent; the largest is 100.
        positive: the index of the class that the score is of, for F1.
    """

    name: str
    title: str
    lowest: float
    compute: Compute
    resampled: Callable[[Labels, Labels], OfResamples] | None = None
    least: float = 0.0
    positive: int = 1


def accuracy(predictions: Labels, labels: Labels) -> float:
    """Return the share of right predictions in percent.

    Args:
        predictions, labels: [n].
    """
    return float(np.mean(predictions == labels) * 100)


def matthews(predictions: Labels, labels: Labels) -> float:
    """Return Matthews' correlation of classes in percent; 0 if one of both is constant."""
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return 100 * float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Labels, labels: Labels) -> float:
    """Return Pearson's correlation in percent; 0 if one of both is constant."""
    return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: Labels, labels: Labels) -> float:
    """Return Spearman's correlation of ranks in percent; 0 if one of both is constant."""
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(compute: Callable[..., Any], predictions: Labels, labels: Labels) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return 100 * float(compute(predictions, labels).statistic)


def _is_constant(values: Labels) -> bool:
    return bool((values == values[:1]).all())


def f1(positive: int = 1) -> Metric:
    """Return the metric F1 of one class: the harmonic mean of precision and recall.

    Args:
        positive: the index of the class; the score is 0 if that class is never predicted.
    """

    def compute(predictions: Labels, labels: Labels) -> float:
        found = f1_score(labels == positive, predictions == positive, zero_division=0)
        return 100 * float(found)

    def resampled(predictions: Labels, labels: Labels) -> OfResamples:
        chosen, right = predictions == positive, labels == positive
        both, either = chosen & right, chosen.astype(np.int8) + right

        def scores(rows: Rows) -> Scores:
            return _ratio(2.0 * both[rows].sum(-1), either[rows].sum(-1))

        return scores

    return Metric("f1", "f1", -math.inf, compute, resampled, positive=positive)


def _matthews_of_resamples(predictions: Labels, labels: Labels) -> OfResamples:
    """See :class:`Metric`; the formula is that of Gorodkin (2004) on tables of C by C counts."""
    C = int(max(predictions.max(), labels.max())) + 1
    cells = labels * C + predictions

    def scores(rows: Rows) -> Scores:
        counts = [np.bincount(of, minlength=C * C) for of in cells[rows]]
        tables = np.array(counts, dtype=np.float64).reshape(-1, C, C)
        n, right = rows.shape[-1], tables.trace(axis1=1, axis2=2)
        by_label, by_prediction = tables.sum(2), tables.sum(1)
        spread = (n**2 - (by_label**2).sum(1)) * (n**2 - (by_prediction**2).sum(1))
        return _ratio(right * n - (by_label * by_prediction).sum(1), np.sqrt(spread))

    return scores


def _pearson_of_resamples(predictions: Labels, labels: Labels) -> OfResamples:
    """See :class:`Metric`."""
    return lambda rows: _pearson_of_rows(predictions[rows], labels[rows])


def _spearman_of_resamples(predictions: Labels, labels: Labels) -> OfResamples:
    """See :class:`Metric`; the values of each resample are ranked anew."""
    places = [np.unique(values, return_inverse=True)[1] for values in (predictions, labels)]
    return lambda rows: _pearson_of_rows(*(_midranks(place[rows]) for place in places))


def _midranks(places: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Rank each row of whole numbers from 0, [R, n], by counting, which is faster than sorting."""
    counts = [np.bincount(row) for row in places]
    pairs = zip(counts, places, strict=True)
    return np.array([(count.cumsum() - (count - 1) / 2)[row] for count, row in pairs])


def _pearson_of_rows(x: Labels, y: Labels) -> Scores:
    """Return the correlations of the rows of x and y [R, n] in percent; 0 if one is constant."""
    is_constant = (np.ptp(x, axis=-1) == 0) | (np.ptp(y, axis=-1) == 0)
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return _ratio((x * y).sum(-1), np.where(is_constant, 0, spread))


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Scores:
    """Return ratios in percent; 0 where the denominator is 0."""
    ratios: Scores = np.divide(above, below, out=np.zeros(len(below)), where=below != 0)
    return 100 * ratios


ACCURACY = Metric("acc", "accuracy", 0.0, accuracy)
F1 = f1()
MATTHEWS = Metric("matthews", "matthews", -math.inf, matthews, _matthews_of_resamples, -100.0)
PEARSON = Metric("pearson", "pearson", -math.inf, pearson, _pearson_of_resamples, -100.0)
SPEARMAN = Metric("spearman", "spearman", -math.inf, spearman, _spearman_of_resamples, -100.0)

METRICS = {metric.name: metric for metric in (ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN)}
"""The metrics by their names in the log. F1 stands there for that of any class."""
