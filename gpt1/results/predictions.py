"""Write the predictions for any file: index, prediction, and perhaps probabilities.

Axes: n examples, C outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from gpt1.results.submissions import HEADER
from gpt1.tasks.targets import Classes, Target


def prediction_table(
    target: Target, predictions: Sequence[float], probabilities: npt.NDArray[Any] | None = None
) -> str:
    """Return the text of a table in the format of a submission.

    Args:
        target: spells the predictions, and names the columns of probabilities: those of classes by
            the classes, others by numbers from 0.
        predictions: [n], as the target decides them.
        probabilities: [n, C]; each has enough digits to give the same float64 when it is read.
    """
    rows = [[str(index), target.spell(each)] for index, each in enumerate(predictions)]
    header = HEADER
    if probabilities is not None:
        n_outcomes = range(probabilities.shape[1])
        names = target.names if isinstance(target, Classes) else map(str, n_outcomes)
        header = "\t".join([HEADER, *(f"prob_{name}" for name in names)])
        rows = [
            [*row, *map(repr, each)] for row, each in zip(rows, probabilities.tolist(), strict=True)
        ]
    return "\n".join([header, *map("\t".join, rows)]) + "\n"
