"""The results of single runs: one JSON file for each finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from gpt1.reproduction.plan import PlannedRun
from gpt1.runtime.files import atomic_write, read_errors, read_text
from gpt1.runtime.json_files import (
    Count,
    CountOrNull,
    FiniteNumberOrNull,
    Kind,
    Number,
    Text,
    parse_object,
    typed,
)
from gpt1.settings.reproduction import ZEROSHOT
from gpt1.settings.words import counted

_REMEDY = "remove this file, and the run is made again"

_Object = Annotated[dict[str, Any], Kind("an object", lambda x: isinstance(x, dict))]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of a run on one split, in percent.

    Attributes:
        split: the stem of the submission; that of a validation split ends in ``.dev``.
        metric: the title of the metric.
        score: the score.
        n: number of examples of the split; 0 if it is not known.
        low, high: the 95 % interval that comes from the choice of these examples; None if it is not
            known.
    """

    split: Text
    metric: Text
    score: Number
    n: Count
    low: FiniteNumberOrNull
    high: FiniteNumberOrNull

    @property
    def is_test(self) -> bool:
        """Whether the split is a test split."""
        return not self.split.endswith(".dev")


_Scores = Annotated[
    tuple[Score, ...],
    Kind("a list of scores", lambda x: isinstance(x, tuple)),
]
_Bool = Annotated[bool, Kind("true or false", lambda x: isinstance(x, bool))]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run.

    Attributes:
        name, what, dataset, seed, n_transfer, n_updates, series, configuration, data: as in
            :class:`gpt1.reproduction.plan.PlannedRun`.
        settings: the settings that all runs of the configuration share, where they are not the
            defaults.
        scores: on every split whose labels are known, that of the first metric first.
        train_score: the score of the best epoch on training examples, by the first metric.
        best_epoch: the epoch of the best score on the validation split.
        seconds: how long the run took since its last start.
        resumed: whether it was interrupted before that.
        command: the command that makes this run alone.
        facts: the model, the device and the versions of the program and of torch.
    """

    name: Text
    what: Text
    dataset: Text
    seed: CountOrNull
    n_transfer: CountOrNull
    n_updates: CountOrNull
    series: Text
    configuration: Text
    data: Text
    settings: _Object
    scores: _Scores
    train_score: FiniteNumberOrNull
    best_epoch: CountOrNull
    seconds: Number
    resumed: _Bool
    command: Text
    facts: _Object


@dataclass(frozen=True)
class Place:
    """The directory of a reproduction.

    Attributes:
        directory: ``--out``.
    """

    directory: Path

    @property
    def runs(self) -> Path:
        """The directory of the results of single runs, and of their locks."""
        return self.directory / "runs"

    def result(self, name: str) -> Path:
        """Return the file with the result of a run."""
        return self.runs / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Return the file by which a process claims a run."""
        return self.runs / f".{name}.lock"

    def output_flags(self, name: str) -> dict[str, str]:
        """Return the flags of fine-tuning that name the places of its files."""
        kinds = ("log", "save", "submission")
        return {"desc": name, **{f"{kind}_dir": str(self.directory / kind) for kind in kinds}}

    def is_done(self, run: PlannedRun) -> bool:
        """Return whether there is a result of a run."""
        return self.result(run.name).is_file()

    def outcomes(self) -> list[Outcome]:
        """Read the results of all finished runs, in the order of their names.

        Raises:
            InputError: a file is damaged.
        """
        with read_errors(self.runs, "the directory of results"):
            paths = sorted(self.runs.glob("*.json"))
        return [read_outcome(path) for path in paths]

    def write(self, outcome: Outcome) -> None:
        """Write the result of a run, whole or not at all."""
        with atomic_write(self.result(outcome.name), "w") as file:
            json.dump(asdict(outcome), file, indent=1)
            file.write("\n")


def read_outcome(path: Path) -> Outcome:
    """Read the result of a run.

    Raises:
        InputError: the file is damaged.
    """
    values = parse_object(read_text(path, "the result of a run"), str(path), _REMEDY)
    scores = values.get("scores")
    if isinstance(scores, list) and all(isinstance(each, dict) for each in scores):
        values["scores"] = tuple(typed(Score, each, str(path), _REMEDY) for each in scores)
    return typed(Outcome, values, str(path), _REMEDY)


def time_left(runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> tuple[float, int]:
    """Estimate how long the runs that are not finished will take, one after another.

    A run takes as long as the median of the finished runs of its data set and experiment, else of
    its data set. Runs that were interrupted count only where there are no others.

    Args:
        runs: all runs of a plan.
        outcomes: the results of finished runs.

    Returns:
        The seconds, and the number of runs to which no finished run is similar.
    """
    done = {outcome.name for outcome in outcomes}
    seconds, n_unknown = 0.0, 0
    for run in runs:
        if run.name in done:
            continue
        of_task = [
            each
            for each in outcomes
            if each.dataset == run.dataset and (each.what == ZEROSHOT) == (run.what == ZEROSHOT)
        ]
        similar = [each for each in of_task if each.what == run.what] or of_task
        whole = [each for each in similar if not each.resumed] or similar
        if whole:
            seconds += median(each.seconds for each in whole)
        else:
            n_unknown += 1
    return seconds, n_unknown


def shown_left(runs: Sequence[PlannedRun], place: Place) -> str:
    """Say how many runs are left, and how long they will take as far as that is known."""
    n_left = sum(not place.is_done(run) for run in runs)
    text = f"{n_left} of {counted(len(runs), 'run')} {'is' if n_left == 1 else 'are'} left"
    seconds, n_unknown = time_left(runs, place.outcomes())
    if n_left > n_unknown:
        known = f"{n_left - n_unknown} of them take " if n_unknown else ""
        text += f", {known}about {shown_time(seconds)} one after another"
    return text


def shown_time(seconds: float) -> str:
    """Spell a time in hours and minutes, or in seconds below two minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
