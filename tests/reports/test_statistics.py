"""Intervals and tests agree with calculations by hand and with their definitions."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1.reports import statistics

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
FIRST = [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]  # wrong on stories 5 and 6
SECOND = [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]  # wrong on 0 to 3, 7 and 8


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson_interval_of_known_cases(k: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(k, n) == pytest.approx((low, high), abs=5e-7)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 374, 1871])
def test_wilson_interval_holds_the_proportions_that_a_test_does_not_reject(
    n: int, level: float
) -> None:
    """Both ends solve |k/n - p| = z sqrt(p (1 - p) / n), which is how Wilson derives them."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    for k in sorted({1, n // 3, n - 1} & set(range(1, n))):
        low, high = statistics.wilson_interval(k, n, level)
        assert 0 < low < k / n < high < 1
        for p in (low, high):
            assert abs(k / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), rel=1e-9)


def test_wilson_interval_ends_exactly_when_none_or_all_are_right() -> None:
    for n in range(1, 300):
        assert statistics.wilson_interval(0, n)[0] == 0.0
        assert statistics.wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize(
    ("k", "n", "level"),
    [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, -0.1), (1, 5, 1.1), (1, 5, math.nan)],
)
def test_wilson_interval_refuses_what_has_none(k: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match="must"):
        statistics.wilson_interval(k, n, level)


def test_confusion_has_labels_in_rows() -> None:
    assert statistics.confusion([0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]) == [[2, 2], [1, 1]]
    with pytest.raises(ValueError, match="inconsistent"):
        statistics.confusion([0], [0, 1])


def test_mcnemar_by_hand() -> None:
    # 6 against 2: 1 + 8 + 28 of the 256 ways on either side.
    assert statistics.mcnemar_exact(FIRST, SECOND, LABELS) == (6, 2, pytest.approx(74 / 256))


@pytest.mark.parametrize(("x", "y"), [*product(range(5), repeat=2), (300, 250), (0, 200), (40, 80)])
def test_mcnemar_counts_the_ways_of_a_fair_coin(x: int, y: int) -> None:
    a, b = [1] * x + [0] * y + [1], [0] * x + [1] * y + [1]
    tails = 2 * sum(math.comb(x + y, k) for k in range(min(x, y) + 1)) / 2 ** (x + y)
    expected = (x, y, pytest.approx(min(1, tails), rel=1e-9))
    assert statistics.mcnemar_exact(a, b, [1] * (x + y + 1)) == expected


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=60))
def test_mcnemar_is_symmetric(stories: list[tuple[int, int, int]]) -> None:
    a, b, labels = ([story[i] for story in stories] for i in range(3))
    there, back = statistics.mcnemar_exact(a, b, labels), statistics.mcnemar_exact(b, a, labels)
    assert there == (back.only_b, back.only_a, back.p)
    assert 0 < there.p <= 1


def test_mcnemar_without_discordant_stories_is_certain() -> None:
    assert statistics.mcnemar_exact(FIRST, FIRST, LABELS) == (0, 0, 1.0)


def test_submissions_of_other_lengths_are_refused() -> None:
    for a, b in ((FIRST[:-1], SECOND), (FIRST, SECOND[:-1])):
        with pytest.raises(ValueError, match="argument 2"):
            statistics.mcnemar_exact(a, b, LABELS)


def test_interval_of_a_median_is_two_of_the_values() -> None:
    """The chance that the median lies outside is at most 5 %, counted in fair coins."""
    values = [float((7 * n) % 23) for n in range(23)]  # 0 to 22 in another order
    for n in range(6, 24):
        low, high = statistics.median_interval(values[:n]) or (math.nan, math.nan)
        ordered = sorted(values[:n])
        place = ordered.index(low)
        assert ordered[-1 - place] == high
        outside = [
            2 * sum(math.comb(n, k) for k in range(i)) / 2**n for i in (place + 1, place + 2)
        ]
        assert outside[0] <= 0.05 < outside[1]


def test_few_values_have_no_interval_of_their_median() -> None:
    for n in range(1, 6):
        assert statistics.median_interval([50.0] * n) is None
    assert statistics.median_interval([1.0] * 4, level=0.5) == (1.0, 1.0)
