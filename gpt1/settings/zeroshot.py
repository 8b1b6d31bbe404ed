"""The settings of zero-shot prediction, and the command that reads them."""

from __future__ import annotations

from dataclasses import dataclass

from gpt1.settings.command import Command
from gpt1.settings.fields import as_in, at_least, setting
from gpt1.settings.groups import (
    DATASETS,
    DeviceSettings,
    LoopSettings,
    OpenSettings,
    OwnSettings,
    SourceSettings,
)


@dataclass(frozen=True, kw_only=True)
class ZeroshotSettings:
    """Data set and scores."""

    dataset: str = as_in(
        SourceSettings,
        "dataset",
        help=f"what to predict: {', '.join(DATASETS)} [rocstories]",
    )
    data_dir: str | None = as_in(SourceSettings, "data_dir")
    template: str | None = setting(
        None,
        "for classes: text with {text}, or with {text1} and {text2}, and with {label} "
        "[sst2: {text} very {label}]",
    )
    labels: str | None = setting(
        None,
        "word for each class, in the order of the classes, with commas between them [sst2: "
        "negative,positive; else the names of the classes]",
        metavar="WORDS",
    )
    score: str | None = setting(
        None,
        "of an answer: mean or sum of its tokens' log-probabilities [mean; sum with a template]",
        choices=("mean", "sum"),
    )
    labelled_only: bool = setting(False, "leave splits without labels out")
    json: str | None = setting(
        None, "where metrics, predictions and scores go as one JSON object", metavar="FILE"
    )
    n_batch: int = setting(LoopSettings().batch_size, "examples at a time", at_least(1))
    precision: str = as_in(DeviceSettings, "precision")
    cache_dir: str | None = as_in(SourceSettings, "cache_dir")


ZEROSHOT = Command(
    name="zeroshot",
    summary="Predict with a pretrained model that was never fine-tuned (paper, section 5).",
    groups=(ZeroshotSettings, OwnSettings, OpenSettings),
    examples="""\
  # which ending does the bundled demo's model find likelier?
  gpt1 zeroshot --dataset rocstories --data_dir data/demo --model_dir model/demo

  # the paper's template for SST-2 is the default; another one:
  gpt1 zeroshot --dataset sst2 --data_dir glue --model_dir model \\
      --template "{text} It was {label} ." --labels bad,good

  # a file of your own, with the columns text and label (no or yes)
  gpt1 zeroshot --dataset own --shape classification --test_file mails.csv \\
      --template "{text} Is this spam ? {label}" --labels no,yes""",
)
