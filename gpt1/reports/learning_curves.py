"""Draw the learning curves of runs from their logs (the extra ``plots``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.datasets import TASKS
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.reports.figures import COLOURS, NEUTRAL, matplotlib, new_figure, set_title, shortened
from gpt1.results.log_lines import LogLine, Run
from gpt1.runtime.errors import InputError
from gpt1.tasks import ACCURACY, Grades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANCE: dict[str, Any] = {"linestyle": ":", "linewidth": 1.5, "color": NEUTRAL}
_CLIPPING: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2, "color": NEUTRAL}
_BEST: dict[str, Any] = {"marker": "*", "markersize": 13, "linestyle": "", "zorder": 3}
_BEST |= {"markeredgecolor": "white", "markeredgewidth": 0.7}
_EACH_UPDATE: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.45}
_MEAN: dict[str, Any] = {"linewidth": 1.8}
_NO_MEAN: dict[str, Any] = {"linewidth": 1.2}  # the updates of a run that has no mean


class _Hues(NamedTuple):
    """The colours of a run: what was measured on training and on validation examples."""

    train: Any
    valid: Any


class _Level(NamedTuple):
    """A horizontal line: its name in the key, its height, and how it is drawn."""

    name: str
    height: float
    style: dict[str, Any]


class _Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        title: above the axes.
        label: of the vertical axis: the quantity, with its unit.
        draw: draws a run into the axes.
        finish: draws what all runs share, and the key.
    """

    title: str
    label: str
    draw: Callable[[Axes, Run, _Hues], None]
    finish: Callable[[Axes], None]


def curves(runs: Sequence[Run], smooth: int | None = None) -> Figure:
    """Draw losses, scores, learning rates and gradient norms of runs.

    A score is that of the first metric of a run's task. Runs of pretraining have losses and
    perplexities per token in the place of the losses and scores of a task.

    One run has one colour for training and another for validation. Several runs have one colour
    each, with dashed lines for training at evaluations.

    Args:
        runs: at least one; a panel is left out if no run has values for it.
        smooth: how many updates a moving mean covers [a twentieth of each run]. It covers at
            most about half of a run, since a longer mean would be a flat line.

    Raises:
        InputError: some runs are of pretraining and others are not.
    """
    if len({run.is_pretraining for run in runs}) > 1:
        some = ", ".join(run.name for run in runs if run.is_pretraining)
        raise InputError(
            f"{some}: of pretraining, while the others are not; draw them in a picture of their own"
        )
    panels = _panels(runs, smooth)
    n_columns = 3 if len(panels) > 2 else 2
    n_rows = math.ceil(len(panels) / n_columns)
    figure = new_figure(4.2 * n_columns, 3.5 * n_rows + 0.4)
    places = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    ends = [line.n_updates for run in runs for line in run.evaluations]
    ends += [line.n_updates for run in runs for line in run.updates]
    per_epoch = updates_per_epoch(runs)
    for axes, panel in zip(places, panels, strict=False):
        for run, hues in zip(runs, _hues(len(runs)), strict=True):
            panel.draw(axes, run, hues)
        _set_axes(axes, panel, max(ends), per_epoch)
        panel.finish(axes)
    for axes in places[len(panels) :]:
        axes.remove()
    _name_runs(figure, runs)
    return figure


def moving_mean(values: Sequence[float], half: int) -> npt.NDArray[np.float64]:
    """Average each value with up to ``half`` values before it and ``half`` after it."""
    array = np.asarray(values, dtype=np.float64)
    return np.array([array[max(i - half, 0) : i + half + 1].mean() for i in range(len(array))])


def half_window(n: int, smooth: int | None) -> int:
    """Return how many updates on either side a moving mean over ``n`` updates covers.

    The mean covers ``smooth`` updates, or a twentieth of them if that is None, but at most about
    half of them.
    """
    return min((smooth or n // 20) // 2, n // 4)


def updates_per_epoch(runs: Sequence[Run]) -> float | None:
    """Return the number of updates per epoch, or None if it is unknown or differs among runs."""
    lines = [line for run in runs for line in run.evaluations if line.n_epochs]
    found = {line.n_updates / line.n_epochs for line in lines} - {0.0}
    return found.pop() if len(found) == 1 else None


def _panels(runs: Sequence[Run], smooth: int | None) -> list[_Panel]:
    """Return the panels that the runs have values for."""
    lm_loss = "language-model loss (nats per token)"
    updates = [line for run in runs for line in run.updates]
    if runs[0].is_pretraining:
        panels = _pretraining_evaluations(runs, lm_loss)
    else:
        panels = _task_panels(runs, smooth)
    if any(line.lm_cost is not None for line in updates):
        panels.append(
            _updates("Language-model loss of each update", lm_loss, "lm_cost", runs, smooth)
        )
    if updates:
        panels.append(_updates("Learning rate", "learning rate", "lr", runs, 1))
        title, label = "Gradient norm of each update", "gradient norm before clipping"
        panels.append(_updates(title, label, "grad_norm", runs, smooth, _clipping(runs)))
    return panels


def _pretraining_evaluations(runs: Sequence[Run], loss: str) -> list[_Panel]:
    """Return the panels of the evaluations of pretraining: loss and perplexity."""
    return [
        _evaluations(
            "Language-model loss at evaluations",
            loss,
            lambda line: (line.figures["tr_cost"], line.figures["va_cost"]),
            runs,
        ),
        _evaluations(
            "Perplexity at evaluations",
            "perplexity (per token)",
            lambda line: (_exp(line.figures["tr_cost"]), line.figures["va_ppl"]),
            runs,
        ),
    ]


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _task_panels(runs: Sequence[Run], smooth: int | None) -> list[_Panel]:
    """Return the panels of what is learned about a task: loss and score at evaluations, loss."""
    loss, n = "classification loss (nats per example)", _n_outcomes(runs)
    score = " or ".join(dict.fromkeys(run.best.metric.title for run in runs))
    by_guess = 100 / n if n and score == ACCURACY.title else None
    chances = [] if n is None else [_Level("chance", math.log(n), _CHANCE)]
    panels = [
        _evaluations(
            "Classification loss at evaluations",
            loss,
            lambda line: (line.figures["tr_cost"], line.figures["va_cost"]),
            runs,
            chances,
        ),
        _evaluations(
            f"{score.capitalize()} at evaluations",
            f"{score} (%)",
            lambda line: (line.train_score, line.valid_score),
            runs,
            [] if by_guess is None else [_Level("chance", by_guess, _CHANCE)],
        ),
    ]
    if any(run.updates for run in runs):
        title = "Classification loss of each update"
        panels.append(_updates(title, loss, "clf_cost", runs, smooth, chances))
    return panels


def _n_outcomes(runs: Sequence[Run]) -> int | None:
    """Return how many classes or answers a guess has; None if it is not known or runs differ."""
    found = set()
    for run in runs:
        task = TASKS.get(str(run.settings.get("dataset", ROCSTORIES.name)))
        is_known = task is not None and not isinstance(task.target, Grades)
        found.add(len(task.target.columns) if task is not None and is_known else None)
    return found.pop() if len(found) == 1 else None


def _clipping(runs: Sequence[Run]) -> list[_Level]:
    """Return lines at the gradient norms above which the runs clip gradients."""
    norms = {run.settings.get("max_grad_norm") for run in runs if run.updates}
    known = sorted(norm for norm in norms if isinstance(norm, int | float) and norm > 0)
    return [_Level(f"clipped above {norm:g}", norm, _CLIPPING) for norm in known]


def _evaluations(
    title: str,
    label: str,
    pair: Callable[[LogLine], tuple[float, float]],
    runs: Sequence[Run],
    levels: Sequence[_Level] = (),
) -> _Panel:
    """Make a panel of the evaluations: the best one, and a pair of training and validation."""
    only = _hues(1)[0] if len(runs) == 1 else _Hues(NEUTRAL, NEUTRAL)
    dashed: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}

    def draw(axes: Axes, run: Run, hues: _Hues) -> None:
        at = [line.n_updates for line in run.evaluations]
        marker: dict[str, Any] = {"marker": "o" if len(at) <= 30 else "", "markersize": 4}
        train, valid = zip(*map(pair, run.evaluations), strict=True)
        axes.plot(at, train, color=hues.train, **marker, **dashed)
        axes.plot(at, valid, color=hues.valid, **marker)
        best = [run.best.n_updates], [pair(run.best)[1]]
        axes.plot(*best, color=hues.valid, **_BEST)

    def finish(axes: Axes) -> None:
        for level in levels:
            axes.axhline(level.height, **level.style)
        axes.margins(y=0.1)
        marked = {"marker": "o", "markersize": 4}
        styles = {
            "training": {"color": only.train, **marked, **dashed},
            "validation": {"color": only.valid, **marked},
            "best evaluation" if runs[0].is_pretraining else "best epoch": {
                "color": only.valid,
                **_BEST,
            },
            **{level.name: level.style for level in levels},
        }
        _add_key(axes, styles)

    return _Panel(title, label, draw, finish)


def _updates(
    title: str,
    label: str,
    field: str,
    runs: Sequence[Run],
    smooth: int | None,
    levels: Sequence[_Level] = (),
) -> _Panel:
    """Make a panel of the updates, with the moving mean of each run that is long enough."""
    spans: set[int] = set()  # of the means that were drawn

    def draw(axes: Axes, run: Run, hues: _Hues) -> None:
        lines = [line for line in run.updates if getattr(line, field) is not None]
        at, values = [line.n_updates for line in lines], [getattr(line, field) for line in lines]
        half = half_window(len(lines), smooth)
        marker = "." if len(at) == 1 else ""  # A line of one point is invisible.
        axes.plot(
            at, values, marker=marker, color=hues.train, **(_EACH_UPDATE if half else _NO_MEAN)
        )
        if half:
            axes.plot(at, moving_mean(values, half), color=hues.train, **_MEAN)
            spans.add(2 * half + 1)

    def finish(axes: Axes) -> None:
        colour = _hues(1)[0].train if len(runs) == 1 else NEUTRAL
        styles = {}
        if spans:
            several = f"{min(spans)} to " if len(spans) > 1 else ""
            styles["each update"] = {"color": colour, **_EACH_UPDATE}
            styles[f"mean of {several}{max(spans)} updates"] = {"color": colour, **_MEAN}
        for level in levels:
            axes.axhline(level.height, **level.style)
            styles[level.name] = level.style
        if styles:
            _add_key(axes, styles)

    return _Panel(title, label, draw, finish)


def _set_axes(axes: Axes, panel: _Panel, last: int, per_epoch: float | None) -> None:
    """Name the axes: updates up to the last below, epochs above if an epoch has a fixed number."""
    locator = matplotlib("ticker").MaxNLocator
    axes.set_title(panel.title, fontsize=11)
    axes.set(xlabel="update", ylabel=panel.label)
    axes.set_xlim(0, 1.03 * last)
    axes.xaxis.set_major_locator(locator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    # A factor for the whole axis would stand above it, where the epochs are.
    axes.ticklabel_format(axis="y", scilimits=(-6, 7), useOffset=False)
    axes.grid(alpha=0.25)
    if per_epoch is not None:
        functions = (lambda update: update / per_epoch, lambda epoch: epoch * per_epoch)
        epochs = axes.secondary_xaxis("top", functions=functions)
        epochs.set_xlabel("epoch")
        epochs.xaxis.set_major_locator(locator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def _add_key(axes: Axes, styles: Mapping[str, dict[str, Any]]) -> None:
    """Add a legend of lines by their names."""
    line = matplotlib("lines").Line2D
    handles = [line([], [], **style) for style in styles.values()]
    axes.legend(handles, list(styles), fontsize="small")


def _hues(n: int) -> list[_Hues]:
    """Return the colours of each of ``n`` runs: two of a single run, one of each of several."""
    if n == 1:
        return [_Hues(COLOURS[0], COLOURS[1])]
    colours: Sequence[Any] = COLOURS[:n]
    if n > len(COLOURS):
        colours = [matplotlib().colormaps["viridis"](0.92 * i / (n - 1)) for i in range(n)]
    return [_Hues(colour, colour) for colour in colours]


def _best_of(run: Run) -> str:
    """Say which evaluation of a run is the best, and how good it is."""
    best = run.best
    if run.is_pretraining:
        perplexity = f"held-out perplexity {best.figures['va_ppl']:.2f} per token"
        return f"best after update {best.n_updates}: {perplexity}"
    score = f"validation {best.metric.title} {best.valid_score:.2f} %"
    return f"best epoch {best.n_epochs}: {score}"


def _name_runs(figure: Figure, runs: Sequence[Run]) -> None:
    """Name a single run above the figure; add a legend of several runs below, as wide as fits."""
    names = [shortened(run.name) for run in runs]
    if len(runs) == 1:
        set_title(figure, f"Run {names[0]}, {_best_of(runs[0])}")
        return
    line = matplotlib("lines").Line2D
    inches = 0.7 + 0.085 * max(map(len, names))  # of an entry
    handles = [line([], [], color=hues.valid, linewidth=3) for hues in _hues(len(runs))]
    legend = figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, min(len(runs), int(figure.get_figwidth() / inches))),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # A dollar sign is a dollar sign.
