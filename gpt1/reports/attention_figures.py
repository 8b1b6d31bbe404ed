"""Draw attention maps, and how attention splits over the parts of a choice (the extra ``plots``).

Axes: L layers, H heads, T positions, P parts of a choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.reports.figures import COLOURS, matplotlib, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt1.inference.attention import AttentionShares

Array = npt.NDArray[np.floating[Any]]

UNSEEN = "#e4e4e4"  # The colour of later tokens, on which a token has no attention weight.
SURPLUS = 50  # The scale of shares minus even shares ends here, in percentage points.


class _Size(NamedTuple):
    """How large the tokens of a map are drawn.

    Attributes:
        font: in points.
        step: from one token to the next, in inches.
        most: tokens that are labelled; of longer sequences every second, third and so on.
    """

    font: float
    step: float
    most: int


_ONE_MAP = _Size(font=10, step=0.2, most=100)
_SEVERAL_MAPS = _Size(font=8, step=0.16, most=50)


def map_grid(maps: Array, title: str, delimiter: int) -> Figure:
    """Draw all maps of a model on one sequence, small: one row per layer, one column per head.

    Args:
        maps: [L, H, T, T], the position that looks, then the one looked at.
        title: of the figure.
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
    set_title(figure, title)
    figure.supxlabel("token looked at (lines: _delimiter_)", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    _set_weights(figure.colorbar(image, ax=grid, shrink=0.7, aspect=20))
    return figure


def layer_maps(maps: Array, heads: Sequence[int], tokens: Sequence[str], title: str) -> Figure:
    """Draw maps of one layer, large enough to read the tokens.

    Args:
        maps: [len(heads), T, T], the position that looks, then the one looked at.
        heads: their numbers.
        tokens: the T tokens, as words.
        title: of the figure.
    """
    n_columns = math.ceil(math.sqrt(len(heads)))
    n_rows = math.ceil(len(heads) / n_columns)
    size = _ONE_MAP if len(heads) == 1 else _SEVERAL_MAPS
    every = math.ceil(len(tokens) / size.most)
    side = max(size.step * len(tokens) / every, 3) + 0.09 * size.font + 0.8  # inches
    figure = new_figure(side * n_columns + 0.8, side * n_rows + 0.3, "compressed")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for place, (head, weights) in enumerate(zip(heads, maps, strict=True)):
        axes = grid.flat[place]
        image = _draw_map(axes, weights)
        axes.set_title(f"head {head}")
        _label_tokens(axes, tokens, every, size.font)
        if place % n_columns == 0:
            axes.set_ylabel("token that looks")
        if place + n_columns >= len(heads):
            axes.set_xlabel("token looked at")
    for axes in grid.flat[len(heads) :]:
        axes.remove()
    set_title(figure, title)
    # Inside a map's own axes the bar is as tall as the map.
    beside = grid[0, -1].inset_axes((1.04, 0, 0.04, 1))
    _set_weights(figure.colorbar(image, cax=beside))
    return figure


def attention_split(split: AttentionShares, parts: Sequence[str], title: str) -> Figure:
    """Draw which parts of a choice get more attention than their length gives them.

    The colour of a layer and head is the share of attention that a part gets, minus the share
    that it would get if all visible tokens weighed the same. The scale is the same in every
    picture. Above is the attention of ``_classify_``, below that of the ending's tokens; each part
    has a column.

    Args:
        split: the averages.
        parts: the names of the P parts.
        title: of the figure.
    """
    rows = (
        ("from _classify_", split.classify.numpy() * 100, split.even_classify.tolist()),
        ("from the ending", split.ending.numpy() * 100, split.even_ending.tolist()),
    )
    colours = matplotlib().colormaps["RdBu_r"].with_extremes(bad=UNSEEN)
    norm = matplotlib("colors").Normalize(-SURPLUS, SURPLUS)
    figure = new_figure(1.45 * len(parts) + 1.3, 4.5, "compressed")
    grid = figure.subplots(len(rows), len(parts), sharex=True, sharey=True)
    for row, (source, shares, even) in enumerate(rows):
        for column, part in enumerate(parts):
            axes = grid[row, column]
            # What no token sees, because it comes later, is grey.
            surplus = shares[:, :, column] - (even[column] * 100 if even[column] else np.nan)
            image = axes.imshow(surplus, cmap=colours, norm=norm, aspect="equal")
            below = f"even: {even[column] * 100:.1f} %" if even[column] else "(comes later)"
            axes.set_title(f"{part}\n{below}", fontsize=9)
            _number_cells(axes, shares.shape[:2])
        grid[row, 0].set_ylabel(f"{source}\nlayer")
    for axes in grid[-1]:
        axes.set_xlabel("head")
    set_title(figure, title)
    bar = figure.colorbar(image, ax=grid, shrink=0.9, extend="both", pad=0.01)
    bar.set_label("share minus even share, points")
    return figure


def _draw_map(axes: Axes, weights: Array) -> Any:
    """Draw [T, T] weights as an image; pairs with a later token, which have none, are grey."""
    unseen = np.triu(np.ones(weights.shape, dtype=bool), 1)
    colours = matplotlib().colormaps["Blues"].with_extremes(bad=UNSEEN)
    # Most weights are near 1 / T: a scale of square roots keeps them apart.
    norm = matplotlib("colors").PowerNorm(0.5, 0, 1)
    image = np.ma.masked_array(weights, unseen)
    return axes.imshow(image, cmap=colours, norm=norm, interpolation="nearest")


def _set_weights(bar: Any) -> None:
    """Label a colour bar of attention weights."""
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar.set_label("attention weight (scale of square roots)")
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _label_tokens(axes: Axes, tokens: Sequence[str], every: int, font: float) -> None:
    """Write every first, second, third, ... token at the ticks."""
    places = range(0, len(tokens), every)
    labels = [tokens[place] for place in places]
    axes.set_xticks(places, labels, fontsize=font, rotation=90)
    axes.set_yticks(places, labels, fontsize=font)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # A dollar sign is a dollar sign.


def _number_cells(axes: Axes, shape: tuple[int, ...]) -> None:
    """Number layers and heads at the ticks: all of a small model, some of a large one."""
    n_layer, n_head = shape
    axes.set_yticks(range(0, n_layer, math.ceil(n_layer / 6)))
    axes.set_xticks(range(0, n_head, math.ceil(n_head / 6)))
