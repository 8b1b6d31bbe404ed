"""Measure how well the probabilities of a model's choices agree with how often they are right.

A submission holds the choices; the file of probabilities beside it holds the probability of each
ending. A model is calibrated if, of all choices that it makes with probability p, a share p is
right. The original writes no probabilities, and has nothing that corresponds to this module.

The bins and the log-loss do not come from scikit-learn. Its ``calibration_curve`` has bins over 0
to 1, counts an edge to the lower bin, and returns neither empty bins nor the number of stories. Its
``log_loss`` replaces a probability of 0 by a small one, whereas the loss is infinite here.

Axes: n stories, 2 choices. Confidence is the probability of the chosen ending, from 0.5 to 1.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import brier_score_loss

from gpt1.datasets.story_cloze import Cloze
from gpt1.reports.figures import COLOURS, NEUTRAL, new_figure, set_title, shortened
from gpt1.reports.statistics import wilson_interval
from gpt1.results.submissions import Choices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BINS = 10
N_DRAWS = 1000  # simulations of a calibrated model, to estimate the effect of chance


class Bin(NamedTuple):
    """A bin of stories whose confidence is at least ``low`` and less than ``high``.

    The last bin includes the confidence 1.

    Attributes:
        low, high: the edges of the bin.
        n: number of stories in the bin.
        n_right: number of these stories for which the right ending was chosen.
        confidence: mean confidence of these stories; NaN if there are none.
    """

    low: float
    high: float
    n: int
    n_right: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """The share of right choices; NaN if the bin has no stories."""
        return self.n_right / self.n if self.n else math.nan


# Numbers


def reliability(choices: Choices, labels: Sequence[int], n_bins: int = N_BINS) -> list[Bin]:
    """Sort stories by confidence into ``n_bins`` bins of equal width over 0.5 to 1.

    Returns:
        All bins, including those without stories.

    Raises:
        ValueError: there are not as many choices as labels.
    """
    _check_equally_many(choices, labels)
    edges, which = _binned(choices.confidence, n_bins)
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
    """Average |accuracy - mean confidence| over the bins, weighted by stories (Guo et al., 2017).

    The error is 0 if the accuracy in each bin equals the mean confidence, and at most 1.

    Raises:
        ValueError: there is no story in the bins.
    """
    n = sum(item.n for item in bins)
    if not n:
        raise ValueError("no stories")
    return sum(abs(item.n_right - item.n * item.confidence) for item in bins if item.n) / n


def error_by_chance(choices: Choices, n_bins: int = N_BINS) -> tuple[float, float]:
    """Estimate the expected calibration error of a model that is calibrated perfectly.

    The error is not 0, because in a bin of few stories the accuracy differs from the mean
    confidence by chance. It is estimated from random outcomes with the given confidences; the
    random numbers are always the same.

    Returns:
        The mean error, and the error that one simulation in twenty exceeds.
    """
    confidence = choices.confidence
    _, which = _binned(confidence, n_bins)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(N_DRAWS):
        surplus = (rng.random(len(confidence)) < confidence) - confidence
        errors.append(np.abs(np.bincount(which, surplus)).sum() / len(confidence))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def brier_score(probs: npt.NDArray[np.float64], labels: Sequence[int]) -> float:
    """Average (1 - p)**2 over stories, where p is the probability of the right ending.

    The score is 0 at best, 0.25 if both endings always have the probability 0.5, and at most 1.
    """
    return float(brier_score_loss(labels, probs[:, 1], pos_label=1))


def log_loss(probs: npt.NDArray[np.float64], labels: Sequence[int]) -> float:
    """Average -log p in nats over stories, where p is the probability of the right ending.

    This is the classification cost of training. The loss is 0 at best, log 2 if both endings always
    have the probability 0.5, and infinite if a right ending has the probability 0.
    """
    with np.errstate(divide="ignore"):
        return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


def most_confident_mistakes(choices: Choices, labels: Sequence[int], n: int) -> list[int]:
    """Find the ``n`` wrong choices of highest confidence, or all if there are fewer.

    Returns:
        The indices of their stories, the most confident first; ties in the order of the stories.
    """
    _check_equally_many(choices, labels)
    confidence, predictions = choices.confidence.tolist(), choices.predictions.tolist()
    wrong = [i for i, label in enumerate(labels) if predictions[i] != label]
    return sorted(wrong, key=lambda i: -confidence[i])[:n]


def _check_equally_many(choices: Choices, labels: Sequence[int]) -> None:
    if len(choices.predictions) != len(labels):
        raise ValueError(f"{len(choices.predictions)} choices, {len(labels)} labels")


def _binned(
    confidence: npt.NDArray[np.float64], n_bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the edges of the bins, [n_bins + 1], and the bin of each story, [n]."""
    edges = np.linspace(0.5, 1, n_bins + 1)
    return edges, np.searchsorted(edges[1:-1], confidence, side="right")


# Text and picture


def report(choices: Choices, cloze: Cloze, n_mistakes: int) -> str:
    """Return a text with measures of calibration, a table of the bins, and confident mistakes.

    Args:
        choices: a model's choices for these stories.
        cloze: the stories with their labels.
        n_mistakes: how many mistakes to show; 0 leaves that part out.
    """
    bins = reliability(choices, cloze.labels)
    by_chance, rarely = error_by_chance(choices)
    confidence = choices.confidence.mean()
    surplus = (confidence - sum(item.n_right for item in bins) / len(cloze.labels)) * 100
    lines = [
        f"Mean confidence: {confidence * 100:.2f} %, {abs(surplus):.2f} points "
        f"{'over' if surplus > 0 else 'under'} the accuracy",
        f"Expected calibration error: {expected_calibration_error(bins) * 100:.2f} % in "
        f"{len(bins)} bins; a perfectly calibrated model shows {by_chance * 100:.2f} % on average, "
        f"one time in 20 over {rarely * 100:.2f} %",
        f"Brier score: {brier_score(choices.probs, cloze.labels):.4f} (a coin has 0.25)",
        f"Log-loss: {log_loss(choices.probs, cloze.labels):.4f} nats (a coin has 0.6931)",
        "",
        *_table_of(bins),
    ]
    if n_mistakes:
        lines += ["", *_mistakes(choices, cloze, n_mistakes)]
    return "\n".join(lines)


def _table_of(bins: Sequence[Bin]) -> list[str]:
    rows = [f"{'confidence':14}{'stories':>9}{'right':>7}{'mean confidence':>17}{'accuracy':>10}"]
    for item in bins:
        row = f"{item.low:.2f} to {item.high:.2f}  {item.n:9}{item.n_right:7}"
        if item.n:
            row += f"{item.confidence * 100:15.1f} %{item.accuracy * 100:8.1f} %"
        rows.append(row)
    return rows


def _mistakes(choices: Choices, cloze: Cloze, n: int) -> list[str]:
    """Return the lines about the most confident mistakes, with both endings of each story."""
    shown = most_confident_mistakes(choices, cloze.labels, n)
    if not shown:
        return ["No mistakes."]
    n_wrong = int((choices.predictions != cloze.labels).sum())
    lines = [f"The most confident mistakes, {len(shown)} of {n_wrong}:"]
    for i in shown:
        lines += ["", *_wrapped(f"{i}  ", cloze.stories[i])]
        for choice, ending in enumerate((cloze.endings1[i], cloze.endings2[i])):
            mark = "right " if choice == cloze.labels[i] else "chosen"
            lines += _wrapped(f"   {mark} {choices.probs[i, choice]:.4f}  ", ending)
    return lines


def _wrapped(begin: str, text: str) -> list[str]:
    return textwrap.wrap(text, width=96, initial_indent=begin, subsequent_indent=" " * len(begin))


def reliability_figure(bins: Sequence[Bin], name: str) -> Figure:
    """Draw accuracy over confidence, one bar per bin, and below it the stories in each bin.

    The accuracy of each bin has an error bar, its 95 % interval (Wilson).

    Args:
        bins: from :func:`reliability`.
        name: of the run or the file that the probabilities are from, for the title.
    """
    figure = new_figure(5, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [item for item in bins if item.n]
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
    above.plot([0.5, 1], [0.5, 1], "--", color=NEUTRAL, label="perfectly calibrated")
    above.set(xlim=(0.5, 1), ylim=(0, 1.04), ylabel="share of right choices")
    error = expected_calibration_error(bins)
    set_title(figure, shortened(name, 45))
    above.set_title(f"Expected calibration error {error * 100:.2f} %", fontsize=10)
    above.legend(loc="lower right", framealpha=0.95, fontsize="small")

    counts = below.bar(starts, [item.n for item in filled], widths, **bars)
    below.bar_label(counts, fontsize=8)
    below.margins(y=0.25)  # room for the numbers
    below.set(xlabel="confidence: probability of the ending chosen", ylabel="stories")
    return figure


def _error_bars(bins: Sequence[Bin]) -> npt.NDArray[np.float64]:
    """Return how far Wilson's intervals reach below and above the accuracies, [2, bins]."""
    intervals = [(item.accuracy, *wilson_interval(item.n_right, item.n)) for item in bins]
    bars = [(accuracy - low, high - accuracy) for accuracy, low, high in intervals]
    # Rounding may put an end of an interval just inside an accuracy of 0 or 1.
    reach: npt.NDArray[np.float64] = np.maximum(np.array(bars).T, 0)
    return reach
