"""Tasks: their examples, layout, target, metrics and submission. Imports no torch."""

from gpt1.tasks.layouts import Choices, Layout
from gpt1.tasks.metrics import ACCURACY, Metric
from gpt1.tasks.targets import ChoiceIndex, Target
from gpt1.tasks.task import Example, Splits, Submission, Task

__all__ = [
    "ACCURACY",
    "ChoiceIndex",
    "Choices",
    "Example",
    "Layout",
    "Metric",
    "Splits",
    "Submission",
    "Target",
    "Task",
]
