"""Summarize the seeds of each experiment: median, range and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from gpt1.datasets import TASKS
from gpt1.reports.statistics import median_interval
from gpt1.reproduction.found import DEMO
from gpt1.reproduction.outcomes import Outcome, Score
from gpt1.runtime.errors import InputError
from gpt1.settings.reproduction import FULL, LAYERS, NO_PRETRAINING, ZEROSHOT


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of all seeds of one experiment on one split by one metric, in percent.

    Attributes:
        configuration, settings, data, what, dataset, n_transfer, n_updates, series: as in
            :class:`gpt1.reproduction.outcomes.Outcome`.
        n_layer: the number of layers of the model, if it is known.
        split: the stem of the submission of the split.
        is_test: whether it is a test split.
        metric: the title of the metric.
        n: number of examples of the split.
        scores: by their seeds; a zero-shot score, which has no seed, has the seed 0.
        low, high: the 95 % interval from the choice of the examples, for the run whose score is
            closest to the median; None if it is not known.
        seeds_low, seeds_high: the 95 % interval of the median over seeds; None for fewer than six.
        train: the median score of the best epochs on training examples, by the first metric.
    """

    configuration: str
    settings: Mapping[str, Any]
    data: str
    what: str
    dataset: str
    n_transfer: int | None
    n_updates: int | None
    n_layer: int | None
    series: str
    split: str
    is_test: bool
    metric: str
    n: int
    scores: Mapping[int, float]
    low: float | None
    high: float | None
    seeds_low: float | None
    seeds_high: float | None
    train: float | None

    @property
    def median(self) -> float:
        """The median of the scores."""
        return median(self.scores.values())

    @property
    def transferred(self) -> int:
        """The layers that were transferred: -1 for nothing, n_layer for full fine-tuning."""
        if self.what == NO_PRETRAINING:
            return -1
        return (self.n_layer or 0) if self.n_transfer is None else self.n_transfer

    @property
    def lowest(self) -> float:
        """The lowest score."""
        return min(self.scores.values())

    @property
    def highest(self) -> float:
        """The highest score."""
        return max(self.scores.values())


def summarize(outcomes: Iterable[Outcome]) -> list[Summary]:
    """Summarize the finished runs: one entry per experiment, split and metric.

    Raises:
        InputError: there are two results of one run.
    """
    groups: dict[Any, list[tuple[Outcome, Score]]] = {}
    for outcome in outcomes:
        # Zero-shot prediction with each kept model of a series has a configuration of its own.
        shared = outcome.series or outcome.configuration
        run = (outcome.what, outcome.dataset, outcome.n_transfer, outcome.n_updates)
        for score in outcome.scores:
            key = (shared, outcome.data, *run, score.split, score.metric)
            groups.setdefault(key, []).append((outcome, score))
    return [_summary(group) for group in groups.values()]


def _summary(group: list[tuple[Outcome, Score]]) -> Summary:
    """Summarize the runs that differ in their seeds alone.

    Raises:
        InputError: there are two results of one seed.
    """
    group = sorted(group, key=lambda pair: pair[0].seed or 0)
    for (one, _), (other, _) in pairwise(group):
        if one.seed == other.seed:
            raise InputError(
                f"{one.name}.json and {other.name}.json in the directory of results are of the "
                "same seed of the same experiment; remove one of them"
            )
    (outcome, score), scores = group[0], [score for _, score in group]
    values = [each.score for each in scores]
    middle = median(values)
    typical = min(scores, key=lambda each: abs(each.score - middle))
    of_seeds = median_interval(values) or (None, None)
    n_layer = outcome.facts.get("n_layer")
    train = [each.train_score for each, _ in group if each.train_score is not None]
    return Summary(
        configuration=outcome.configuration,
        settings=outcome.settings,
        data=outcome.data,
        what=outcome.what,
        dataset=outcome.dataset,
        n_transfer=outcome.n_transfer,
        n_updates=outcome.n_updates,
        n_layer=None if n_layer is None else int(n_layer),
        series=outcome.series,
        split=score.split,
        is_test=score.is_test,
        metric=score.metric,
        n=typical.n,
        scores={each.seed or 0: value for (each, _), value in zip(group, values, strict=True)},
        low=typical.low,
        high=typical.high,
        seeds_low=of_seeds[0],
        seeds_high=of_seeds[1],
        train=median(train) if train else None,
    )


def reported(summaries: Iterable[Summary]) -> list[Summary]:
    """Return the summaries of test splits, and of validation splits where there are no others."""
    summaries = list(summaries)
    with_test = {_experiment(each) for each in summaries if each.is_test}
    return [each for each in summaries if each.is_test == (_experiment(each) in with_test)]


def data_marks(summaries: Iterable[Summary]) -> dict[str, str]:
    """Return for the digest of each version of a data set what a title says of it.

    It is the digest in brackets where there are several versions of the data set, else nothing. The
    bundled demo is always named.
    """
    versions: dict[str, set[str]] = {}
    for each in summaries:
        versions.setdefault(each.dataset, set()).add(each.data)
    return {
        data: " (bundled demo)" * data.startswith(DEMO) or f" ({data})" * (len(found) > 1)
        for found in versions.values()
        for data in found
    }


def _experiment(summary: Summary) -> tuple[Any, ...]:
    run = (summary.what, summary.dataset, summary.n_transfer, summary.n_updates)
    return (summary.series or summary.configuration, summary.data, *run)


def layer_points(summaries: Iterable[Summary]) -> dict[tuple[str, str, str], list[Summary]]:
    """Return the scores against the layers transferred, by configuration, data and split.

    The experiment ``layers`` has all points but the ends: the run without pretraining has -1, since
    not even embeddings are transferred, and full fine-tuning transfers all layers.
    """
    points: dict[tuple[str, str, str], list[Summary]] = {}
    for each in summaries:
        is_first = each.metric == TASKS[each.dataset].metrics[0].title
        if is_first and each.what in (LAYERS, FULL, NO_PRETRAINING):
            points.setdefault((each.configuration, each.data, each.split), []).append(each)
    return {
        key: sorted(found, key=lambda each: each.transferred)
        for key, found in points.items()
        if any(each.what == LAYERS for each in found)
    }


def updates_points(
    summaries: Iterable[Summary],
) -> dict[tuple[str, str, str, str], list[Summary]]:
    """Return the zero-shot scores against updates, by series, data, split and metric."""
    points: dict[tuple[str, str, str, str], list[Summary]] = {}
    for each in summaries:
        is_first = each.metric == TASKS[each.dataset].metrics[0].title
        if is_first and each.what == ZEROSHOT:
            key = (each.series, each.data, each.split, each.metric)
            points.setdefault(key, []).append(each)
    return {
        key: sorted(found, key=lambda each: each.n_updates or 0) for key, found in points.items()
    }
