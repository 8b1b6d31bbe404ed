"""Make the runs of a plan: each is claimed by a lock, and its result is one file.

Any number of processes, on any number of machines that share the directory, can work on one plan.
A process that dies holds no lock: another process goes on with its run from the last checkpoint.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import gpt1
from gpt1.datasets import TASKS
from gpt1.reports.statistics import example_interval
from gpt1.reproduction.outcomes import Outcome, Place, Score, shown_left, shown_time
from gpt1.reproduction.plan import PlannedRun
from gpt1.results.log_lines import read_runs
from gpt1.runtime.errors import Gpt1Error, InputError, Stopped, join_problems
from gpt1.runtime.files import check_writable
from gpt1.runtime.locks import RunLock
from gpt1.settings.reproduction import ZEROSHOT
from gpt1.tasks import Task
from gpt1.tasks.targets import Labels
from gpt1.training import capacity
from gpt1.training.checkpoint import checkpoints
from gpt1.training.runs import Result

_TOO_LITTLE = "too little memory on the device; give --recompute or fewer --jobs"


class PredictedSplit(Protocol):
    """The predictions for a split."""

    @property
    def predictions(self) -> Labels:
        """Predictions [n]."""

    @property
    def labels(self) -> Labels | None:
        """The right answers [n]; None if they are not known."""


class ZeroshotResult(Protocol):
    """What ``gpt1.zeroshot`` returns."""

    @property
    def splits(self) -> Mapping[str, PredictedSplit]:
        """The splits by the stems of their submissions."""


@dataclass(frozen=True, kw_only=True)
class Functions:
    """The functions that make a run.

    Attributes:
        fine_tune: :func:`gpt1.fine_tune`.
        zeroshot: :func:`gpt1.zeroshot`.
    """

    fine_tune: Callable[..., Result]
    zeroshot: Callable[..., ZeroshotResult]


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the runs of a plan are made.

    Attributes:
        place: where results go.
        functions: what makes a run.
        say: shows a message to the user.
        finished: is called after each finished run.
        keep_models: keep the best parameters of each run.
        verbose: show the progress of each run.
    """

    place: Place
    functions: Functions
    say: Callable[[str], None]
    finished: Callable[[], object]
    keep_models: bool = False
    verbose: bool = False


def make_runs(runs: Sequence[PlannedRun], work: Work) -> list[PlannedRun]:
    """Make all runs that are neither finished nor being made by another process.

    A run that fails is reported, and the others are made. Runs that another process had claimed
    are looked at again at the end, since that process may have died.

    Returns:
        The runs that other processes are still making.

    Raises:
        Gpt1Error: runs failed; the message has each failure.
        Stopped: a signal asked the program to end; the state of the run under way is saved.
    """
    check_writable(work.place.runs)
    failures: dict[str, str] = {}
    left = list(runs)
    while left:
        n_before = len(left)
        left = [run for run in left if not _try(run, runs, work, failures)]
        if len(left) == n_before:
            break
    if failures:
        problems = [f"{name}: {message}" for name, message in failures.items()]
        raise Gpt1Error(join_problems(problems))
    return left


def _try(run: PlannedRun, runs: Sequence[PlannedRun], work: Work, failures: dict[str, str]) -> bool:
    """Make a run unless it is finished; return whether nothing is left to do for it here."""
    with _claimed(run, work.place) as is_ours:
        if work.place.is_done(run):
            return True
        if not is_ours:
            return False
        work.say(f"{run.name} begins; {shown_left(runs, work.place)}")
        try:
            outcome = make_run(run, work)
        except (Gpt1Error, torch.OutOfMemoryError) as error:
            failures[run.name] = str(error) if isinstance(error, Gpt1Error) else _TOO_LITTLE
            work.say(f"{run.name} failed: {failures[run.name]}")
            return True
        work.say(f"{run.name}: {_summary(outcome)}")
    work.finished()
    return True


@contextmanager
def _claimed(run: PlannedRun, place: Place) -> Iterator[bool]:
    """Claim a run while the block runs; yield whether no other process has claimed it."""
    with RunLock() as lock:
        try:
            lock.take([place.lock(run.name)], run.name)
        except InputError:  # Another process makes this run.
            yield False
        else:
            yield True


def make_run(run: PlannedRun, work: Work) -> Outcome:
    """Make one run and write its result.

    Raises:
        Gpt1Error: the run failed.
        Stopped: a signal asked the program to end.
    """
    start = time.time()
    make = _zeroshot if run.what == ZEROSHOT else _fine_tune
    outcome = make(run, work, start)
    work.place.write(outcome)
    if not work.keep_models:
        shutil.rmtree(work.place.directory / "save" / run.name, ignore_errors=True)
    return outcome


def _fine_tune(run: PlannedRun, work: Work, start: float) -> Outcome:
    """Fine-tune, from the last checkpoint if there is one."""
    flags = {**run.flags, **work.place.output_flags(run.name)}
    resumed = bool(checkpoints(Path(flags["save_dir"], run.name)))
    try:
        result = work.functions.fine_tune(
            run.dataset, resume=resumed, verbose=work.verbose, **flags
        )
    except KeyboardInterrupt as error:
        if isinstance(error.__context__, Stopped):  # It knows which signal it was.
            raise error.__context__ from None
        raise
    config = result.model.module.config
    pairs = {stem: (found, result.data.labels[stem]) for stem, found in result.predictions.items()}
    log = read_runs([result.outputs.log])[0] if result.settings.n_iter else None
    return Outcome(
        **_identity(run),
        scores=tuple(_scores(TASKS[run.dataset], pairs)),
        train_score=None if log is None else log.best.train_score,
        best_epoch=None if log is None else log.best.n_epochs,
        seconds=time.time() - start,
        resumed=resumed,
        command=command_of(run, work.place),
        facts={
            "model": "" if log is None else str(log.settings.get("model_dir")),
            "n_layer": config.n_layer,
            "n_embd": config.n_embd,
            "n_parameters": capacity.n_parameters(config),
            **_versions(str(result.model.module.we.device)),
        },
    )


def _zeroshot(run: PlannedRun, work: Work, start: float) -> Outcome:
    """Predict without fine-tuning."""
    result = work.functions.zeroshot(run.dataset, verbose=work.verbose, **run.flags)
    pairs = {stem: (split.predictions, split.labels) for stem, split in result.splits.items()}
    return Outcome(
        **_identity(run),
        scores=tuple(_scores(TASKS[run.dataset], pairs)),
        train_score=None,
        best_epoch=None,
        seconds=time.time() - start,
        resumed=False,
        command=command_of(run, work.place),
        facts={"model": run.flags["model_dir"], **_versions(run.flags.get("device"))},
    )


def _identity(run: PlannedRun) -> dict[str, Any]:
    names = (
        *("name", "what", "dataset", "seed", "n_transfer", "n_updates", "series"),
        *("configuration", "data", "settings"),
    )
    return {name: getattr(run, name) for name in names}


def _versions(device: str | None) -> dict[str, Any]:
    return {
        "n_threads": torch.get_num_threads(),
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "gpt1_version": gpt1.__version__,
        "torch_version": torch.__version__,
    }


def _scores(task: Task, splits: Mapping[str, tuple[Labels, Labels | None]]) -> Iterator[Score]:
    """Yield the scores on each split whose labels are known, those of test splits first.

    Args:
        task: the data set.
        splits: predictions and labels of the splits by the stems of their submissions.
    """
    for stem in sorted(splits, key=lambda stem: stem.endswith(".dev")):
        predictions, labels = splits[stem]
        if labels is None:
            continue
        for metric in task.metrics:
            low, high = example_interval(metric, predictions, labels)
            score = metric.compute(predictions, labels)
            yield Score(
                split=stem, metric=metric.title, score=score, n=len(labels), low=low, high=high
            )


def _summary(outcome: Outcome) -> str:
    """Return one line with the scores of the first split of a run, and how long it took."""
    first = outcome.scores[0].split if outcome.scores else ""
    scores = [
        f"{score.metric} {score.score:.2f} %" for score in outcome.scores if score.split == first
    ]
    return f"{first} {', '.join(scores)}, {shown_time(outcome.seconds)}"


def command_of(run: PlannedRun, place: Place) -> str:
    """Return the command that makes a run alone."""
    flags: dict[str, Any] = {"dataset": run.dataset, **run.flags}
    words = ["gpt1", "zeroshot" if run.what == ZEROSHOT else "train"]
    if run.what != ZEROSHOT:
        flags |= {"submit": True, **place.output_flags(run.name)}
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)
