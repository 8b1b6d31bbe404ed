"""The metrics against their definitions, and predictions that are all equal."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from gpt1.tasks import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN, Metric
from gpt1.tasks.metrics import f1

EVERY = (ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN)
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1])
PREDICTIONS = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
TP, FP, FN, TN = 4, 1, 2, 3


def test_scores_of_classes_by_the_counts() -> None:
    assert ACCURACY.compute(PREDICTIONS, LABELS) == pytest.approx(100 * (TP + TN) / 10)
    assert F1.compute(PREDICTIONS, LABELS) == pytest.approx(100 * 2 * TP / (2 * TP + FP + FN))
    root = math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))
    assert MATTHEWS.compute(PREDICTIONS, LABELS) == pytest.approx(100 * (TP * TN - FP * FN) / root)


def test_f1_is_of_the_positive_class() -> None:
    other = f1(positive=0).compute(PREDICTIONS, LABELS)
    assert other == pytest.approx(100 * 2 * TN / (2 * TN + FP + FN))
    assert other != pytest.approx(F1.compute(PREDICTIONS, LABELS))


def test_correlations_of_grades() -> None:
    labels, grades = np.array([0.0, 1.5, 3.0, 5.0]), np.array([0.5, 1.0, 4.0, 4.5])
    assert PEARSON.compute(grades, labels) == pytest.approx(100 * np.corrcoef(grades, labels)[0, 1])
    assert SPEARMAN.compute(grades, labels) == pytest.approx(100)
    assert PEARSON.compute(-grades, labels) < 0
    assert SPEARMAN.compute(np.array([1.0, 2.0, 2.0, 0.0]), labels) == pytest.approx(
        100 * np.corrcoef([1, 2.5, 2.5, 0], [0, 1, 2, 3])[0, 1]
    )


@pytest.mark.parametrize("metric", EVERY[1:], ids=lambda metric: metric.name)
@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_prediction_gives_0_without_a_warning(metric: Metric, constant: int) -> None:
    labels = np.zeros(10, int) if metric is F1 and constant else LABELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute(np.full(10, constant if metric is not F1 else 0), labels) == 0
        assert metric.compute(LABELS * 0, LABELS * 0) == 0


def test_the_first_evaluation_is_the_best_so_far() -> None:
    """Accuracy must exceed 0, as in the original; a correlation may be below it throughout."""
    assert [metric.lowest for metric in EVERY] == [0, *[-math.inf] * 4]
    labels = np.array([0.0, 1.0, 2.0])
    assert PEARSON.compute(-labels, labels) == pytest.approx(-100)
    assert PEARSON.compute(-labels, labels) > PEARSON.lowest
