"""The texts in the files of a small run: its log, its submission, and its probabilities."""

from __future__ import annotations

import json
from typing import Any

SETTINGS = {"desc": "x", "n_ctx": 512, "submit": True, "run_id": "1"}
# For each story: the chosen ending and the confidence, and the file with both probabilities.
PREDICTIONS = [0, 1, 0, 1, 0, 1]
CONFIDENCE = [0.625, 0.75, 0.9375, 1.0, 0.5, 0.9375]
PROBS_FILE = """\
index\tprediction\tprob_0\tprob_1
0\t0\t0.625\t0.375
1\t1\t0.25\t0.75
2\t0\t0.9375\t0.0625
3\t1\t0.0\t1.0
4\t0\t0.5\t0.5
5\t1\t0.0625\t0.9375
"""


def submission_text(predictions: list[int]) -> str:
    """Return the content of a submission."""
    rows = [f"{index}\t{prediction}" for index, prediction in enumerate(predictions)]
    return "\n".join(["index\tprediction", *rows, ""])


def evaluation(va_acc: float, **changes: Any) -> dict[str, Any]:
    """Return the line of an evaluation in a log, with ``changes`` to its other values."""
    line = {"n_epochs": 1, "n_updates": 46, "tr_cost": 0.7, "va_cost": 0.7, "tr_acc": 50.0}
    return {**line, "va_acc": va_acc, "time": 1.5e9, **changes}


def log_text(*lines: dict[str, Any]) -> str:
    """Return the content of a log: the line of settings, then these lines."""
    return "".join(json.dumps(line) + "\n" for line in (SETTINGS, *lines))
