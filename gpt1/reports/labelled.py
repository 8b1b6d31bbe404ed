"""Find the task and the split that a submission is of, and the right answers of that split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1.datasets import TASKS
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.results.submissions import digest, read_record, record_path
from gpt1.runtime.errors import InputError
from gpt1.runtime.json_files import shown
from gpt1.tasks import Example, Task
from gpt1.tasks.targets import Labels


@dataclass(frozen=True, kw_only=True)
class LabelledSplit:
    """A split whose labels are known.

    Attributes:
        task: the task.
        stem: the stem of the split's submission; that of a validation split ends in ``.dev``.
        labels: the right answers [n], at least one.
        source: where the labels are from, for messages.
        examples: the n examples; needed only to show mistakes.
    """

    task: Task
    stem: str
    labels: Labels
    source: str
    examples: Sequence[Example] = ()

    @property
    def title(self) -> str:
        """What a report calls the split."""
        return self.stem if self.stem.endswith(".dev") else "Test"


def find_task(submission: str | Path, dataset: str | None = None) -> Task:
    """Return the task of a submission: as its record says, else the named one, else ROCStories.

    Args:
        submission: the file.
        dataset: the value of ``--dataset`` if the user gave one.

    Raises:
        InputError: the submission cannot be read, its record is malformed or is of another data
            set, or no reader for the data set is known.
    """
    digest(submission)  # A file that is not there is reported as such.
    record, where = read_record(submission), record_path(submission)
    if record is not None and dataset not in (None, record.dataset):
        raise InputError(
            f"--dataset {dataset}: {submission} is of the data set {shown(record.dataset)}, says "
            f"{where}; leave the flag out."
        )
    name = dataset or (ROCSTORIES.name if record is None else record.dataset)
    if name not in TASKS:
        raise InputError(
            f"{submission}: its data set is {shown(name)}, but one of {', '.join(TASKS)} was "
            "expected; for data of your own, give --analysis to the run."
        )
    return TASKS[name]


def read_labelled(task: Task, folder: Path, submission: str | Path) -> LabelledSplit:
    """Read the split that a submission is of: as its record says, else as the file is named.

    If neither names a split of the task, it is the first one with labels.

    Args:
        task: the task of the submission.
        folder: the folder of the data set.
        submission: the file.

    Raises:
        InputError: a file is missing or malformed, or the labels of the split are hidden.
    """
    record = read_record(submission)
    stem = Path(submission).stem if record is None else record.split
    predicted = _read_predicted(task, folder, stem)
    labelled = first_labelled(task, predicted)
    if stem not in predicted:
        return labelled
    if predicted[stem][0].label is not None:
        return labelled_split(task, stem, predicted[stem])
    own = f"{stem}.dev" if f"{stem}.dev" in predicted else labelled.stem
    raise InputError(
        f"{submission}: the labels of the split {stem} are hidden, {folder} has none; name the "
        f"submission of a split with labels, {Path(submission).with_name(f'{own}.tsv')}."
    )


def first_labelled(task: Task, predicted: Mapping[str, Sequence[Example]]) -> LabelledSplit:
    """Return the test split, or the first validation split if the labels of test splits are hidden.

    Args:
        task: the task.
        predicted: the splits that a run of the task predicts, by the stems of their submissions.
    """
    return next(
        labelled_split(task, stem, examples)
        for stem, examples in predicted.items()
        if examples[0].label is not None
    )


def labelled_split(task: Task, stem: str, examples: Sequence[Example]) -> LabelledSplit:
    """Return examples with labels as a split."""
    labels = np.array([example.label for example in examples])
    place = examples[0].source.rpartition(",")[0]
    return LabelledSplit(task=task, stem=stem, labels=labels, source=place, examples=examples)


def _read_predicted(task: Task, folder: Path, stem: str) -> dict[str, list[Example]]:
    """Read the splits that a run predicts, or the test split alone where that is possible."""
    if task.read_test is not None and not stem.endswith(".dev"):
        return {task.submission: task.read_test(folder)}
    if problem := task.problem(folder):
        raise InputError(problem)
    return dict(task.read(folder).predicted)
