"""What the data sets of the GLUE benchmark share: ``train.tsv``, ``dev.tsv`` and ``test.tsv``.

The labels of GLUE's test splits are hidden. Submissions to https://gluebenchmark.com have the names
that are the titles here.
"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.labelled import make_splits, read_examples
from gpt1.datasets.tables import tsv_rows
from gpt1.tasks import Classes, Example, Grades, Layout, Metric, Splits, Task

FILES = ("train.tsv", "dev.tsv", "test.tsv")


def glue_task(
    name: str,
    title: str,
    *,
    texts: tuple[str, ...],
    label: str,
    layout: Layout,
    target: Classes | Grades,
    metrics: tuple[Metric, ...],
) -> Task:
    """Make the task of a data set whose three files have headers with the same column names.

    Args:
        name: the value of ``--dataset``; also the name of a folder.
        title: GLUE's name of the data set, of its folder and of its submission.
        texts: the columns of the texts.
        label: the column of the label, which the test file lacks.
        layout, target, metrics: those of :class:`gpt1.tasks.Task`.
    """

    def read(folder: Path) -> Splits:
        train, valid = (read_labelled(folder / file, texts, label, target) for file in FILES[:2])
        test = read_unlabelled(folder / FILES[2], texts)
        return make_splits(train, valid, {title: test, f"{title}.dev": valid}, target)

    return Task(
        name=name,
        title=title,
        folders=(title, name),
        files=(FILES,),
        remedy=remedy(title),
        read=read,
        layout=layout,
        target=target,
        metrics=metrics,
    )


def remedy(title: str) -> str:
    """Return where a user gets a data set of GLUE."""
    return (
        f"get {title} at https://gluebenchmark.com/tasks and put its files there, or its folder "
        f"{title}"
    )


def read_labelled(
    path: Path, texts: tuple[str, ...], label: str, target: Classes | Grades
) -> list[Example]:
    """Read the examples of a tab-separated file with a header."""
    return read_examples(tsv_rows(path, (*texts, label)), target)


def read_unlabelled(path: Path, texts: tuple[str, ...]) -> list[Example]:
    """Read the examples of a tab-separated file with a header, without their labels."""
    return read_examples(tsv_rows(path, texts), None)
