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

    texts: its texts, in the order that the layout of its task takes.
    label: what the target of its task makes of the label in the file; None where it is not known.
    source: where it was read, such as ``train.tsv, line 7``, for messages; ends with a number.
    """

    texts: tuple[str, ...]
    label: int | None
    source: str


class Splits(NamedTuple):
    """The examples of a data set: those to train on, to validate on and to predict."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]


def describe_sources(examples: Sequence[Example]) -> str:
    """Name the sources of examples, those of one file together: ``a.csv, story 7, 12, 3``."""
    numbers: dict[str, list[str]] = {}
    for example in examples:
        place, _, number = example.source.rpartition(" ")
        numbers.setdefault(place, []).append(number)
    return "; ".join(f"{place} {', '.join(found)}" for place, found in numbers.items())


@dataclass(frozen=True)
class Submission:
    """How predictions are handed in: a file name, its header, one line per example."""

    file: str
    header: str = "index\tprediction"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set and what is to be learnt from it.

    Attributes:
        name: as ``--dataset`` takes it.
        title: as reports and messages call it.
        files: names of the files in its directory.
        remedy: where a user gets them, for the message that one is missing.
        read: reads the splits from a directory; mistakes in a file are
            :class:`gpt1.runtime.errors.InputError`.
        layout: makes token sequences of an example.
        target: what is predicted.
        metrics: scores; the first one picks the best epoch.
        submission: how predictions are handed in.
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
