"""The training loop, for every job: updates, evaluations, checkpoints, requests to end.

The loop knows no data set and writes no log. A :class:`Job` yields work, evaluates and describes
itself; a :class:`Listener` is told what happens and writes, prints or draws it. What changes while
a run trains is in :class:`~gpt1.training.checkpoint.TrainState`.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from gpt1.model import DoubleHeadsModel
from gpt1.results.log_lines import UpdateLine
from gpt1.runtime.errors import Gpt1Error, Stopped
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.stopping import StopRequests
from gpt1.training.checkpoint import Checkpoints, TrainState

Work = TypeVar("Work")
Progress = Callable[[int, int], None]
"""Takes the number of examples done and their total."""

GPU_DELAY = 50
"""Updates whose figures may wait on a GPU: to read a number from a GPU is to wait for it."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        n_epochs, n_updates: after how many whole epochs and updates.
        figures: costs and metrics by their name in the log, in the order of the log.
        score: the figure that picks the best epoch; higher is better.
    """

    n_epochs: int
    n_updates: int
    figures: Mapping[str, float]
    score: float


class Job(Protocol[Work]):
    """What a run trains on.

    Attributes:
        n_updates: updates of the whole run.
        updates_per_epoch: updates of one pass over the training data.
    """

    n_updates: int
    updates_per_epoch: int

    def work(self) -> Iterator[Work]:
        """Yield the data of each update, from the first: the seed alone decides them."""

    def gradients(self, replica: Replica[DoubleHeadsModel], work: Work, update: int) -> Tensor:
        """Leave an update's gradients in the model; return its costs [2]: classification, LM."""

    def warning(self, update: UpdateLine) -> str | None:
        """Return a warning if the costs of an update show that the run diverges."""

    def evaluation_due(self, update: int) -> bool:
        """Whether an evaluation follows this update."""

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        """Evaluate the model on all ranks together, and call ``progress`` now and then."""

    def identity(self) -> Mapping[str, Any]:
        """What a continued run must share with the run it continues."""

    def describe(self, work: Work) -> str:
        """Name the examples of an update, for messages."""


class Listener:
    """Is told what a run does. Every method does nothing unless a subclass has its own."""

    def prepared(self, description: Sequence[str]) -> None:
        """All files are read; the lines say what the run is about to do."""

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Training begins, from nothing or from a checkpoint, to end after ``n_updates``."""

    def updated(self, update: UpdateLine) -> None:
        """The figures of an update are known; on a GPU this may be some updates later."""

    def stepped(self, n_updates: int) -> None:
        """An update is made; its figures may not be known yet."""

    def warned(self, update: UpdateLine, message: str) -> None:
        """The costs of an update show that the run diverges."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has predicted ``done`` of ``total`` examples; tells this more than once."""

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """An evaluation is done; the model still has the parameters that were evaluated."""

    def closed(self) -> None:
        """Training is over, in whatever way."""

    def finished(self, summary: Sequence[str]) -> None:
        """All results are written; the lines say which."""


class _Waiting(NamedTuple):
    """An update whose figures [clf cost, LM cost, gradient norm] are still on the device."""

    n_updates: int
    lr: float
    time: float
    figures: Tensor


class Trainer:
    """Train a model on a job until the job is done, it diverges, or a request to end comes.

    Args:
        job: what to train on.
        state: where to start from, and what changes.
        ranks: the processes of the run.
        checkpoints: where the state is saved.
        listeners: who is told what happens; on the main rank only.
        stop: requests to end.
        save_every: updates between checkpoints, besides the end of each epoch; 0 for none.
        with_lm: whether the job has a language-model loss.
    """

    def __init__(
        self,
        job: Job[Any],
        state: TrainState,
        ranks: Ranks,
        *,
        checkpoints: Checkpoints,
        listeners: Sequence[Listener],
        stop: StopRequests,
        save_every: int = 0,
        with_lm: bool = True,
    ) -> None:
        self.job, self.state, self.ranks = job, state, ranks
        self.replica = Replica(state.model, ranks)
        self.checkpoints, self.stop = checkpoints, stop
        self.listeners = listeners if ranks.is_main else ()
        self.save_every, self.with_lm = save_every, with_lm
        self._delay = 0 if ranks.device.type == "cpu" else GPU_DELAY
        self._waiting: list[_Waiting] = []
        self._recent: deque[tuple[int, Any]] = deque(maxlen=GPU_DELAY + 1)

    def restore(self) -> bool:
        """Go back to the newest checkpoint of the run; return whether there is one.

        Raises:
            InputError: the checkpoint is of a run with other settings, or none can be read.
        """
        return self.checkpoints.restore(self.state, self.job.identity(), self.job.n_updates)

    def updates_saved(self) -> Iterator[int]:
        """Yield the updates still to be made after which a checkpoint is written."""
        for update in range(self.state.n_updates + 1, self.job.n_updates + 1):
            if self._is_saved(update):
                yield update

    def train(self, *, resumed: bool) -> None:
        """Make all updates that are left, with the evaluations and checkpoints between them.

        Args:
            resumed: whether the state was restored from a checkpoint; otherwise the checkpoints
                that an earlier run left are removed.

        Raises:
            Gpt1Error: the run diverged, or a result cannot be written.
            Stopped: the run was asked to end; its state is saved.
        """
        if not resumed and self.ranks.is_main:
            self.checkpoints.clear()
        try:
            for listener in self.listeners:
                listener.started(self.state, n_updates=self.job.n_updates, resumed=resumed)
            with self.stop.held():  # requests to end are obeyed between updates
                self._make_updates()
            self._read_waiting()
        finally:
            for listener in reversed(self.listeners):
                listener.closed()

    def _make_updates(self) -> None:
        state, done = self.state, self.state.n_updates
        state.model.train()
        if not state.evaluated:  # the run that is continued was stopped before it could
            self._evaluate()
        for update, work in enumerate(self.job.work(), start=1):
            if update <= done:  # it is in the checkpoint already
                continue
            self._update(update, work)
            state.evaluated = not self.job.evaluation_due(update)
            self._obey()
            if not state.evaluated:
                self._evaluate()
            if self._is_saved(update):
                self._save()
        self._obey()  # a request that came after the last update

    def _is_saved(self, update: int) -> bool:
        """Return whether a checkpoint is written after an update."""
        every = self.save_every
        return update % self.job.updates_per_epoch == 0 or bool(every and update % every == 0)

    def _update(self, update: int, work: Any) -> None:
        """Make one update: the gradients of all towers averaged, then the optimizer."""
        state = self.state
        self._recent.append((update, work))
        began = time.monotonic()
        costs = self.job.gradients(self.replica, work, update)
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
        """Read the figures that wait on the device, check them, and tell the listeners."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        rows = torch.stack([each.figures for each in waiting]).tolist()
        for each, (clf, lm, norm) in zip(waiting, rows, strict=True):
            self._check(each.n_updates, (clf, lm, norm))
            update = UpdateLine(
                n_updates=each.n_updates,
                clf_cost=clf,
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
        if self.state.n_updates < update:  # the state before the failing update is still there
            self._save()
        raise self._diverged(update, " and ".join(bad))

    def _diverged(self, update: int, what: str) -> Gpt1Error:
        """Return the error that names the failing update and the state that is left.

        Args:
            update: its number.
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
        """Evaluate, tell the listeners, and note the best score.

        Raises:
            Gpt1Error: a cost is not finite; nothing is logged or kept then.
            Stopped: a run of one process was asked to end.
        """
        state = self.state
        self._read_waiting()
        try:
            # One process alone may leave at once; several must leave together.
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
        """Save and raise :class:`Stopped` on all ranks if any of them was asked to end."""
        request = self.stop.signal
        if self.ranks.any_rank(request is not None):
            self._save()
            message = f"after update {self.state.n_updates} of {self.job.n_updates}, all saved"
            raise Stopped(request or signal.SIGTERM, message)

    def _save(self) -> None:
        """Save the state; no rank goes on before it is on the disk."""
        self.ranks.on_main_rank(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        self._read_waiting()
        if not all(bool(p.isfinite().all()) for p in self.state.model.parameters()):
            what = "its step has made a parameter infinite or NaN"
            raise self._diverged(self.state.n_updates, what)
        self.checkpoints.save(self.state, self.job.identity())
