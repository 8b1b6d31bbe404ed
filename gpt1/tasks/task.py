"""A task: where its data are, how they are laid out, what is predicted and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt1.tasks.layouts import Layout
from gpt1.tasks.metrics import Metric
from gpt1.tasks.targets import Target


class Example(NamedTuple):
    """One labelled or unlabelled example.

    texts: the texts of the example, in the order that the layout of the task takes.
    label: the label as the target of the task has it; None if it is not known.
    source: where the example was read, such as ``train.tsv, line 7``, for messages; ends with a
        number.
    """

    texts: tuple[str, ...]
    label: int | None
    source: str


class Splits(NamedTuple):
    """The examples of a data set, in three splits: training, validation and test."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]


def describe_sources(examples: Sequence[Example]) -> str:
    """Name the sources of examples, grouped by file: ``a.csv, story 7, 12, 3``."""
    numbers: dict[str, list[str]] = {}
    for example in examples:
        place, _, number = example.source.rpartition(" ")
        numbers.setdefault(place, []).append(number)
    return "; ".join(f"{place} {', '.join(found)}" for place, found in numbers.items())


@dataclass(frozen=True)
class Submission:
    """The file that predictions are written to: its name and its header line."""

    file: str
    header: str = "index\tprediction"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and how a model is trained and scored on it.

    Attributes:
        name: the value of ``--dataset``.
        title: the name in reports and messages.
        files: names of the files in the directory of the data set.
        remedy: where a user gets these files, for the message that one is missing.
        read: reads the splits from a directory; mistakes in a file are
            :class:`gpt1.runtime.errors.InputError`.
        layout: makes the token sequences of an example.
        target: what is predicted.
        metrics: the scores; the first one decides which epoch is the best.
        submission: the file that predictions are written to.
    """

    name: str
    title: str
    files: tuple[str, ...]
    remedy: str
    read: Callable[[Path], Splits]
    layout: Layout
    target: Target
    metrics: tuple[Metric, ...]
    submission: Submission
