"""Draw learning curves, attention maps and shares of attention (needs the extra ``plots``).

Each drawing is a matplotlib figure of its own. It is made without pyplot, so that no window opens
and nothing global changes.

Axes: L layers, H heads, T positions, P parts of a choice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.results.log_lines import Run
from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import import_extra
from gpt1.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt1.inference.attention import AttentionShares

Array = npt.NDArray[np.floating[Any]]

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
# The colours of Okabe and Ito, which most colour-blind people can tell apart, without the yellow,
# which is too pale for a line.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
NEUTRAL = "#444444"
UNSEEN = "#e4e4e4"  # of pairs with a later token, which have no weight in a map


def check_picture(path: str | Path, flag: str = "--out") -> None:
    """Check before any work whether a picture of this name can be drawn.

    Raises:
        InputError: the name does not end in one of :data:`SUFFIXES`, or matplotlib is missing.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"{flag} {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    _matplotlib()


def new_figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """Make an empty figure, whose size is in inches.

    Raises:
        InputError: matplotlib is missing.
    """
    figure: Figure = _matplotlib("figure").Figure((width, height), dpi, layout="constrained")
    return figure


def _matplotlib(module: str = "") -> Any:
    """Import and return matplotlib, which the extra ``plots`` installs, or one of its modules."""
    return import_extra(f"matplotlib.{module}".removesuffix("."), "plots")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix; the same figure gives the same bytes.

    Raises:
        Gpt1Error: the file cannot be written.
    """
    form = Path(path).suffix.lower()[1:]
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with warnings.catch_warnings(), _matplotlib().rc_context({"svg.hashsalt": "gpt1"}):
        # A character that the font lacks is drawn as a box. The warning about it is hidden.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        with atomic_write(path) as file:
            figure.savefig(file, format=form, metadata=no_date.get(form))


# Learning curves


class _Panel(NamedTuple):
    """One pair of axes: what the axes show, and how a run is drawn into them."""

    title: str
    unit: str
    draw: Callable[[Axes, Run, Any], None]
    key: Callable[[Axes], None] | None = None


def curves(runs: Sequence[Run], smooth: int | None = None) -> Figure:
    """Draw costs, accuracies, learning rates and gradient norms of runs, one colour per run.

    A thin line shows the values of single updates, a thick line their moving mean.

    Args:
        runs: at least one; a panel is left out if no run has values for it.
        smooth: how many updates the moving mean covers [a twentieth of the longest run].
    """
    locator = _matplotlib("ticker").MaxNLocator
    half = (smooth or max(len(run.updates) for run in runs) // 20) // 2
    panels = _panels(runs, half)
    n_columns = 3 if len(panels) > 2 else 2
    n_rows = math.ceil(len(panels) / n_columns)
    figure = new_figure(4.2 * n_columns, 3.2 * n_rows + 0.4)
    places = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        for run, colour in zip(runs, _colours(len(runs)), strict=True):
            panel.draw(axes, run, colour)
        axes.set(title=panel.title, xlabel="updates", ylabel=panel.unit)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(locator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-2, 5))
        axes.grid(alpha=0.25)
        if panel.key:
            panel.key(axes)
    for axes in places[len(panels) :]:
        axes.remove()
    _name_runs(figure, runs)
    return figure


def moving_mean(values: Sequence[float], half: int) -> Array:
    """Average each value with up to ``half`` values before it and ``half`` after it."""
    array = np.asarray(values, dtype=np.float64)
    return np.array([array[max(i - half, 0) : i + half + 1].mean() for i in range(len(array))])


def _panels(runs: Sequence[Run], half: int) -> list[_Panel]:
    """Return the panels that the runs have values for."""
    panels = [
        _evaluations("Cost of the choice, evaluated", "nats per story", "tr_cost", "va_cost"),
        _evaluations("Accuracy, evaluated", "%", "tr_acc", "va_acc"),
    ]
    updates = [line for run in runs for line in run.updates]
    if updates:
        panels.append(
            _updates("Cost of the choice, each update", "nats per story", "clf_cost", half)
        )
    if any(line.lm_cost is not None for line in updates):
        title = "Cost of the language model, each update"
        panels.append(_updates(title, "nats per token", "lm_cost", half))
    if updates:
        panels.append(_updates("Learning rate", "", "lr", None))
        panels.append(_updates("Gradient norm, before clipping", "", "grad_norm", half))
    return panels


def _evaluations(title: str, unit: str, train: str, valid: str) -> _Panel:
    """Make a panel of evaluations: dashed lines on training, solid ones on validation stories."""
    styles: list[tuple[str, str, dict[str, Any]]] = [
        (train, "training", {"linestyle": "--", "markerfacecolor": "white"}),
        (valid, "validation", {"linestyle": "-"}),
    ]

    def draw(axes: Axes, run: Run, colour: Any) -> None:
        at = [line.n_updates for line in run.evaluations]
        marker = "o" if len(at) <= 30 else ""
        for field, _, style in styles:
            values = [getattr(line, field) for line in run.evaluations]
            axes.plot(at, values, marker=marker, markersize=4, color=colour, **style)

    def key(axes: Axes) -> None:
        marked = {"marker": "o", "markersize": 4}
        _add_key(axes, [(name, {**style, **marked}) for _, name, style in styles])

    return _Panel(title, unit, draw, key)


def _updates(title: str, unit: str, field: str, half: int | None) -> _Panel:
    """Make a panel of updates, with a moving mean of 2 * ``half`` + 1 values unless it is off.

    The moving mean is off if ``half`` is None or 0.
    """
    raw: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.4}
    mean: dict[str, Any] = {"linewidth": 1.8}
    is_smoothed = bool(half)

    def draw(axes: Axes, run: Run, colour: Any) -> None:
        lines = [line for line in run.updates if getattr(line, field) is not None]
        at, values = [line.n_updates for line in lines], [getattr(line, field) for line in lines]
        marker = "." if len(at) == 1 else ""  # A line of one point would be invisible.
        axes.plot(at, values, marker=marker, color=colour, **(raw if is_smoothed else mean))
        if half:
            axes.plot(at, moving_mean(values, half), color=colour, **mean)

    def key(axes: Axes) -> None:
        assert half
        _add_key(axes, [("each update", raw), (f"mean of {2 * half + 1} updates", mean)])

    return _Panel(title, unit, draw, key if is_smoothed else None)


def _add_key(axes: Axes, styles: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add a legend of the line styles, in grey; the colours have their own legend."""
    line = _matplotlib("lines").Line2D
    handles = [line([], [], color=NEUTRAL, **style) for _, style in styles]
    axes.legend(handles, [label for label, _ in styles], fontsize="small")


def _colours(n: int) -> list[Any]:
    """Return a colour for each of ``n`` runs."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    return [_matplotlib().colormaps["viridis"](0.92 * i / (n - 1)) for i in range(n)]


def _name_runs(figure: Figure, runs: Sequence[Run]) -> None:
    """Add the legend of colours at the bottom, in as many columns as fit."""
    line = _matplotlib("lines").Line2D
    names = [shortened(run.name) for run in runs]
    inches = 0.7 + 0.085 * max(map(len, names))  # width of an entry
    handles = [line([], [], color=colour, linewidth=3) for colour in _colours(len(runs))]
    legend = figure.legend(
        handles,
        [f"run {name}" for name in names] if len(runs) == 1 else names,
        loc="outside lower center",
        ncols=max(1, min(len(runs), int(figure.get_figwidth() / inches))),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign is a dollar sign


def shortened(name: str, most: int = 60) -> str:
    """Shorten a name to ``most`` characters; the end of a long name is kept, as it says more."""
    return name if len(name) <= most else "..." + name[3 - most :]


# Attention


def map_grid(maps: Array, title: str, delimiter: int) -> Figure:
    """Draw all maps of a model on one sequence, small: one row per layer, one column per head.

    Args:
        maps: [L, H, T, T], weights from each position (first T) to each position (second T).
        title: title of the figure.
        delimiter: the position of ``_delimiter_``, where thin lines are drawn.
    """
    n_layer, n_head = maps.shape[:2]
    figure = new_figure(max(1.2 * n_head + 1.8, 5), 1.2 * n_layer + 1)
    grid = figure.subplots(n_layer, n_head, squeeze=False)
    for layer in range(n_layer):
        for head in range(n_head):
            axes = grid[layer, head]
            image = _draw_map(axes, maps[layer, head])
            axes.axhline(delimiter, color=COLOURS[1], linewidth=0.4)
            axes.axvline(delimiter, color=COLOURS[1], linewidth=0.4)
            axes.set(xticks=[], yticks=[])
            if layer == 0:
                axes.set_title(f"head {head}", fontsize=9)
            if head == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=9)
    _set_title(figure, title)
    figure.supxlabel("token looked at (lines: _delimiter_)", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    _add_weights_bar(figure, image, grid, shrink=0.7)
    return figure


def layer_maps(maps: Array, heads: Sequence[int], tokens: Sequence[str], title: str) -> Figure:
    """Draw maps of one layer, large enough to read the tokens.

    Args:
        maps: [len(heads), T, T], weights from each position (first T) to each position (second T).
        heads: the numbers of the heads.
        tokens: readable names of the T tokens.
        title: title of the figure.
    """
    n_columns = math.ceil(math.sqrt(len(heads)))
    n_rows = math.ceil(len(heads) / n_columns)
    side = min(max(0.14 * len(tokens) + 1, 4), 14)  # inches
    figure = new_figure(side * n_columns + 0.8, side * n_rows + 0.4, dpi=100)
    places = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, head, weights in zip(places.flat, heads, maps, strict=False):
        image = _draw_map(axes, weights)
        axes.set(title=f"head {head}", xlabel="token looked at", ylabel="token that looks")
        _label_tokens(axes, tokens)
    for axes in places.flat[len(heads) :]:
        axes.remove()
    _set_title(figure, title)
    # The colour bar is about as long as a map's side, for any number of heads.
    _add_weights_bar(figure, image, list(places.flat[: len(heads)]), shrink=1 / n_rows)
    return figure


def attention_split(split: AttentionShares, parts: Sequence[str], title: str) -> Figure:
    """Draw the share of attention that each part gets, for every layer and head.

    The upper row shows the attention of ``_classify_``, the lower row that of the ending's tokens;
    there is one column per part.

    Args:
        split: the averages.
        parts: the names of the P parts.
        title: title of the figure.
    """
    rows = (
        ("from _classify_", split.classify.numpy() * 100, split.even_classify.tolist()),
        ("from the ending", split.ending.numpy() * 100, split.even_ending.tolist()),
    )
    colours = _matplotlib().colormaps["Blues"].with_extremes(bad=UNSEEN)
    norm = _matplotlib("colors").Normalize(0, max(float(shares.max()) for _, shares, _ in rows))
    figure = new_figure(1.45 * len(parts) + 1.5, 4.8)
    grid = figure.subplots(len(rows), len(parts), sharex=True, sharey=True)
    for row, (source, shares, even) in enumerate(rows):
        for column, part in enumerate(parts):
            axes = grid[row, column]
            # A part that comes later than the tokens that attend is grey.
            seen = shares[:, :, column] if even[column] else np.full(shares.shape[:2], np.nan)
            image = axes.imshow(seen, cmap=colours, norm=norm, aspect="equal")
            below = f"even: {even[column] * 100:.1f} %" if even[column] else "(comes later)"
            axes.set_title(f"{part}\n{below}", fontsize=9)
            _number_cells(axes, shares.shape[:2])
        grid[row, 0].set_ylabel(f"{source}\nlayer")
    for axes in grid[-1]:
        axes.set_xlabel("head")
    _set_title(figure, title)
    figure.colorbar(image, ax=grid, label="share of attention, %", shrink=0.7)
    return figure


def _draw_map(axes: Axes, weights: Array) -> Any:
    """Draw weights [T, T] as an image; pairs with a later token have no weight and are grey."""
    unseen = np.triu(np.ones(weights.shape, dtype=bool), 1)
    colours = _matplotlib().colormaps["Blues"].with_extremes(bad=UNSEEN)
    # Most weights are near 1 / T: a scale of square roots keeps them apart.
    norm = _matplotlib("colors").PowerNorm(0.5, 0, 1)
    image = np.ma.masked_array(weights, unseen)
    return axes.imshow(image, cmap=colours, norm=norm, interpolation="nearest")


def _add_weights_bar(figure: Figure, image: Any, axes: Any, shrink: float) -> None:
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    label = "attention weight (scale of square roots)"
    bar = figure.colorbar(image, ax=axes, label=label, shrink=shrink, aspect=20 / shrink * 0.7)
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _label_tokens(axes: Axes, tokens: Sequence[str]) -> None:
    """Write tokens at the ticks; all tokens if there is room, otherwise some of them."""
    places = range(0, len(tokens), math.ceil(len(tokens) / 100))
    labels = [tokens[place] for place in places]
    axes.set_xticks(places, labels, fontsize=7, rotation=90)
    axes.set_yticks(places, labels, fontsize=7)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a dollar sign is a dollar sign


def _number_cells(axes: Axes, shape: tuple[int, ...]) -> None:
    """Number layers and heads at the ticks: all of a small model, some of a large one."""
    n_layer, n_head = shape
    axes.set_yticks(range(0, n_layer, math.ceil(n_layer / 6)))
    axes.set_xticks(range(0, n_head, math.ceil(n_head / 6)))


def _set_title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=10).set_parse_math(False)
