"""Small tasks with splits that are made in memory: classes, choices and grades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt1.tasks import (
    ACCURACY,
    MATTHEWS,
    PEARSON,
    SPEARMAN,
    ChoiceIndex,
    Choices,
    Classes,
    Classification,
    Example,
    Grades,
    Similarity,
    Splits,
    Task,
)

NAMES = ("anna", "ben", "carl", "dora")
THINGS = ("kite", "boat", "drum", "cake")


def examples(file: str, labels: Sequence[float | None], n_texts: int = 1) -> list[Example]:
    """Return an example for each label, with words of the vocabulary of :mod:`tiny`."""
    found = []
    for i, label in enumerate(labels):
        number = int(label or 0)
        texts = [f"{NAMES[i % 4]} lost a {THINGS[(number + j) % 4]} ." for j in range(n_texts)]
        found.append(Example(tuple(texts), label, f"{file}, line {i + 1}"))
    return found


def make_task(name: str, title: str, labels: Sequence[float], n_texts: int, **parts: Any) -> Task:
    """Return a task whose test labels are hidden; validation repeats the labels of training."""
    valid = examples("dev.tsv", labels, n_texts)
    splits = Splits(
        train=examples("train.tsv", labels, n_texts),
        valid=valid,
        predicted={title: examples("test.tsv", [None] * 5, n_texts), f"{title}.dev": valid},
    )
    return Task(
        name=name,
        title=title,
        folders=(name,),
        files=((".",),),  # nothing is read
        remedy="make it",
        read=lambda folder: splits,
        **parts,
    )


COLOURS = make_task(
    *("colours", "Colours", [0, 1, 2, 1] * 4, 1),
    layout=Classification(),
    target=Classes(("blue", "green", "red")),
    metrics=(MATTHEWS, ACCURACY),
)
LETTERS = make_task(
    *("letters", "Letters", [0, 1, 2, 3] * 4, 5),
    layout=Choices(),
    target=ChoiceIndex(("A", "B", "C", "D")),
    metrics=(ACCURACY,),
)
LIKENESS = make_task(
    *("likeness", "Likeness", [0.0, 1.5, 3.0, 5.0] * 4, 2),
    layout=Similarity(),
    target=Grades(),
    metrics=(PEARSON, SPEARMAN),
)
