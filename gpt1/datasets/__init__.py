"""Data sets: one small file per data set, and the readers that they share."""

from gpt1.datasets.cola import COLA
from gpt1.datasets.mnli import MNLI
from gpt1.datasets.mrpc import MRPC
from gpt1.datasets.qnli import QNLI
from gpt1.datasets.qqp import QQP
from gpt1.datasets.race import RACE, RACE_HIGH, RACE_MIDDLE
from gpt1.datasets.rte import RTE
from gpt1.datasets.scitail import SCITAIL
from gpt1.datasets.snli import SNLI
from gpt1.datasets.sst2 import SST2
from gpt1.datasets.story_cloze import ROCSTORIES, rocstories
from gpt1.datasets.stsb import STSB
from gpt1.tasks import Task

_ALL = (
    *(ROCSTORIES, SST2, COLA, MRPC, QQP, STSB, MNLI, SNLI, QNLI, RTE, SCITAIL),
    *(RACE, RACE_MIDDLE, RACE_HIGH),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""All tasks by their names. A new data set is listed here once."""

__all__ = ["TASKS", "rocstories"]
