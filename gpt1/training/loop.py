"""The training loop of every job: updates, evaluations, checkpoints and requests to end.

The loop does not depend on a data set and writes no log. A :class:`Job` yields the data of each
update, computes gradients and evaluates. A :class:`Listener` is called at each event, and writes,
prints or draws it. :class:`~gpt1.training.checkpoint.TrainState` holds everything that changes
while a run trains.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from gpt1.model import DoubleHeadsModel
from gpt1.results.log_lines import UpdateLine
from gpt1.runtime.ahead import made_ahead
from gpt1.runtime.errors import Gpt1Error, Stopped
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.stopping import StopRequests
from gpt1.training.checkpoint import Checkpoints, TrainState

Work = TypeVar("Work")
Prepared = TypeVar("Prepared")
Progress = Callable[[int, int], None]
"""A function that is called with the number of examples done and their total."""

GPU_DELAY = 50
"""Number of updates whose figures may stay on a GPU, because reading a figure waits for the GPU."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        n_epochs, n_updates: number of whole epochs, and of updates, before the evaluation.
        figures: costs and metrics by their names in the log, in the order of the log.
        score: the figure that picks the best epoch; higher is better.
    """

    n_epochs: int
    n_updates: int
    figures: Mapping[str, float]
    score: float


class Job(Protocol[Work, Prepared]):
    """A job of the training loop: data, gradients and evaluations.

    Attributes:
        n_updates: number of updates of the whole run.
        updates_per_epoch: number of updates in one pass over the training data.
    """

    n_updates: int
    updates_per_epoch: int

    def work(self) -> Iterator[Work]:
        """Yield the data of each update, from the first one; they depend on the seed alone."""

    def prepare(self, work: Work, ranks: Ranks) -> Prepared:
        """Prepare the data of an update for the model.

        This is called in a thread while the model computes an earlier update.
        """

    def gradients(
        self, replica: Replica[DoubleHeadsModel], prepared: Prepared, update: int
    ) -> Tensor:
        """Compute the gradients of an update in the model.

        Args:
            replica: holds the model.
            prepared: what :meth:`prepare` returned for this update.
            update: the number of the update.

        Returns:
            The classification cost and the language-model cost, [2]; 0 for a loss that the job
            does not have.
        """

    def warning(self, update: UpdateLine) -> str | None:
        """Return a warning if the costs of an update show that the run diverges, else None."""

    def evaluation_due(self, update: int) -> bool:
        """Return whether an evaluation follows this update."""

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        """Evaluate the model on all ranks together, and call ``progress`` now and then."""

    def identity(self) -> Mapping[str, Any]:
        """Return what a resumed run must share with the run that it continues."""

    def describe(self, work: Work) -> str:
        """Name the examples of an update, for messages."""


class Listener:
    """Receives the events of a run; a method that a subclass does not override does nothing."""

    def prepared(self, description: Sequence[str]) -> None:
        """Handle the end of the preparation: all files have been read.

        Args:
            description: lines that describe the run.
        """

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Handle the beginning of training.

        Args:
            state: the state at the beginning.
            n_updates: number of updates of the whole run.
            resumed: whether the state comes from a checkpoint.
        """

    def updated(self, update: UpdateLine) -> None:
        """Handle the figures of an update; on a GPU, later updates may have been made already."""

    def stepped(self, n_updates: int) -> None:
        """Handle the end of update number ``n_updates``; its figures may not be known yet."""

    def warned(self, update: UpdateLine, message: str) -> None:
        """Handle a warning: the costs of an update show that the run diverges."""

    def evaluating(self, done: int, total: int) -> None:
        """Handle the progress of an evaluation: ``done`` of ``total`` examples are predicted."""

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Handle the result of an evaluation; the model has the parameters that were evaluated."""

    def closed(self) -> None:
        """Handle the end of training, by success or by an error."""

    def finished(self, summary: Sequence[str]) -> None:
        """Handle the end of the run: all results have been written.

        Args:
            summary: lines that summarize the results.
        """


class _Waiting(NamedTuple):
    """An update whose costs and gradient norm have not been read from the device yet."""

    n_updates: int
    lr: float
    time: float
    figures: Tensor


class Trainer:
    """Train a model on a job until the job is done, the run diverges, or a request to end comes.

    Args:
        job: the data, gradients and evaluations of the run.
        state: the initial state, which training changes.
        ranks: the processes of the run.
        checkpoints: the checkpoints of the run, to which the state is saved.
        listeners: receive the events of the run; they are called on the main rank only.
        stop: the requests to end.
        save_every: number of updates between checkpoints, in addition to those at the end of each
            epoch; 0 for no additional ones.
        with_lm: whether the job has a language-model loss.
        with_clf: whether the job has a classifier's loss.
    """

    def __init__(
        self,
        job: Job[Any, Any],
        state: TrainState,
        ranks: Ranks,
        *,
        checkpoints: Checkpoints,
        listeners: Sequence[Listener],
        stop: StopRequests,
        save_every: int = 0,
        with_lm: bool = True,
        with_clf: bool = True,
    ) -> None:
        self.job, self.state, self.ranks = job, state, ranks
        self.replica = Replica(state.model, ranks)
        self.checkpoints, self.stop = checkpoints, stop
        self.listeners = listeners if ranks.is_main else ()
        self.save_every, self.with_lm, self.with_clf = save_every, with_lm, with_clf
        self._delay = 0 if ranks.device.type == "cpu" else GPU_DELAY
        self._waiting: list[_Waiting] = []
        self._recent: deque[tuple[int, Any]] = deque(maxlen=GPU_DELAY + 1)

    def restore(self) -> bool:
        """Restore the newest checkpoint of the run; return False if there is none.

        Raises:
            InputError: the checkpoint is of a run with other settings, or no checkpoint can be
                read.
        """
        return self.checkpoints.restore(self.state, self.job.identity(), self.job.n_updates)

    def updates_saved(self) -> Iterator[int]:
        """Yield the numbers of the remaining updates after which a checkpoint is written."""
        for update in range(self.state.n_updates + 1, self.job.n_updates + 1):
            if self._is_saved(update):
                yield update

    def train(self, *, resumed: bool) -> None:
        """Make all remaining updates, with the evaluations and checkpoints between them.

        Args:
            resumed: whether the state was restored from a checkpoint. Otherwise the checkpoints of
                an earlier run are removed.

        Raises:
            Gpt1Error: the run diverged, or a result cannot be written.
            Stopped: a request to end came; the state is saved.
        """
        if not resumed and self.ranks.is_main:
            self.checkpoints.clear()
        try:
            for listener in self.listeners:
                listener.started(self.state, n_updates=self.job.n_updates, resumed=resumed)
            with self.stop.held():  # A request to end is obeyed between updates.
                self._make_updates()
            self._read_waiting()
        finally:
            for listener in reversed(self.listeners):
                listener.closed()

    def _make_updates(self) -> None:
        state, done = self.state, self.state.n_updates
        state.model.train()
        if not state.evaluated:  # The run that is resumed ended before its evaluation.
            self._evaluate()
        # The checkpoint of a resumed run holds the first updates already.
        remaining = islice(enumerate(self.job.work(), start=1), done, None)
        with made_ahead(remaining, lambda each: self.job.prepare(each[1], self.ranks)) as updates:
            for (update, work), prepared in updates:
                self._update(update, work, prepared)
                state.evaluated = not self.job.evaluation_due(update)
                self._obey()
                if not state.evaluated:
                    self._evaluate()
                if self._is_saved(update):
                    self._save()
        self._obey()  # A request may have come after the last update.

    def _is_saved(self, update: int) -> bool:
        """Return whether a checkpoint is written after an update."""
        every = self.save_every
        ends = update % self.job.updates_per_epoch == 0 or update == self.job.n_updates
        return ends or bool(every and update % every == 0)

    def _update(self, update: int, work: Any, prepared: Any) -> None:
        """Make one update: the gradients of all towers averaged, then the optimizer."""
        state = self.state
        self._recent.append((update, work))
        began = time.monotonic()
        costs = self.job.gradients(self.replica, prepared, update)
        figures = torch.cat([costs, state.optimizer.measure().reshape(1)])
        if not self._delay:
            self._check(update, figures.tolist())
        state.optimizer.step()
        state.n_updates = update
        lr = state.optimizer.current_lr()
        self._waiting.append(_Waiting(update, lr, time.time(), figures))
        state.optimizer.zero_grad()
        seconds = max(1, round(time.monotonic() - began))
        self.stop.waits_for = f"the update under way (about {seconds} s)"
        for listener in self.listeners:
            listener.stepped(update)
        if len(self._waiting) > self._delay:
            self._read_waiting()

    def _read_waiting(self) -> None:
        """Read the figures that are still on the device, check them, and call the listeners."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        rows = torch.stack([each.figures for each in waiting]).tolist()
        for each, (clf, lm, norm) in zip(waiting, rows, strict=True):
            self._check(each.n_updates, (clf, lm, norm))
            update = UpdateLine(
                n_updates=each.n_updates,
                clf_cost=clf if self.with_clf else None,
                lm_cost=lm if self.with_lm else None,
                lr=each.lr,
                grad_norm=norm,
                time=each.time,
            )
            warning = self.job.warning(update)
            for listener in self.listeners:
                listener.updated(update)
                if warning:
                    listener.warned(update, warning)

    def _check(self, update: int, figures: Sequence[float]) -> None:
        """Raise an error if a cost or the gradient of an update is not finite."""
        names = ("classification cost", "language-model cost", "gradient norm")
        bad = [f"{name} {x}" for name, x in zip(names, figures, strict=True) if not isfinite(x)]
        if not bad:
            return
        if self.state.n_updates < update:  # The state is still that before the failing update.
            self._save()
        raise self._diverged(update, " and ".join(bad))

    def _diverged(self, update: int, what: str) -> Gpt1Error:
        """Return the error that names the failing update and the last good checkpoint.

        Args:
            update: number of the update.
            what: description of the value that is not finite.
        """
        saved = self.checkpoints.newest()
        state = f"the last good state is {saved}" if saved else "no state was saved before"
        examples = [
            f" The examples of the update are {self.job.describe(work)}."
            for number, work in self._recent
            if number == update
        ]
        error = Gpt1Error(
            f"update {update}: {what}; the run has diverged and was stopped, {state}."
            f"{''.join(examples)} Look at them, or train anew with a lower --lr or --precision "
            "fp32."
        )
        error.reported_elsewhere = not self.ranks.is_main
        return error

    def _evaluate(self) -> None:
        """Evaluate, call the listeners, and note the best score.

        Raises:
            Gpt1Error: a cost is not finite; the evaluation is not logged then.
            Stopped: a request to end came to a run of one process.
        """
        state = self.state
        self._read_waiting()
        try:
            # Several processes must end together; one alone may end during an evaluation.
            with self.stop.obeyed() if self.ranks.world == 1 else nullcontext():
                found = self.job.evaluate(state, self.ranks, self._tell_progress)
        except Stopped:
            self._obey()
            raise
        bad = [f"{name} {x}" for name, x in found.figures.items() if not isfinite(x)]
        if bad:
            what = f"{' and '.join(bad)} in the evaluation after it"
            raise self._diverged(state.n_updates, what)
        state.evaluated = True
        is_best = found.score > state.best_score
        state.best_score = max(state.best_score, found.score)
        for listener in self.listeners:
            listener.evaluated(found, is_best=is_best)

    def _tell_progress(self, done: int, total: int) -> None:
        for listener in self.listeners:
            listener.evaluating(done, total)

    def _obey(self) -> None:
        """Save the state and raise :class:`Stopped` on all ranks if any rank was asked to end."""
        request = self.stop.signal
        if self.ranks.any_rank(request is not None):
            self._save()
            message = f"after update {self.state.n_updates} of {self.job.n_updates}, all saved"
            raise Stopped(request or signal.SIGTERM, message)

    def _save(self) -> None:
        """Save the state; all ranks wait until it is on the disk."""
        self.ranks.on_main_rank(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        self._read_waiting()
        if not all(bool(p.isfinite().all()) for p in self.state.model.parameters()):
            what = "its step has made a parameter infinite or NaN"
            raise self._diverged(self.state.n_updates, what)
        self.checkpoints.save(self.state, self.job.identity())
