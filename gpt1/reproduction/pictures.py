"""Draw figure 2 of the paper from finished runs (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpt1.datasets import TASKS
from gpt1.reports.figures import COLOURS, NEUTRAL, matplotlib, new_figure, set_title, shortened
from gpt1.reproduction.summaries import Summary, data_marks, layer_points, updates_points
from gpt1.tasks.metrics import ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS_TITLE = "Score against layers transferred (figure 2, left)"
ZEROSHOT_TITLE = "Zero-shot scores (figure 2, right)"
_SIZE = (7.5, 4.8)  # inches
_POINTS: dict[str, Any] = {"marker": "o", "markersize": 4}


def draw_layers(summaries: Sequence[Summary]) -> Figure | None:
    """Draw score against layers transferred (figure 2, left); None if there are no such runs.

    A line goes through the medians, a band shows the range over the seeds, and a dashed line the
    scores on training examples.

    Raises:
        InputError: matplotlib is missing.
    """
    lines = layer_points(summaries)
    if not lines:
        return None
    figure, axes = _new(LAYERS_TITLE, "layers transferred")
    several = len({key[0] for key in lines}) > 1
    marks = data_marks(summaries)
    for number, ((configuration, data, split), found) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        at = [each.transferred for each in found]
        name = f"{split}{marks[data]} {found[0].metric}"
        name += f" ({configuration})" if several else ""
        axes.plot(
            at, [each.median for each in found], color=colour, label=shortened(name), **_POINTS
        )
        axes.fill_between(
            at,
            [each.lowest for each in found],
            [each.highest for each in found],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        train = [(each.transferred, each.train) for each in found if each.train is not None]
        axes.plot(*zip(*train, strict=True), color=colour, linestyle="--", label="its training")
    ticks = sorted({each.transferred for found in lines.values() for each in found})
    axes.set_xticks(ticks, ["none" if n < 0 else str(n) for n in ticks])
    _finish(axes)
    return figure


def draw_zeroshot(summaries: Sequence[Summary]) -> Figure | None:
    """Draw zero-shot scores against updates of pretraining (figure 2, right).

    Unlike in the paper's figure the scores are not scaled between chance and the best known score;
    a dotted line shows chance.

    Returns:
        The figure; None if there are no such runs.

    Raises:
        InputError: matplotlib is missing.
    """
    lines = updates_points(summaries)
    if not lines:
        return None
    figure, axes = _new(ZEROSHOT_TITLE, "updates of pretraining")
    several = len({series for series, *_ in lines}) > 1
    marks = data_marks(summaries)
    for number, ((series, data, split, metric), found) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        name = f"{split}{marks[data]} {metric}" + (f" ({series})" if several else "")
        at = [each.n_updates or 0 for each in found]
        axes.plot(
            at, [each.median for each in found], color=colour, label=shortened(name), **_POINTS
        )
        axes.axhline(chance(found[0]), color=colour, linestyle=":", linewidth=1)
    axes.plot([], [], color=NEUTRAL, linestyle=":", linewidth=1, label="chance")
    _finish(axes)
    return figure


def chance(summary: Summary) -> float:
    """Return the expected accuracy of a random choice in percent; 0 for other metrics."""
    if summary.metric != ACCURACY.title:
        return 0.0
    return 100 / len(TASKS[summary.dataset].target.columns)


def _new(title: str, below: str) -> tuple[Figure, Axes]:
    figure = new_figure(*_SIZE)
    set_title(figure, title)
    axes = figure.subplots()
    axes.set(xlabel=below, ylabel="%")
    axes.xaxis.set_major_locator(
        matplotlib("ticker").MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True)
    )
    return figure, axes


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    for text in axes.get_legend().get_texts():  # type: ignore[union-attr]
        text.set_parse_math(False)
