"""How far numbers from a few stories, or from a few seeds, can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest, quantile_test
from sklearn.metrics import confusion_matrix


class McNemar(NamedTuple):
    """How two submissions ``a`` and ``b`` disagree.

    Attributes:
        only_a, only_b: stories that this one alone gets right.
        p: how likely a split at least as uneven is if both are equally good.
    """

    only_a: int
    only_b: int
    p: float


def wilson_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval, without continuity correction, for a proportion of ``k`` in ``n``.

    Unlike the textbook ``p +- z * sqrt(p (1 - p) / n)`` it stays within [0, 1] and keeps its
    level for small ``n`` and for proportions near the ends.

    Args:
        k: stories that are right, 0 <= k <= n.
        n: stories, at least 1.
        level: how often such an interval holds the true proportion.

    Returns:
        Both ends, as proportions.

    Raises:
        ValueError: an argument is outside its range.
    """
    low, high = binomtest(k, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Interval for the median of a distribution, whatever its shape, from some of its values.

    Returns:
        Two of the values, or None if there are too few for the level (six are needed for 0.95).

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
    """Exact two-sided McNemar test of two submissions on the same stories.

    Stories that both get right, or both wrong, say nothing about which is better. If the two
    are equally good, each of the others falls to either side like a fair coin; ``p`` is the
    two-sided binomial probability of the counts seen.

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
    # The smaller count, so that the order of the submissions does not change the rounding.
    return McNemar(only_a, only_b, float(binomtest(min(only_a, only_b), n).pvalue) if n else 1.0)
