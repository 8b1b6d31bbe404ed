"""Results of runs that were never made, for tests of the report, and plans of tiny tasks."""

from __future__ import annotations

from typing import Any

from gpt1.datasets import TASKS
from gpt1.reproduction.outcomes import Outcome, Score
from gpt1.reproduction.plan import Plan, make_plan
from gpt1.settings.reproduction import REPRODUCE, ReproductionSettings


def plan_of(**settings: Any) -> Plan:
    """Return the plan for settings that are given by their names."""
    return make_plan(ReproductionSettings.of(REPRODUCE.values(settings)))


def outcome(
    dataset: str, what: str, seed: int | None, *scores: float, split: str = "", **fields: Any
) -> Outcome:
    """Return the result of a run.

    Args:
        dataset, what, seed: those of the run.
        scores: one for each metric of the task.
        split: the stem of the split [the validation split].
        fields: other fields of :class:`Outcome`.
    """
    task = TASKS[dataset]
    split = split or f"{task.submission}.dev"
    layers = "" if fields.get("n_transfer") is None else fields["n_transfer"]
    values: dict[str, Any] = {
        "name": f"{dataset}-{what}{layers}-seed{seed}",
        "what": what,
        "dataset": dataset,
        "seed": seed,
        "n_transfer": None,
        "n_updates": None,
        "series": "",
        "configuration": "aaaaaaaa",
        "data": "dddddddd",
        "settings": {"n_ctx": 128.0},
        "scores": tuple(
            Score(split=split, metric=metric.title, score=x, n=200, low=x - 5, high=x + 5)
            for metric, x in zip(task.metrics, scores, strict=True)
        ),
        "train_score": 90.0,
        "best_epoch": 2,
        "seconds": 60.0,
        "resumed": False,
        "command": f"gpt1 train --dataset {dataset}",
        "facts": {"model": "mine", "n_layer": 2.0, "n_embd": 16.0, "device": "cpu"},
    }
    return Outcome(**{**values, **fields})
