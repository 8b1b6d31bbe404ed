"""Statistics of scores: intervals for few examples or few seeds, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap, quantile_test
from sklearn.metrics import confusion_matrix

from gpt1.tasks.metrics import Metric, OfResamples, Rows, Scores

Outcomes = Sequence[int] | npt.NDArray[Any]

N_RESAMPLES = 1000
_BATCH = 200_000  # rows that are drawn at once, so that memory stays small


class McNemar(NamedTuple):
    """The result of McNemar's test of two submissions ``a`` and ``b``.

    Attributes:
        only_a, only_b: numbers of examples that only ``a``, or only ``b``, gets right.
        p: the probability of a split at least as uneven if both submissions are equally good.
    """

    only_a: int
    only_b: int
    p: float


def wilson_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval, without continuity correction, for a proportion ``k / n``.

    Unlike the textbook interval ``p +- z * sqrt(p (1 - p) / n)``, it stays within [0, 1] and keeps
    its level for small ``n`` and for proportions near 0 or 1.

    Args:
        k: number of right predictions, from 0 to n.
        n: number of predictions, at least 1.
        level: the probability with which such an interval holds the true proportion.

    Returns:
        Both ends, as proportions.

    Raises:
        ValueError: an argument is outside its range.
    """
    low, high = binomtest(k, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return an interval for the median of a distribution of any shape, from a sample of values.

    Returns:
        Two of the values; None if there are too few values for the level (0.95 needs six).

    Raises:
        ValueError: there are no values.
    """
    low, high = quantile_test(values, p=0.5).confidence_interval(level)
    return None if math.isnan(low) else (float(low), float(high))


def bootstrap_interval(of_resamples: OfResamples, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a score by the percentile bootstrap over examples.

    The resamples are always the same.

    Args:
        of_resamples: computes the score of resamples of the examples.
        n: number of examples, at least 1. A single one always is its own resample.
    """
    low, high = np.percentile(_distribution(of_resamples, n), [2.5, 97.5])
    return float(low), float(high)


def example_interval(
    metric: Metric, predictions: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> tuple[float, float]:
    """Return the 95 % interval of a score in percent that comes from the choice of the examples.

    It is Wilson's for accuracy, and that of the bootstrap for any other metric.

    Args:
        metric: the metric.
        predictions, labels: [n], at least one.
    """
    n = len(labels)
    if metric.resampled is not None:
        return bootstrap_interval(metric.resampled(predictions, labels), n)
    low, high = wilson_interval(round(metric.compute(predictions, labels) * n / 100), n)
    return 100 * low, 100 * high


class Difference(NamedTuple):
    """The difference of the scores of two submissions, that of ``b`` minus that of ``a``.

    Attributes:
        difference: in percentage points.
        low, high: the ends of its 95 % interval.
        p: two-sided, from the share of resamples in which the difference has the other sign.
    """

    difference: float
    low: float
    high: float
    p: float


def compare_by_bootstrap(
    metric: Metric, a: npt.NDArray[Any], b: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> Difference:
    """Compare two submissions by the paired bootstrap over examples.

    Each resample has the same examples for both submissions.

    Args:
        metric: a metric that has the function ``resampled``.
        a, b: predictions [n].
        labels: the right answers [n], at least one.
    """
    assert metric.resampled is not None
    first, second = (metric.resampled(each, labels) for each in (a, b))
    found = _distribution(lambda rows: second(rows) - first(rows), len(labels))
    rarer = min((found <= 0).sum(), (found >= 0).sum())
    low, high = np.percentile(found, [2.5, 97.5])
    return Difference(
        difference=metric.compute(b, labels) - metric.compute(a, labels),
        low=float(low),
        high=float(high),
        p=min(1.0, float(2 * (rarer + 1) / (len(found) + 1))),
    )


def _distribution(of_resamples: OfResamples, n: int) -> Scores:
    """Return the score of each resample of n examples, [N_RESAMPLES]."""
    if n == 1:  # SciPy refuses a single example.
        return of_resamples(np.zeros((1, 1), dtype=np.intp))

    def statistic(rows: Rows, axis: int) -> Scores:
        return of_resamples(np.atleast_2d(rows))

    found = bootstrap(
        (np.arange(n),),
        statistic,
        n_resamples=N_RESAMPLES,
        batch=max(1, _BATCH // n),
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    distribution: Scores = found.bootstrap_distribution
    return distribution


def confusion(predictions: Outcomes, labels: Outcomes, n: int = 2) -> list[list[int]]:
    """Count examples as ``table[label][prediction]``, [n, n].

    Args:
        predictions, labels: outcomes from 0 to n - 1.
        n: number of outcomes.

    Raises:
        ValueError: the two are not equally long, or empty.
    """
    table: list[list[int]] = confusion_matrix(labels, predictions, labels=list(range(n))).tolist()
    return table


def mcnemar_exact(a: Outcomes, b: Outcomes, labels: Outcomes) -> McNemar:
    """Compute the exact two-sided McNemar test of two submissions on the same examples.

    Only examples that one submission alone gets right count. If the submissions are equally good,
    each of these examples is as likely to be one of ``a`` as one of ``b``; ``p`` is the two-sided
    binomial probability of the observed counts.

    Args:
        a, b: predictions, as outcomes.
        labels: the right answers, at least one.

    Raises:
        ValueError: the three are not equally long, or empty.
    """
    right_a, right_b = (
        [prediction == label for prediction, label in zip(each, labels, strict=True)]
        for each in (a, b)
    )
    (_, only_b), (only_a, _) = confusion(right_b, right_a)
    n = only_a + only_b
    # The smaller count is used, so that the order of the submissions does not change the rounding.
    return McNemar(only_a, only_b, float(binomtest(min(only_a, only_b), n).pvalue) if n else 1.0)
