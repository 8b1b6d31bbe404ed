"""The page on data sets against the tasks in the code."""

from __future__ import annotations

import re
from pathlib import Path

from gpt1.datasets import TASKS
from gpt1.tasks import Choices, Classes, Classification, Entailment, Similarity, StoryChoices

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
SHAPES = {
    Classification: "classification",
    Entailment: "entailment",
    Similarity: "similarity",
    Choices: "choice",
    StoryChoices: "choice",
}


def test_the_table_has_every_task_with_its_shape_classes_and_metrics() -> None:
    expected = []
    for task in TASKS.values():
        target = task.target
        classes = " ".join(target.names) if isinstance(target, Classes) else ""
        metrics = ", ".join(metric.title for metric in task.metrics)
        cells = (f"`{task.name}`", task.title, SHAPES[type(task.layout)], classes, metrics)
        expected.append("| " + " | ".join(cells).replace("|  |", "| |") + " |")
    table = PAGE.split("|---|---|---|---|---|\n", 1)[1].split("\n\n", 1)[0].splitlines()
    assert table == expected


def test_the_page_says_where_each_data_set_comes_from() -> None:
    for task in TASKS.values():
        address = re.search(r"https://[^\s)]+", task.remedy)
        assert address, task.name
        assert f"({address[0]})" in PAGE, task.name


def test_the_page_names_a_whole_form_of_every_data_set() -> None:
    section = PAGE.split("## How to get each")[1].split("## What a run predicts")[0]
    for task in TASKS.values():
        if task.name == "rocstories":  # named in data/README.md
            continue
        for name in task.files[0]:
            for part in name.removesuffix(".jsonl").split("/"):
                assert part in section, (task.name, part)
