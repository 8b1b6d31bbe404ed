"""STS-B: how similar are two sentences, from 0 to 5? (Cer et al. 2017)

Users have the files of GLUE, or those of the data set's authors, which are tab-separated in spite
of their names.
"""

from __future__ import annotations

from pathlib import Path

from gpt1.datasets.glue import FILES, read_labelled, read_unlabelled, remedy
from gpt1.datasets.labelled import complete_form, make_splits, read_examples
from gpt1.datasets.tables import tsv_rows
from gpt1.tasks import PEARSON, SPEARMAN, Example, Grades, Similarity, Splits, Task

_TEXTS = ("sentence1", "sentence2")
_TARGET = Grades()

_PUBLISHED = ("sts-train.csv", "sts-dev.csv")
_PUBLISHED_TEST = "sts-test.csv"
_FIELDS = ("genre", "filename", "year", "old_index", "score", *_TEXTS, "source1", "source2")
"""The columns of the published files, which have no header; some rows lack the last two."""


def _read(folder: Path) -> Splits:
    if complete_form(folder, (FILES, _PUBLISHED)) == FILES:
        train, valid = (
            read_labelled(folder / name, _TEXTS, "score", _TARGET) for name in FILES[:2]
        )
        predicted = {"STS-B": read_unlabelled(folder / FILES[2], _TEXTS)}
    else:
        train, valid = (_published(folder / name) for name in _PUBLISHED)
        test = folder / _PUBLISHED_TEST
        predicted = {"STS-B": _published(test)} if test.exists() else {}
    return make_splits(train, valid, {**predicted, "STS-B.dev": valid}, _TARGET)


def _published(path: Path) -> list[Example]:
    rows = tsv_rows(path, (*_TEXTS, "score"), names=_FIELDS, least=7)
    return read_examples(rows, _TARGET)


STSB = Task(
    name="stsb",
    title="STS-B",
    folders=("STS-B", "stsb", "stsbenchmark"),
    files=(FILES, _PUBLISHED),
    remedy=remedy("STS-B"),
    read=_read,
    layout=Similarity(),
    target=_TARGET,
    metrics=(PEARSON, SPEARMAN),
)
