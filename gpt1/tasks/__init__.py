"""Tasks: their examples, layout, target and metrics. Imports no torch."""

from gpt1.tasks.layouts import (
    Choices,
    Classification,
    Entailment,
    Layout,
    Similarity,
    StoryChoices,
)
from gpt1.tasks.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN, Metric
from gpt1.tasks.record import TaskRecord
from gpt1.tasks.shapes import SHAPES, text_names
from gpt1.tasks.targets import ChoiceIndex, Classes, Grades, Target
from gpt1.tasks.task import Example, Splits, Task

__all__ = [
    "ACCURACY",
    "F1",
    "MATTHEWS",
    "PEARSON",
    "SHAPES",
    "SPEARMAN",
    "ChoiceIndex",
    "Choices",
    "Classes",
    "Classification",
    "Entailment",
    "Example",
    "Grades",
    "Layout",
    "Metric",
    "Similarity",
    "Splits",
    "StoryChoices",
    "Target",
    "Task",
    "TaskRecord",
    "text_names",
]
