"""Bootstrap intervals and tests, against SciPy's on scikit-learn's and SciPy's own metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gpt1.reports import statistics
from gpt1.tasks.metrics import F1, MATTHEWS, METRICS, PEARSON, SPEARMAN, Metric, f1

N = 60
GREEN = f1(positive=2)
METRICS_OF_RESAMPLES = (F1, GREEN, MATTHEWS, PEARSON, SPEARMAN)
EVERY = pytest.mark.parametrize(
    "metric", METRICS_OF_RESAMPLES, ids=["f1", "f1 of class 2", "matthews", "pearson", "spearman"]
)


@pytest.fixture(autouse=True)
def _few_resamples_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(statistics, "N_RESAMPLES", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(metric: Metric, seed: int, n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predictions of two submissions, the first one better, and labels."""
    rng = np.random.default_rng(seed)
    if metric in (PEARSON, SPEARMAN):
        labels = rng.integers(0, 11, n) / 2  # many are equal
        return labels + rng.normal(size=n), labels + 2 * rng.normal(size=n).round(1), labels
    labels = rng.integers(0, 3, n)
    first, second = (np.where(rng.random(n) < p, labels, rng.integers(0, 3, n)) for p in (0.7, 0.4))
    return first, second, labels


def by_scipy(metric: Metric, statistic: Any, *samples: np.ndarray) -> Any:
    """Compute the bootstrap with a call of the metric for each resample."""
    return stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=statistics.N_RESAMPLES,
        batch=statistics._BATCH // len(samples[0]),
        method="percentile",
        random_state=np.random.default_rng(0),
    )


@EVERY
def test_the_interval_is_scipys_on_the_metric_itself(metric: Metric) -> None:
    predictions, _, labels = drawn(metric, 1)
    assert metric.resampled is not None
    found = statistics.bootstrap_interval(metric.resampled(predictions, labels), N)
    expected = by_scipy(metric, metric.compute, predictions, labels).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=1e-9)
    assert found[0] < metric.compute(predictions, labels) < found[1]


@EVERY
def test_the_test_is_on_resamples_that_both_submissions_share(metric: Metric) -> None:
    first, second, labels = drawn(metric, 2)

    def difference(a: np.ndarray, b: np.ndarray, right: np.ndarray) -> float:
        return metric.compute(b, right) - metric.compute(a, right)

    found = statistics.compare_by_bootstrap(metric, first, second, labels)
    expected = by_scipy(metric, difference, first, second, labels)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=1e-9)
    assert found.difference == pytest.approx(difference(first, second, labels))
    drawn_ = expected.bootstrap_distribution
    rarer = min((drawn_ <= 0).sum(), (drawn_ >= 0).sum())
    assert found.p == pytest.approx(min(1, 2 * (rarer + 1) / (statistics.N_RESAMPLES + 1)))
    assert found.difference < 0
    back = statistics.compare_by_bootstrap(metric, second, first, labels)
    assert (back.difference, back.low, back.high, back.p) == pytest.approx(
        (-found.difference, -found.high, -found.low, found.p)
    )


@EVERY
def test_equal_submissions_do_not_differ(metric: Metric) -> None:
    first, _, labels = drawn(metric, 3)
    assert statistics.compare_by_bootstrap(metric, first, first, labels) == (0, 0, 0, 1)


@EVERY
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_and_equal_predictions_give_0_without_a_warning(metric: Metric, n: int) -> None:
    """The mean of three times 0.1 is not 0.1 in floating-point numbers."""
    assert metric.resampled is not None
    equal = np.full(n, 0.1) if metric in (PEARSON, SPEARMAN) else np.zeros(n, dtype=int)
    for labels in (equal, np.arange(n) % 2):
        assert metric.compute(equal, labels) == 0
        assert statistics.bootstrap_interval(metric.resampled(equal, labels), n) == (0, 0)


def test_the_test_finds_a_difference_that_is_not_there_one_time_in_twenty() -> None:
    """Two submissions of equal quality: p is below 0.05 in 5 % of the cases, within 3.3 sigma."""
    rng, n_cases, found = np.random.default_rng(4), 200, 0
    for _ in range(n_cases):
        labels = rng.integers(0, 2, 300)
        a, b = (np.where(rng.random(300) < 0.7, labels, 1 - labels) for _ in range(2))
        found += statistics.compare_by_bootstrap(MATTHEWS, a, b, labels).p < 0.05
    assert abs(found / n_cases - 0.05) < 3.3 * (0.05 * 0.95 / n_cases) ** 0.5


def test_confusion_of_any_number_of_classes_has_labels_in_rows() -> None:
    assert statistics.confusion([0, 2, 2], [0, 1, 2], 4) == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]


def test_all_metrics_have_names_of_their_own() -> None:
    assert list(METRICS) == ["acc", "f1", "matthews", "pearson", "spearman"]
