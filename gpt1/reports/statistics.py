"""Statistics of accuracies: intervals for few stories or few seeds, and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest, quantile_test
from sklearn.metrics import confusion_matrix


class McNemar(NamedTuple):
    """The result of McNemar's test of two submissions ``a`` and ``b``.

    Attributes:
        only_a, only_b: numbers of stories that only ``a``, or only ``b``, gets right.
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
        k: number of right stories, from 0 to n.
        n: number of stories, at least 1.
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


def confusion(predictions: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """Count stories as ``table[label][prediction]``, [2, 2].

    Raises:
        ValueError: the two are not equally long, or empty.
    """
    table: list[list[int]] = confusion_matrix(labels, predictions, labels=[0, 1]).tolist()
    return table


def mcnemar_exact(a: Sequence[int], b: Sequence[int], labels: Sequence[int]) -> McNemar:
    """Compute the exact two-sided McNemar test of two submissions on the same stories.

    Only stories that one submission alone gets right count. If the submissions are equally good,
    each of these stories is as likely to be one of ``a`` as one of ``b``; ``p`` is the two-sided
    binomial probability of the observed counts.

    Args:
        a, b: predictions, 0 or 1 for each story.
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
