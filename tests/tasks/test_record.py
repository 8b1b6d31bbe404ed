"""The record of a task is the same after it was written and read, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt1.datasets import TASKS
from gpt1.runtime.errors import InputError
from gpt1.tasks import (
    SHAPES,
    ChoiceIndex,
    Choices,
    Classes,
    Grades,
    StoryChoices,
    TaskRecord,
    text_names,
)
from gpt1.tasks.record import read_record
from gpt1.tasks.shapes import are_texts, first_answer, is_blank

RECORDS = [
    TaskRecord(layout=SHAPES["classification"], target=Classes(("a", "é\n")), n_ctx=77),
    TaskRecord(
        layout=SHAPES["entailment"],
        target=Classes(("no", "yes", "so")),
        n_ctx=512,
        columns=("one", "two"),
        label_column="y",
        metrics=("f1", "accuracy"),
        positive=2,
    ),
    TaskRecord(
        layout=SHAPES["similarity"],
        target=Grades(-1, 2.5),
        n_ctx=6,
        metrics=("pearson", "spearman"),
    ),
    TaskRecord(layout=Choices(has_question=True), target=ChoiceIndex(("A", "B")), n_ctx=8),
    TaskRecord(layout=StoryChoices(), target=ChoiceIndex(), n_ctx=512),
    *(task.record(99) for task in TASKS.values()),
]


def written(record: TaskRecord) -> Any:
    return json.loads(json.dumps(record.as_json()))


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_as_it_was_written(record: TaskRecord) -> None:
    assert read_record(written(record), "x") == record


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["n_ctx"], 0, "n_ctx and positive are not whole numbers"),
        (["n_ctx"], True, "n_ctx and positive are not whole numbers"),
        (["positive"], "1", "n_ctx and positive are not whole numbers"),
        (["columns"], "text", "columns is not a list of texts"),
        (["columns"], [1], "columns is not a list of texts"),
        (["label_column"], None, "label_column is not a text"),
        (["metrics"], ["auc"], "metrics are not among accuracy, f1"),
        (["metrics"], [], "metrics are not among accuracy, f1"),
        (["layout"], "Choices", "layout is not an object"),
        (["layout", "kind"], "Regression", "'Regression' is missing or unknown"),
        (["layout", "more"], 1, "unexpected keyword argument 'more'"),
        (["target", "names"], ["a"], "there are fewer than two classes"),
        (["target", "names"], [1, 2], "names is not a list of texts"),
        (["target", "kind"], "Grades", "'lowest' is missing or unknown"),
    ],
)
def test_a_damaged_record(path: list[str], value: Any, complaint: str) -> None:
    values = written(RECORDS[1])
    inner = values if len(path) == 1 else values[path[0]]
    inner[path[-1]] = value
    with pytest.raises(InputError) as caught:
        read_record(values, "a.json: gpt1_task")
    assert str(caught.value).startswith("a.json: gpt1_task: expected the record of a task, but ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("name", ["layout", "target", "n_ctx", "columns", "metrics", "positive"])
def test_a_record_that_lacks_an_entry(name: str) -> None:
    values = written(RECORDS[1])
    del values[name]
    with pytest.raises(InputError, match=f"{name!r} is missing or unknown"):
        read_record(values, "x")


@pytest.mark.parametrize("ends", [(2, 1), (1, 1), ("1", 2), (float("nan"), 1), (0, float("inf"))])
def test_a_scale_without_length(ends: tuple[Any, Any]) -> None:
    values = written(RECORDS[2])
    values["target"]["lowest"], values["target"]["highest"] = ends
    with pytest.raises(InputError, match="lowest and highest are not the ends of a scale"):
        read_record(values, "x")


def test_names_of_texts() -> None:
    assert text_names(Choices(), 4) == ("context", "answer1", "answer2", "answer3")
    assert text_names(Choices(has_question=True)) == ("context", "question", "answer1", "answer2")
    assert first_answer(Choices(has_question=True)) == 2
    assert are_texts(Choices(), ["a", "b", "c", "d"])
    assert not are_texts(Choices(), ["a", "b"])
    assert not are_texts(StoryChoices(), ["a", "b", "c", "d"])
    assert not are_texts(SHAPES["entailment"], "ab")
    assert not are_texts(SHAPES["entailment"], ["a", 1])


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\x07", "\ufeff", "\x1b[2J", "\u3000"])
def test_texts_without_a_visible_character(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + ".")
