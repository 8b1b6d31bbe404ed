"""Data sets: one small file per data set, and the readers that they share."""

from gpt1.datasets.cola import COLA
from gpt1.datasets.mnli import MNLI
from gpt1.datasets.mrpc import MRPC
from gpt1.datasets.own import Examples, own_task
from gpt1.datasets.qnli import QNLI
from gpt1.datasets.qqp import QQP
from gpt1.datasets.race import RACE, RACE_HIGH, RACE_MIDDLE
from gpt1.datasets.rte import RTE
from gpt1.datasets.scitail import SCITAIL
from gpt1.datasets.snli import SNLI
from gpt1.datasets.sst2 import SST2
from gpt1.datasets.story_cloze import ROCSTORIES, rocstories
from gpt1.datasets.stsb import STSB
from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import OWN, OwnSettings
from gpt1.settings.training import Settings
from gpt1.tasks import Task

_ALL = (
    *(ROCSTORIES, SST2, COLA, MRPC, QQP, STSB, MNLI, SNLI, QNLI, RTE, SCITAIL),
    *(RACE, RACE_MIDDLE, RACE_HIGH),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""All tasks by their names. A new data set is listed here once."""


def find_task(settings: Settings, examples: Examples | None = None) -> Task:
    """Return the task that the settings name; a user's own data are read and checked.

    Args:
        settings: the settings of a run.
        examples: the user's examples, if they are not in files.

    Raises:
        InputError: a setting or an example is wrong.
    """
    if settings.dataset == OWN:
        return own_task(settings, examples)
    names = [item.name for item in settings_of(OwnSettings)]
    given = [name for name in names if getattr(settings, name) is not None]
    if given:
        shown = [f"--{name}: is for --dataset {OWN}; give that, or leave it out" for name in given]
        raise InputError(join_problems(shown))
    return TASKS[settings.dataset]


__all__ = ["TASKS", "Examples", "find_task", "rocstories"]
