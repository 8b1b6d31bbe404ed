"""Zero-shot methods without a model: templates, words for classes, layouts and thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1.datasets import TASKS
from gpt1.runtime.errors import InputError
from gpt1.tasks.metrics import matthews
from gpt1.tasks.zeroshot import (
    Continuations,
    Method,
    Template,
    WholeText,
    best_threshold,
    find_method,
)
from gpt1.text_utils.special import SpecialTokens

SPECIAL = SpecialTokens.after(90)
WORDS = ("yes", "no")


def message(dataset: str, *arguments: str | None) -> str:
    with pytest.raises(InputError) as caught:
        find_method(TASKS[dataset], *arguments)
    return str(caught.value)


# Layouts


def test_the_last_tokens_of_a_context_are_kept_and_answers_are_whole() -> None:
    texts = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [], [7]]
    layout = Continuations(2)
    answers = [[7, 8, 9], [], [7]]
    assert layout.sequences(texts, SPECIAL, 9) == [[1, 2, 3, 4, 5, 6], *answers]
    assert layout.sequences(texts, SPECIAL, 6) == [[4, 5, 6], *answers]
    assert layout.sequences(texts, SPECIAL, 4) == [[6], *answers]
    assert layout.sequences(texts, SPECIAL, 3) == [[6], *answers]  # too long: an error elsewhere


def test_a_whole_text_is_its_first_token_and_the_rest() -> None:
    assert WholeText().sequences([[5, 6, 7]], SPECIAL, 2) == [[5], [6, 7]]
    assert WholeText().sequences([[5]], SPECIAL, 2) == [[5], []]
    assert WholeText().sequences([[]], SPECIAL, 2) == [[], []]


# Templates


def test_the_papers_template_of_sst2() -> None:
    method = find_method(TASKS["sst2"])
    assert method.texts(("fine ",)) == ("fine  very ", "negative", "positive")
    assert (method.layout, method.score, method.has_threshold) == (Continuations(1), "sum", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{text1} ? {label} , {text2}", ("A {b} ? ", "yes , {label}", "no , {label}")),
        ("{text2}{{x}}{text1}{label}", ("{label}{x}A {b}", "yes", "no")),
        ("Only {text2}: {label}.", ("Only {label}: ", "yes.", "no.")),
        ("So {label} {text1}", ("So ", "yes A {b}", "no A {b}")),
    ],
)
def test_fields_are_filled_once(text: str, expected: tuple[str, ...]) -> None:
    """Braces in the texts of an example are no fields."""
    template = Template.parse(text, ("text1", "text2"), WORDS)
    assert template.fill(("A {b}", "{label}")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{text1} {label", "its braces do not match; write {{ or }} for a brace of the text"),
        ("{text1} } {label}", "its braces do not match"),
        ("{text} {label}", "has {text}, but the fields are {text1}, {text2}, {label}; write one"),
        ("{text1} {} {label}", "has {}, but the fields are"),
        ("{text1!r} {label}", "has a field with ':' or '!', but the fields are"),
        ("{text1:9} {label}", "has a field with ':' or '!', but the fields are"),
        ("{text1} and {text2}", "must have {label} once; put it where the answer stands"),
        ("{text1} {label} {label}", "must have {label} once"),
        ("It is {label}", "must have {text1} or {text2}, the text of an example"),
        ("{label} {text1}", "must have text before {label}, from which its first token is predic"),
        ("  {label} {text1}", "must have text before {label}"),
    ],
)
def test_a_wrong_template_is_refused(text: str, expected: str) -> None:
    found = message("rte", text, "yes,no")
    assert found.startswith(f"--template {text}: ")
    assert expected in found


@pytest.mark.parametrize(
    ("dataset", "arguments", "expected"),
    [
        ("stsb", [], "--dataset stsb: its labels are grades, for which no words stand"),
        ("stsb", ["{text1} {label} {text2}", "a,b"], "--dataset stsb: its labels are grades"),
        ("mnli", [], "--template: must be given with --dataset mnli, for which the paper has none"),
        ("rte", [None, "yes,no"], "give a text with fields, such as '{text1} ? {label} , {text2}'"),
        ("cola", [None, "bad,good"], "such as '{text} It was {label}', and a word for each class"),
        ("race", ["{text} {label}"], "--template {text} {label}: is for classes, but each example"),
        ("rocstories", [None, "a,b"], "--labels a,b: is for classes, but each example of ROCStor"),
        ("sst2", ["{text} {label}", "good"], "--labels good: has 1 words, but SST-2 has 2 classes"),
        ("sst2", [None, "a,b,c"], "give a word for each of the classes 0, 1, in this order"),
        ("sst2", [None, "a, a"], "--labels a, a: a word is empty or is there twice"),
        ("sst2", [None, "a,"], "--labels a,: a word is empty or is there twice"),
        ("mrpc", ["{text1} {label} {text2}"], "--labels: must be given for MRPC; give a word for"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(
    dataset: str, arguments: list[str | None], expected: str
) -> None:
    assert expected in message(dataset, *arguments)


def test_words_are_those_of_the_user_the_paper_or_the_classes() -> None:
    def words(dataset: str, *arguments: Any) -> tuple[str, ...]:
        template = find_method(TASKS[dataset], *arguments).template
        assert template is not None
        return template.words

    assert words("sst2", "{text} {label}", " bad, good ") == ("bad", "good")
    assert words("sst2", "{text} {label}") == ("negative", "positive")
    assert words("mnli", "{text1} {label} {text2}") == ("contradiction", "entailment", "neutral")


# Methods


def test_the_methods_of_the_data_sets() -> None:
    stories, race = find_method(TASKS["rocstories"]), find_method(TASKS["race-middle"])
    assert (stories.layout, stories.score) == (Continuations(1), "mean")
    assert (race.layout, race.score) == (Continuations(2), "mean")
    cola = find_method(TASKS["cola"])
    assert (cola.layout, cola.score, cola.has_threshold) == (WholeText(), "mean", True)
    by_template = find_method(TASKS["cola"], "{text} Right ? {label}", "no,yes")
    assert (by_template.has_threshold, by_template.score) == (False, "sum")
    assert find_method(TASKS["rocstories"], None, None, "sum").score == "sum"
    assert "sum" not in find_method(TASKS["rocstories"]).rule


def test_the_mean_and_the_sum_prefer_different_answers() -> None:
    sums, lengths = np.array([[-3.0, -4.0, -np.inf]]), np.array([[1, 2, 0]])
    by_mean = find_method(TASKS["race"]).scores(sums, lengths)
    by_sum = find_method(TASKS["race"], None, None, "sum").scores(sums, lengths)
    assert by_mean.tolist() == [[-3.0, -2.0, -np.inf]]
    assert by_sum.tolist() == sums.tolist()
    assert (by_mean.argmax(), by_sum.argmax()) == (1, 0)


def test_a_text_of_one_token_has_the_score_0() -> None:
    method = Method(layout=WholeText(), score="mean", rule="")
    assert method.scores(np.array([[0.0]]), np.array([[0]])).tolist() == [[0.0]]


# Thresholds


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=12))
def test_the_threshold_is_the_lowest_of_the_best(rows: list[tuple[int, int]]) -> None:
    scores = np.array([score / 4 for score, _ in rows])
    labels = np.array([label for _, label in rows])
    distinct = np.unique(scores)
    candidates = [-np.inf, *((distinct[1:] + distinct[:-1]) / 2)]
    values = [matthews((scores >= each).astype(int), labels) for each in candidates]
    # Equal correlations may differ in their last bits.
    best = next(
        each for each, value in zip(candidates, values, strict=True) if value > max(values) - 1e-9
    )
    found = best_threshold(scores, labels)
    assert matthews((scores >= found).astype(int), labels) == pytest.approx(max(values), abs=1e-9)
    assert found in candidates
    if len({round(value, 9) for value in values}) == len(values):
        assert found == best


def test_equal_thresholds_give_the_lowest_and_no_threshold_accepts_all() -> None:
    # Both thresholds, 1.5 and 2.5, leave one example of each kind wrong or right alike.
    assert best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 0, 1])) == 1.5
    assert best_threshold(np.array([1.0, 2.0]), np.array([1, 0])) == -np.inf
    assert best_threshold(np.array([1.0, 2.0]), np.array([1, 1])) == -np.inf
    assert best_threshold(np.array([5.0]), np.array([0])) == -np.inf


def test_neighbouring_numbers_are_told_apart() -> None:
    low = -1.25
    high = float(np.nextafter(low, 0))
    assert best_threshold(np.array([high, low]), np.array([1, 0])) == high
