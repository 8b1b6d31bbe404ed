"""Measure how well the probabilities of a model's predictions agree with how often they are right.

A submission holds the predicted classes or answers; the file of probabilities beside it holds the
probability of each. A model is calibrated if, of all predictions that it makes with probability p,
a share p is right. The original writes no probabilities, and has nothing that corresponds to this
module.

The figures do not come from scikit-learn. Its ``calibration_curve`` has bins over 0 to 1, counts an
edge to the lower bin, and returns neither empty bins nor the number of examples. Its ``log_loss``
replaces a probability of 0 by a small one, whereas the loss is infinite here. Its oldest version
that this package allows knows the Brier score of two outcomes only.

Axes: n examples, C outcomes (classes or answers). Confidence is the probability of the predicted
outcome, from 1/C to 1.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.reports.figures import COLOURS, NEUTRAL, new_figure, set_title, shortened
from gpt1.reports.labelled import LabelledSplit
from gpt1.reports.statistics import Outcomes, wilson_interval
from gpt1.results.submissions import Choices
from gpt1.tasks.targets import ChoiceIndex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BINS = 10
MOST_CHARACTERS = 1000  # of a text that is shown
N_DRAWS = 1000  # simulations of a calibrated model, to estimate the effect of chance


class Bin(NamedTuple):
    """A bin of examples whose confidence is at least ``low`` and less than ``high``.

    The last bin includes the confidence 1.

    Attributes:
        low, high: the edges of the bin.
        n: number of examples in the bin.
        n_right: number of these examples whose prediction is right.
        confidence: mean confidence of these examples; NaN if there are none.
    """

    low: float
    high: float
    n: int
    n_right: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """The share of right predictions; NaN if the bin has no examples."""
        return self.n_right / self.n if self.n else math.nan


# Numbers


def reliability(choices: Choices, labels: Outcomes, n_bins: int = N_BINS) -> list[Bin]:
    """Sort examples by confidence into ``n_bins`` bins of equal width over 1/C to 1.

    Returns:
        All bins, including those without examples.

    Raises:
        ValueError: there are not as many choices as labels.
    """
    _check_equally_many(choices, labels)
    edges, which = _binned(choices, n_bins)
    right = choices.predictions == np.asarray(labels)
    n, n_right, sums = (
        np.bincount(which, weights, n_bins) for weights in (None, right, choices.confidence)
    )
    return [
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            n=int(n[i]),
            n_right=int(n_right[i]),
            confidence=float(sums[i] / n[i]) if n[i] else math.nan,
        )
        for i in range(n_bins)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Average |accuracy - mean confidence| over the bins, weighted by examples (Guo et al., 2017).

    The error is 0 if the accuracy in each bin equals the mean confidence, and at most 1.

    Raises:
        ValueError: there is no example in the bins.
    """
    n = sum(item.n for item in bins)
    if not n:
        raise ValueError("no examples")
    return sum(abs(item.n_right - item.n * item.confidence) for item in bins if item.n) / n


def error_by_chance(choices: Choices, n_bins: int = N_BINS) -> tuple[float, float]:
    """Estimate the expected calibration error of a model that is calibrated perfectly.

    The error is not 0, because in a bin of few examples the accuracy differs from the mean
    confidence by chance. It is estimated from random outcomes with the given confidences; the
    random numbers are always the same.

    Returns:
        The mean error, and the error that one simulation in twenty exceeds.
    """
    confidence = choices.confidence
    _, which = _binned(choices, n_bins)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(N_DRAWS):
        surplus = (rng.random(len(confidence)) < confidence) - confidence
        errors.append(np.abs(np.bincount(which, surplus)).sum() / len(confidence))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def brier_score(probs: npt.NDArray[np.float64], labels: Outcomes) -> float:
    """Average the squared errors of the probabilities over examples, and halve the sum over C.

    Of two outcomes this is the mean of (1 - p)**2, where p is the probability of the right one. The
    score is 0 at best, (1 - 1/C) / 2 if all probabilities are equal, and at most 1.
    """
    is_right = np.eye(probs.shape[-1])[labels]
    return float(((probs - is_right) ** 2).sum(-1).mean() / 2)


def log_loss(probs: npt.NDArray[np.float64], labels: Outcomes) -> float:
    """Average -log p in nats over examples, where p is the probability of the right outcome.

    This is the classification cost of training. The loss is 0 at best, log C if all probabilities
    are equal, and infinite if a right outcome has the probability 0.
    """
    with np.errstate(divide="ignore"):
        return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


def most_confident_mistakes(choices: Choices, labels: Outcomes, n: int) -> list[int]:
    """Find the ``n`` wrong predictions of highest confidence, or all if there are fewer.

    Returns:
        The indices of their examples, the most confident first; ties in the order of the examples.
    """
    _check_equally_many(choices, labels)
    confidence, predictions = choices.confidence.tolist(), choices.predictions.tolist()
    wrong = [i for i, label in enumerate(labels) if predictions[i] != label]
    return sorted(wrong, key=lambda i: -confidence[i])[:n]


def _check_equally_many(choices: Choices, labels: Outcomes) -> None:
    if len(choices.predictions) != len(labels):
        raise ValueError(f"{len(choices.predictions)} choices, {len(labels)} labels")


def _binned(choices: Choices, n_bins: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the edges of the bins, [n_bins + 1], and the bin of each example, [n]."""
    edges = np.linspace(1 / choices.probs.shape[-1], 1, n_bins + 1)
    return edges, np.searchsorted(edges[1:-1], choices.confidence, side="right")


# Text and picture


def report(choices: Choices, split: LabelledSplit, n_mistakes: int) -> str:
    """Return a text with measures of calibration, a table of the bins, and confident mistakes.

    Args:
        choices: a model's predictions of these examples.
        split: the examples with their labels.
        n_mistakes: how many mistakes to show; 0 leaves that part out.
    """
    bins, C = reliability(choices, split.labels), choices.probs.shape[-1]
    by_chance, rarely = error_by_chance(choices)
    confidence = choices.confidence.mean()
    surplus = (confidence - sum(item.n_right for item in bins) / len(split.labels)) * 100
    guess = "a coin has" if C == 2 else "equal probabilities have"
    lines = [
        f"Mean confidence: {confidence * 100:.2f} %, {abs(surplus):.2f} points "
        f"{'over' if surplus > 0 else 'under'} the accuracy",
        f"Expected calibration error: {expected_calibration_error(bins) * 100:.2f} % in "
        f"{len(bins)} bins; a perfectly calibrated model shows {by_chance * 100:.2f} % on average, "
        f"one time in 20 over {rarely * 100:.2f} %",
        f"Brier score: {brier_score(choices.probs, split.labels):.4f} "
        f"({guess} {float(f'{(1 - 1 / C) / 2:.4f}'):g})",
        f"Log-loss: {log_loss(choices.probs, split.labels):.4f} nats ({guess} {math.log(C):.4f})",
        "",
        *_table_of(bins, split.task.plural),
    ]
    if n_mistakes:
        lines += ["", *_mistakes(choices, split, n_mistakes)]
    return "\n".join(lines)


def _table_of(bins: Sequence[Bin], plural: str) -> list[str]:
    rows = [f"{'confidence':14}{plural:>9}{'right':>7}{'mean confidence':>17}{'accuracy':>10}"]
    for item in bins:
        row = f"{item.low:.2f} to {item.high:.2f}  {item.n:9}{item.n_right:7}"
        if item.n:
            row += f"{item.confidence * 100:15.1f} %{item.accuracy * 100:8.1f} %"
        rows.append(row)
    return rows


def _mistakes(choices: Choices, split: LabelledSplit, n: int) -> list[str]:
    """Return the lines about the most confident mistakes, with the texts of each example."""
    shown = most_confident_mistakes(choices, split.labels, n)
    if not shown:
        return ["No mistakes."]
    n_wrong = int((choices.predictions != split.labels).sum())
    lines = [f"The most confident mistakes, {len(shown)} of {n_wrong}:"]
    for i in shown:
        given, outcomes = _parts(split, i)
        lines += ["", *_wrapped(f"{i}  ", given)]
        marks = {int(split.labels[i]): "right ", int(choices.predictions[i]): "chosen"}
        for outcome, mark in sorted(marks.items()):
            lines += _wrapped(f"   {mark} {choices.probs[i, outcome]:.4f}  ", outcomes[outcome])
    return lines


def _parts(split: LabelledSplit, i: int) -> tuple[str, Sequence[str]]:
    """Return the given texts of an example, and what its outcomes are: answers or classes."""
    texts, target = split.examples[i].texts, split.task.target
    if isinstance(target, ChoiceIndex):
        n_given = len(texts) - len(target.columns)
        return " / ".join(texts[:n_given]), texts[n_given:]
    return " / ".join(texts), target.columns


def _wrapped(begin: str, text: str) -> list[str]:
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
    return textwrap.wrap(text, width=96, initial_indent=begin, subsequent_indent=" " * len(begin))


def reliability_figure(bins: Sequence[Bin], name: str, plural: str = "examples") -> Figure:
    """Draw accuracy over confidence, one bar per bin, and below it the examples in each bin.

    The accuracy of each bin has an error bar, its 95 % interval (Wilson).

    Args:
        bins: from :func:`reliability`.
        name: of the run or the file that the probabilities are from, for the title.
        plural: what the examples are called.
    """
    figure = new_figure(5, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled, least = [item for item in bins if item.n], bins[0].low
    starts, widths = [item.low for item in filled], [item.high - item.low for item in filled]
    bars: dict[str, Any] = {"align": "edge", "color": COLOURS[4], "edgecolor": "white"}

    above.bar(starts, [item.accuracy for item in filled], widths, label="accuracy", **bars)
    above.errorbar(
        [item.confidence for item in filled],
        [item.accuracy for item in filled],
        _error_bars(filled),
        fmt="o",
        color=COLOURS[0],
        capsize=3,
        label="at the mean confidence,\nwith 95 % interval",
    )
    above.plot([least, 1], [least, 1], "--", color=NEUTRAL, label="perfectly calibrated")
    above.set(xlim=(least, 1), ylim=(0, 1.04), ylabel="share of right predictions")
    error = expected_calibration_error(bins)
    set_title(figure, shortened(name, 45))
    above.set_title(f"Expected calibration error {error * 100:.2f} %", fontsize=10)
    above.legend(loc="lower right", framealpha=0.95, fontsize="small")

    counts = below.bar(starts, [item.n for item in filled], widths, **bars)
    below.bar_label(counts, fontsize=8)
    below.margins(y=0.25)  # room for the numbers
    below.set(xlabel="confidence: probability of the prediction", ylabel=plural)
    return figure


def _error_bars(bins: Sequence[Bin]) -> npt.NDArray[np.float64]:
    """Return how far Wilson's intervals reach below and above the accuracies, [2, bins]."""
    intervals = [(item.accuracy, *wilson_interval(item.n_right, item.n)) for item in bins]
    bars = [(accuracy - low, high - accuracy) for accuracy, low, high in intervals]
    # Rounding may put an end of an interval just inside an accuracy of 0 or 1.
    reach: npt.NDArray[np.float64] = np.maximum(np.array(bars).T, 0)
    return reach
