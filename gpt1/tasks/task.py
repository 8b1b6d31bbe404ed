"""A task: where its data are, how they are laid out, what is predicted and how it is scored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt1.runtime.demo import demo_dir
from gpt1.tasks.layouts import Layout
from gpt1.tasks.metrics import Metric
from gpt1.tasks.record import TaskRecord
from gpt1.tasks.targets import Target


class Example(NamedTuple):
    """One labelled or unlabelled example.

    texts: the texts of the example, in the order that the layout of the task takes.
    label: the label as the target of the task has it, an index or a grade; None if it is not known.
    source: where the example was read, such as ``train.tsv, line 7``, for messages; ends with a
        number.
    """

    texts: tuple[str, ...]
    label: float | None
    source: str


@dataclass(frozen=True)
class Splits:
    """The examples of a data set.

    Attributes:
        train: the examples to train on.
        valid: the examples whose score decides which epoch is the best.
        predicted: the splits that ``--submit`` predicts, by the stems of their submissions; the
            first one is the test split. A name that ends in ``.dev`` is that of a validation split,
            which comes first only if there is no test split. Labels may be known for all examples
            of a split or for none.
        notes: what a user should know about these files, such as how many rows were left out; a
            run prints them.
    """

    train: list[Example]
    valid: list[Example]
    predicted: Mapping[str, list[Example]]
    notes: tuple[str, ...] = ()


def describe_sources(sources: Sequence[str]) -> str:
    """Name the sources of examples, grouped by file: ``a.csv, story 7, 12, 3``."""
    numbers: dict[str, list[str]] = {}
    for source in sources:
        place, _, number = source.rpartition(" ")
        numbers.setdefault(place, []).append(number)
    return "; ".join(f"{place} {', '.join(found)}" for place, found in numbers.items())


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and how a model is trained and scored on it.

    Attributes:
        name: the value of ``--dataset``.
        title: the name in reports and messages.
        folders: names of the folder of the data set in a directory of several data sets.
        files: the names of the files in the folder of the data set; each entry is one form in which
            users have the data set, and one form must be complete. Empty if the examples are read
            already.
        submission: the stem of the submission of the test split [the title].
        remedy: where a user gets these files, for the message that one is missing.
        read: reads the splits from the folder of the data set; mistakes in a file are
            :class:`gpt1.runtime.errors.InputError`.
        layout: makes the token sequences of an example.
        target: what is predicted.
        metrics: the scores; the first one decides which epoch is the best.
        read_test: reads the test split alone, for reports; None if :attr:`read` is needed for it.
        plural: what reports call the examples.
        legend: what predictions mean, for reports.
        columns: the columns of the texts in a user's files; empty for the usual names.
        label_column: the column of the label in a user's files.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    submission: str = ""
    remedy: str
    read: Callable[[Path], Splits]
    layout: Layout
    target: Target
    metrics: tuple[Metric, ...]
    read_test: Callable[[Path], list[Example]] | None = None
    plural: str = "examples"
    legend: str = ""
    columns: tuple[str, ...] = ()
    label_column: str = "label"

    def __post_init__(self) -> None:
        if not self.submission:
            object.__setattr__(self, "submission", self.title)

    def folder(self, data_dir: str | Path) -> Path:
        """Return the folder of the data set: ``data_dir``, or one of :attr:`folders` in it."""
        folders = [Path(data_dir, name) for name in self.folders]
        return next(filter(self.is_in, folders), Path(data_dir))

    def is_in(self, folder: str | Path) -> bool:
        """Return whether a folder has at least one file of the data set."""
        return any(os.path.exists(Path(folder, name)) for form in self.files for name in form)

    def missing(self, folder: str | Path) -> list[str]:
        """Return the files that a folder lacks, of the form of which it has the largest part.

        It is the first such form; no file is missing if one form is complete.
        """
        if not self.files:
            return []
        lacks = [
            [name for name in form if not os.path.exists(Path(folder, name))] for form in self.files
        ]
        shares = [len(names) / len(form) for names, form in zip(lacks, self.files, strict=True)]
        return lacks[shares.index(min(shares))]

    def find_folder(self, data_dir: str | Path | None) -> Path:
        """Return the folder of the data set in ``data_dir``.

        If that is None, it is the folder in ``data/``, or the bundled demo while ``data/`` holds no
        file of the data set and the demo has them all, as in training.
        """
        if data_dir is not None:
            return self.folder(data_dir)
        data, demo = self.folder("data"), demo_dir("data")
        is_own = self.is_in(data) or not self.files or self.missing(demo)
        return data if is_own else demo

    def problem(self, folder: str | Path) -> str | None:
        """Return a message that names the files that a folder lacks; None if it has them all."""
        missing = self.missing(folder)
        names = " and ".join(f"'{name}'" for name in missing)
        remedy = f"{self.remedy}, or name their directory with --data_dir"
        return f"{folder}/ has no {names}: {remedy}" if missing else None

    def record(self, n_ctx: int) -> TaskRecord:
        """Return what a model keeps that was trained on this task.

        Args:
            n_ctx: the largest number of tokens in a sequence, as in training.
        """
        return TaskRecord(
            layout=self.layout,
            target=self.target,
            n_ctx=n_ctx,
            columns=self.columns,
            label_column=self.label_column,
            metrics=tuple(metric.title for metric in self.metrics),
            positive=self.metrics[0].positive,
        )
