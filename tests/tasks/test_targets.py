"""Targets: how labels are encoded, predictions decided, and predictions spelled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpt1.tasks import ChoiceIndex, Classes, Grades


def test_grades_become_the_probabilities_of_two_whole_grades() -> None:
    encoded = Grades().encode([0, 5, 3.0, 2.4, 4.75])
    assert encoded.dtype == np.float32
    expected = [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0.6, 0.4, 0, 0],
        [0, 0, 0, 0, 0.25, 0.75],
    ]
    np.testing.assert_allclose(encoded, expected, atol=1e-6)


def test_every_grade_is_the_mean_of_its_probabilities() -> None:
    """The definition is 1 - (y - floor(y)) for floor(y), and the rest for the next grade."""
    for y in np.linspace(0, 5, 501):
        (row,) = Grades().encode([y]).astype(np.float64)
        low = min(math.floor(y), 4)
        assert row[low] == pytest.approx(1 - (y - low), abs=1e-6)
        assert row[low + 1] == pytest.approx(y - low, abs=1e-6)
        assert row.sum() == pytest.approx(1, abs=1e-6)
        assert row @ np.arange(6) == pytest.approx(y, abs=1e-5)


def test_the_predicted_grade_is_the_expected_one() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.2, 0.1, 0.1], [1e-9, 1e-9, 1e-9, 0.5, 0.5, 1e-9]]))
    found = Grades().decide(logits)
    np.testing.assert_allclose(found, [2.3, 3.5], atol=1e-6)
    assert np.argmax(logits[0]) == 2  # The likeliest grade would be another prediction.


def test_a_scale_of_other_ends_is_mapped_linearly() -> None:
    target, labels = Grades(-1.0, 1.0), [-1.0, -0.2, 0.0, 0.7, 1.0]
    encoded = target.encode(labels)
    np.testing.assert_allclose(encoded @ np.arange(6) / 5 * 2 - 1, labels, atol=1e-6)
    logits = np.log(np.maximum(encoded, 1e-30))
    np.testing.assert_allclose(target.decide(logits), labels, atol=1e-6)
    assert target.encode([2.0, -5.0]).argmax(-1).tolist() == [5, 0]  # beyond the ends


def test_classes_and_choices_are_decided_by_the_highest_logit() -> None:
    logits = np.array([[0, 2, 1], [1, 1, 0], [-math.inf, -3, -math.inf]], dtype=np.float32)
    for target in (Classes(("a", "b", "c")), ChoiceIndex(("A", "B", "C"))):
        assert target.decide(logits).tolist() == [1, 0, 1]
        assert target.encode([2, 0]).tolist() == [2, 0]
        np.testing.assert_allclose(target.probabilities(logits).sum(-1), 1)
        assert target.probabilities(logits)[2].tolist() == [0, 1, 0]


def test_spelling() -> None:
    assert Classes(("entailment", "neutral")).spell(1) == "neutral"
    assert ChoiceIndex().spell(1) == "1"
    assert ChoiceIndex(("A", "B")).spell(1) == "B"
    assert float(Grades().spell(0.1 + 0.2)) == 0.1 + 0.2


def test_outputs_of_the_head() -> None:
    targets = (ChoiceIndex(("A", "B")), Classes(("a", "b", "c")), Grades())
    assert [target.n_outputs for target in targets] == [1, 3, 6]
