"""The record of its task that a fine-tuned model keeps, so that it predicts without flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpt1.runtime.errors import InputError
from gpt1.tasks.layouts import (
    Choices,
    Classification,
    Entailment,
    Layout,
    Similarity,
    StoryChoices,
)
from gpt1.tasks.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN, Metric, f1
from gpt1.tasks.targets import ChoiceIndex, Classes, Grades, Target

_LAYOUTS: dict[str, type] = {
    each.__name__: each for each in (Choices, Classification, Entailment, Similarity, StoryChoices)
}
_TARGETS: dict[str, type] = {each.__name__: each for each in (ChoiceIndex, Classes, Grades)}
_METRICS = {each.title: each for each in (ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN)}


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """How the examples of a task become sequences, and its logits predictions.

    Attributes:
        layout: the layout of training.
        target: what is predicted, with the names of classes or answers, or the ends of the scale.
        n_ctx: the ``--n_ctx`` of training, by which long texts are cut.
        columns: the columns of the texts in the files of training; empty for the names of
            :func:`gpt1.tasks.shapes.text_names`.
        label_column: the column of the label.
        metrics: the titles of the metrics, the first one first.
        positive: the index of the class whose F1 is computed.
    """

    layout: Layout
    target: Target
    n_ctx: int
    columns: tuple[str, ...] = ()
    label_column: str = "label"
    metrics: tuple[str, ...] = ("accuracy",)
    positive: int = 1

    def scores(self) -> tuple[Metric, ...]:
        """Return the metrics."""
        return tuple(
            f1(self.positive) if title == F1.title else _METRICS[title] for title in self.metrics
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        for part in ("layout", "target"):
            own[part] = {"kind": type(own[part]).__name__, **asdict(own[part])}
        return own


def read_record(value: object, where: str) -> TaskRecord:
    """Return the record in a JSON object that :meth:`TaskRecord.as_json` made.

    Args:
        value: the value of the entry in the file.
        where: the file and the entry, for the message.

    Raises:
        InputError: the value is not such an object.
    """
    try:
        return _record(value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: expected the record of a task, but {_reason(error)}; copy the file again "
            "from where the model was trained."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r:.40} is missing or unknown"
    return f"{error!s:.80}"


def _record(value: object) -> TaskRecord:
    values = _mapping(value, "it")
    n_ctx, positive = values["n_ctx"], values["positive"]
    if type(n_ctx) is not int or not 0 < n_ctx < 2**31 or type(positive) is not int:
        raise ValueError("n_ctx and positive are not whole numbers")
    metrics = _texts(values["metrics"], "metrics")
    if not metrics or not set(metrics) <= _METRICS.keys():
        raise ValueError(f"metrics are not among {', '.join(_METRICS)}")
    label_column = values["label_column"]
    if not isinstance(label_column, str):
        raise TypeError("label_column is not a text")
    return TaskRecord(
        layout=_part(values["layout"], "layout", _LAYOUTS),
        target=_part(values["target"], "target", _TARGETS),
        n_ctx=n_ctx,
        columns=_texts(values["columns"], "columns"),
        label_column=label_column,
        metrics=metrics,
        positive=positive,
    )


def _part(value: object, name: str, kinds: Mapping[str, type]) -> Any:
    """Make a layout or a target of its values."""
    values = dict(_mapping(value, name))
    kind = kinds[values.pop("kind")]
    if kind is ChoiceIndex or kind is Classes:
        values["names"] = _texts(values["names"], "names")
    if kind is Classes and len(values["names"]) < 2:
        raise ValueError("there are fewer than two classes")
    if kind is Choices and type(values["has_question"]) is not bool:
        raise TypeError("has_question is not true or false")
    if kind is Grades:
        low, high = values["lowest"], values["highest"]
        if {type(low), type(high)} - {int, float} or not -math.inf < low < high < math.inf:
            raise ValueError("lowest and highest are not the ends of a scale")
    return kind(**values)


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is not an object")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} is not a list of texts")
    return tuple(value)
