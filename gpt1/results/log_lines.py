"""Define the lines in the two logs of a run, and read the logs.

``log/<desc>.jsonl`` holds the settings of the run in its first line, then one line per evaluation.
``log/<desc>.updates.jsonl`` holds one line per update, and lines of events. The module
:mod:`gpt1.training.logs` writes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_lines
from gpt1.runtime.json_files import (
    Count,
    CountFrom1,
    Number,
    NumberOrNull,
    checked,
    parse_object,
    percentage,
    typed,
)
from gpt1.tasks.metrics import ACCURACY, METRICS, Metric

SUFFIX = ".jsonl"
UPDATES_SUFFIX = ".updates.jsonl"

_CUT_OFF = "if a crash cut the line off, delete it."
_OTHER_FILE = "this is no log of a run: name the file that training wrote, log/<desc>.jsonl."


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One evaluation during training, under the names of ``log/<desc>.jsonl``.

    Attributes:
        n_epochs, n_updates: number of whole epochs, and of updates, before the evaluation.
        figures: ``tr_cost`` and ``va_cost``, the mean costs per example in nats, which are not
            finite if the run diverged; and ``tr_`` and ``va_`` with the name of each metric of the
            task, in percent, in the order of the task. In pretraining the costs are per token, and
            ``va_ppl`` and ``va_word_ppl`` are the perplexities of the held-out text per token and
            per word, and ``tokens_per_second`` is the speed of training since the evaluation
            before.
        time: seconds since 1970.
    """

    n_epochs: int
    n_updates: int
    figures: Mapping[str, float]
    time: float

    def as_row(self) -> dict[str, float]:
        """Return the values by their names in the log."""
        counts = {"n_epochs": self.n_epochs, "n_updates": self.n_updates}
        return {**counts, **self.figures, "time": self.time}

    @property
    def is_pretraining(self) -> bool:
        """Whether the evaluation is one of pretraining, which has no metrics of a task."""
        return "va_ppl" in self.figures

    @property
    def metric(self) -> Metric:
        """The first metric, which decides which evaluation of fine-tuning is the best."""
        return _metrics(self.figures)[0]

    @property
    def train_score(self) -> float:
        """The training score by the first metric, in percent."""
        return self.figures[f"tr_{self.metric.name}"]

    @property
    def valid_score(self) -> float:
        """The validation score by the first metric, in percent."""
        return self.figures[f"va_{self.metric.name}"]


@dataclass(frozen=True, kw_only=True)
class UpdateLine:
    """One update, under the names of ``log/<desc>.updates.jsonl``.

    Attributes:
        n_updates: number of the update, from 1.
        clf_cost: mean classification cost, in nats per example; not finite if the run diverged;
            None in pretraining, which has no classifier.
        lm_cost: mean cost of the language model, in nats per token; None without that loss.
        lr: learning rate.
        grad_norm: norm of the gradient before clipping.
        time: seconds since 1970.
    """

    n_updates: CountFrom1
    clf_cost: NumberOrNull
    lm_cost: NumberOrNull
    lr: Number
    grad_norm: Number
    time: Number


class RunLog(NamedTuple):
    """A training log: the settings in its first line, and its evaluations, at least one."""

    path: Path
    settings: dict[str, Any]
    evaluations: list[LogLine]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of the two logs of a run.

    Attributes:
            name: its ``--desc``; with the directory if several runs have that name.
        evaluations: at least one, in the order of the log.
        updates: empty if there is no log of them.
        settings: the first line of its log.
    """

    name: str
    evaluations: list[LogLine]
    updates: list[UpdateLine]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_pretraining(self) -> bool:
        """Whether ``gpt1 pretrain`` made the run."""
        return self.evaluations[0].is_pretraining

    @property
    def best(self) -> LogLine:
        """The first evaluation with the highest validation score, whose parameters are kept.

        In pretraining it is the first evaluation with the lowest held-out cost.
        """
        if self.is_pretraining:
            return min(self.evaluations, key=lambda line: line.figures["va_cost"])
        return max(self.evaluations, key=lambda line: line.valid_score)

    @property
    def updates_per_second(self) -> float | None:
        """The speed of training, from the median time between updates; None if it is not known."""
        gaps = [later.time - line.time for line, later in pairwise(self.updates)]
        typical = median(gaps) if gaps else 0.0
        return 1 / typical if typical > 0 else None


def read_log(path: str | Path) -> list[LogLine]:
    """Read the evaluations in a training log, as :func:`read_run_log` reads them."""
    return read_run_log(path).evaluations


def read_run_log(path: str | Path) -> RunLog:
    """Read a whole log of fine-tuning, in the order of the file.

    Raises:
        InputError: the file is missing, has no evaluation yet, is the log of a pretraining run, or
            has a line that training does not write; the message names the line and the field.
    """
    log = _read_whole_log(path)
    if log.evaluations[0].is_pretraining:
        raise InputError(f"{path}: the log of a pretraining run; name a log of gpt1 train.")
    return log


def _read_whole_log(path: str | Path) -> RunLog:
    """Read a log of fine-tuning or pretraining, in the order of the file."""
    lines = _objects(path, "the training log")
    if not lines:
        raise InputError(f"{path}: the training log is empty; name a file that training wrote.")
    settings, *rows = lines
    if "va_cost" in settings:
        raise InputError(
            f"{path}, line 1: expected the settings of the run, found an evaluation; "
            "name a whole log, with its first line."
        )
    if not rows:
        raise InputError(
            f"{path}: only settings, no evaluation yet; wait for the end of the first epoch, "
            "or leave the log out."
        )
    remedy = "name a log that training wrote."
    kinds = _kinds(rows[0])
    evaluations = []
    for number, row in enumerate(rows, 2):
        figures = checked(kinds, row, f"{path}, line {number}", remedy)
        counts = {name: figures.pop(name) for name in ("n_epochs", "n_updates", "time")}
        evaluations.append(LogLine(**counts, figures=figures))
    return RunLog(Path(path), settings, evaluations)


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics of an evaluation, in order; accuracy if the line names none."""
    found = [METRICS[name[3:]] for name in line if name[:3] == "va_" and name[3:] in METRICS]
    return found or [ACCURACY]


def _kinds(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the values of evaluations must be, by name, in a log with this evaluation."""
    kinds = {"n_epochs": Count, "n_updates": Count, "tr_cost": Number, "va_cost": Number}
    if "va_ppl" in line:
        names = ("va_ppl", "va_word_ppl", "tokens_per_second")
        return {**kinds, **dict.fromkeys(names, Number), "time": Number}
    for metric in _metrics(line):
        kinds |= {f"{part}_{metric.name}": percentage(metric.least) for part in ("tr", "va")}
    return {**kinds, "time": Number}


def read_updates(path: str | Path) -> list[UpdateLine]:
    """Read the updates in a log of updates, in order.

    Lines of events, which have the key ``event``, are left out.

    Raises:
        InputError: the file is missing, or has a line that training does not write; the message
            names the line and the field.
    """
    remedy = "name a log of updates that training wrote."
    lines: list[UpdateLine] = []
    for number, values in enumerate(_objects(path, "the log of updates"), 1):
        if "event" in values:
            continue
        where = f"{path}, line {number}"
        line = typed(UpdateLine, values, where, remedy)
        if lines and line.n_updates <= lines[-1].n_updates:
            raise InputError(
                f"{where}: expected an update after number {lines[-1].n_updates}, found number "
                f"{line.n_updates}; delete the lines that are there twice."
            )
        lines.append(line)
    return lines


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read the runs with these logs of evaluations, each with the log of updates beside it.

    Args:
        paths: the logs of evaluations. Their logs of updates may be among them, as in
            ``log/*.jsonl``; a log that is named twice is read once.

    Raises:
        InputError: a file is missing or was not written by training; the message names the file and
            the line.
    """
    named = list(dict.fromkeys(map(Path, paths)))
    logs = [path for path in named if not path.name.endswith(UPDATES_SUFFIX)]
    for path in named:
        log = path.with_name(path.name.removesuffix(UPDATES_SUFFIX) + SUFFIX)
        if path not in logs and log not in logs:
            raise InputError(f"{path}: a log of updates; name the log of evaluations, {log}.")
    stems = [path.with_name(path.name.removesuffix(SUFFIX)) for path in logs]
    names = [stem.name for stem in stems]
    return [
        Run(
            name=stem.name if names.count(stem.name) == 1 else str(stem),
            evaluations=log.evaluations,
            updates=_updates_beside(stem),
            settings=log.settings,
        )
        for stem, log in zip(stems, map(_read_whole_log, logs), strict=True)
    ]


def _updates_beside(stem: Path) -> list[UpdateLine]:
    path = stem.with_name(stem.name + UPDATES_SUFFIX)
    return read_updates(path) if path.exists() else []


def _objects(path: str | Path, what: str) -> list[dict[str, Any]]:
    """Return the JSON objects in the lines of a file."""
    found = []
    for number, text in enumerate(read_lines(path, what), 1):
        is_other = number == 1 and not text.startswith("{")
        remedy = _OTHER_FILE if is_other else _CUT_OFF
        found.append(parse_object(text, f"{path}, line {number}", remedy))
    return found
