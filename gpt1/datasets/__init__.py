"""Data sets: one small file per data set, and the readers that they share."""

from gpt1.datasets.story_cloze import ROCSTORIES, rocstories
from gpt1.tasks import Task

TASKS: dict[str, Task] = {task.name: task for task in (ROCSTORIES,)}
"""All tasks by their names. A new data set is listed here once."""

__all__ = ["TASKS", "rocstories"]
