"""The results that are published for GPT-1, in percent, and where they stand.

Source: Radford, Narasimhan, Salimans and Sutskever, "Improving Language Understanding by Generative
Pre-Training" (2018), tables 2 to 5. All scores are those of test splits; the labels of GLUE's test
splits are hidden. The median of ten runs on ROCStories is from the README of the authors' program,
https://github.com/openai/finetune-transformer-lm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpt1.settings.reproduction import FULL, NO_LM, NO_PRETRAINING


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published score of full fine-tuning.

    Attributes:
        dataset: the value of ``--dataset``.
        split: the stem of the submission of the test split.
        metric: the title of the metric.
        score: in percent.
        where: the table of the paper.
        other: a sentence on the score or on another published one, without its full stop; empty
            if there is none.
    """

    dataset: str
    split: str
    metric: str
    score: float
    where: str
    other: str = ""


_OF_BOTH_LEVELS = "the published score is of a model that was trained on both levels of RACE"

FULL_RESULTS = tuple(
    Published(dataset=dataset, split=split, metric=metric, score=score, where=where, other=other)
    for dataset, split, metric, score, where, other in (
        ("mnli", "MNLI-m", "accuracy", 82.1, "table 2", ""),
        ("mnli", "MNLI-mm", "accuracy", 81.4, "table 2", ""),
        ("snli", "SNLI", "accuracy", 89.9, "table 2", ""),
        ("scitail", "SciTail", "accuracy", 88.3, "table 2", ""),
        ("qnli", "QNLI", "accuracy", 88.1, "table 2", ""),
        ("rte", "RTE", "accuracy", 56.0, "table 2", ""),
        (
            *("rocstories", "ROCStories", "accuracy", 86.5, "table 3"),
            "85.8 is the median of ten runs in the README of the authors' program",
        ),
        ("race-middle", "RACE-middle", "accuracy", 62.9, "table 3", _OF_BOTH_LEVELS),
        ("race-high", "RACE-high", "accuracy", 57.4, "table 3", _OF_BOTH_LEVELS),
        ("race", "RACE", "accuracy", 59.0, "table 3", ""),
        ("cola", "CoLA", "matthews", 45.4, "table 4", ""),
        ("sst2", "SST-2", "accuracy", 91.3, "table 4", ""),
        ("mrpc", "MRPC", "f1", 82.3, "table 4", ""),
        ("stsb", "STS-B", "pearson", 82.0, "table 4", ""),
        ("qqp", "QQP", "f1", 70.3, "table 4", ""),
    )
)
"""Full fine-tuning, tables 2 to 4.

The paper trained one model on both levels of RACE, and gives its score on each of them.
"""

ABLATION_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
"""The columns of table 5, besides the average."""

ABLATIONS: Mapping[str, tuple[float, ...]] = {
    FULL: (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
    NO_PRETRAINING: (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    NO_LM: (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
}
"""The rows of table 5 that this program runs, in the order of :data:`ABLATION_TASKS`. MNLI has one
column there; its 81.8 is the mean of the two scores in table 2, rounded."""

LSTM = (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6)
"""The row of table 5 of an LSTM with the auxiliary loss, which this project does not have."""

AVERAGES: Mapping[str, float] = {FULL: 74.7, NO_PRETRAINING: 59.9, NO_LM: 75.0, "lstm": 69.1}
"""The first column of table 5: the mean of the eight scores."""

TITLES: Mapping[str, str] = {
    FULL: "full fine-tuning",
    NO_PRETRAINING: "without pretraining",
    NO_LM: "without the auxiliary loss",
}
