"""The loop of the original: updates, evaluations, checkpoints, and the submission."""

from __future__ import annotations

import signal
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from math import isfinite, log
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import shuffle
from tqdm import tqdm

import gpt1
from gpt1.batches.packing import ChoiceArrays
from gpt1.datasets import story_cloze as datasets
from gpt1.inference.prediction import Score, predict_logits, score
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.opt.adam import OpenAIAdam
from gpt1.reports.calibration import write_probs
from gpt1.runtime.device import environment
from gpt1.runtime.errors import Gpt1Error, InputError, Stopped, join_problems
from gpt1.runtime.ranks import Ranks, Replica, tower_seed
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.training import Settings, Sources
from gpt1.training import capacity, checkpoint, submissions
from gpt1.training.logs import JsonLines, UpdateLog
from gpt1.training.outputs import Outputs
from gpt1.training.prepare import Task
from gpt1.training.steps import tower_gradients
from gpt1.weights import jl
from gpt1.weights import parameters as weights

if TYPE_CHECKING:
    from gpt1.training.tensorboard import TensorBoard

# Updates of the first epoch after which the original evaluates, besides each epoch's end.
EXTRA_EVALUATIONS = (1000, 2000, 4000, 8000, 16000, 32000)
# What may differ between a run and its continuation: where things are, and where they run.
FREE_ON_RESUME = {
    *("desc", "log_dir", "save_dir", "submission_dir", "data_dir", "model_dir", "encoder_path"),
    *("bpe_path", "init_params", "n_embd", "n_head", "n_layer", "analysis", "device", "resume"),
    *("save_every", "fast", "probs", "tensorboard", "deterministic"),
}
GPU_LOG_DELAY = 50  # updates whose numbers may wait on a GPU before they are logged

# A run is said to diverge when the mean cost of an update exceeds so many times the cost of a
# uniform guess, the logarithm of the number of outcomes. A language model begins at about that cost
# with fresh weights, and far below with trained ones. At three times, the right token has on
# average (the geometric mean) the probability V**-3: only weights that were destroyed are so sure
# of wrong tokens. There are few classes, so that one example costs several times ln 2 where a sound
# model is confidently wrong, and a batch may be small: at ten times, two classes give the right one
# a probability of 2**-10 on average.
CLF_LIMIT, LM_LIMIT = 10, 3


def divergence_warning(
    update: int, clf_cost: float, lm_cost: float, *, n_classes: int, n_rows: int
) -> str | None:
    """A warning if the mean costs of an update show that the run diverges, or None.

    Args:
        update: its number.
        clf_cost: classification cost, in nats per example.
        lm_cost: language-model cost, in nats per token; 0 without that loss.
        n_classes: classes, or choices.
        n_rows: rows of ``we``, over which the softmax of the language model runs.
    """
    limits = (
        ("classification", clf_cost, CLF_LIMIT, n_classes),
        ("language-model", lm_cost, LM_LIMIT, n_rows),
    )
    found = [
        f"the {name} cost is {cost:.4g}, above {factor} times ln {n} = {factor * log(n):.4g}"
        for name, cost, factor, n in limits
        if cost > factor * log(n)
    ]
    if not found:
        return None
    return (
        f"update {update}: {', and '.join(found)}. The run has probably diverged, and then its "
        "results are of no use: train anew with a lower --lr."
    )


class Trainer:
    """A run under way: model, optimizer, logs, and how far it is.

    Attributes:
        n_updates: updates done.
        evaluated: whether the evaluation that was due after them, if any, is done.
        best_score: best validation accuracy so far, in percent.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sources,
        ranks: Ranks,
        task: Task,
        model: DoubleHeadsModel,
        stop: StopRequests,
    ) -> None:
        self.settings, self.sources, self.ranks = settings, sources, ranks
        self.task, self.model, self.stop = task, model, stop
        self.replica = Replica(model, ranks)
        self.outputs = Outputs(settings)
        self.n_updates = 0
        self.evaluated = True
        self.best_score = 0.0
        self._recent: deque[tuple[int, npt.NDArray[np.int64]]] = deque(maxlen=GPU_LOG_DELAY + 1)
        self._board: TensorBoard | None = None
        self.updates_an_epoch = task.train.n_stories // settings.n_batch_train
        self.n_updates_total = self.updates_an_epoch * settings.n_iter
        self.optimizer = OpenAIAdam(
            model.parameters(),
            lr=settings.lr,
            schedule=settings.lr_schedule,
            warmup=settings.lr_warmup,
            t_total=max(self.n_updates_total, 1),  # 0 with --n_iter 0, which makes no update
            b1=settings.b1,
            b2=settings.b2,
            e=settings.e,
            l2=settings.l2,
            vector_l2=settings.vector_l2,
            max_grad_norm=settings.max_grad_norm,
        )

    def train(self, stream: np.random.RandomState) -> None:
        """All epochs, from the beginning or from where a checkpoint stands.

        Args:
            stream: the run's NumPy stream, after the special tokens were drawn from it.
        """
        resumed = self._resume() if self.settings.resume else False
        self.ranks.on_main_rank(partial(self._check_disks, resumed))
        if not resumed and self.ranks.is_main:
            checkpoint.clear(self.outputs.directory)
        self._open_logs(resumed)
        try:
            if self.settings.submit and not resumed:
                self._save_best_params()
            with self.stop.held():  # requests to end are obeyed between updates
                self._do_updates(stream)
        finally:
            self._close_logs()

    def _do_updates(self, stream: np.random.RandomState) -> None:
        """All updates that are left, with the evaluations and checkpoints between them."""
        done = self.n_updates
        self.model.train()
        if not self.evaluated:  # the run that is continued was stopped before it could
            self._evaluate()
        for update, rows in self._schedule(stream):
            if update <= done:  # already in the checkpoint; the stream had to be drawn from
                continue
            self._update(rows)
            epoch_ends = update % self.updates_an_epoch == 0
            extra = update in EXTRA_EVALUATIONS and update < self.updates_an_epoch
            self.evaluated = not (epoch_ends or extra)
            self._obey()
            if not self.evaluated:
                self._evaluate()
            if self._is_saved(update):
                self._save_checkpoint()
        self._obey()  # what came after the last update

    def _is_saved(self, update: int) -> bool:
        """Whether a checkpoint is written after an update."""
        every = self.settings.save_every
        return update % self.updates_an_epoch == 0 or bool(every and update % every == 0)

    def _check_disks(self, resumed: bool) -> None:
        """See before anything is written that there is room for what the run will write."""
        left = range(self.n_updates + 1, self.n_updates_total + 1)
        saved = islice(filter(self._is_saved, left), checkpoint.KEPT + 1)  # more are never kept
        needs = capacity.disk_needs(
            self.outputs,
            n_parameters=capacity.n_parameters(self.model.config),
            n_checkpoints=len(list(saved)),
            n_updates=len(left),
            n_test=self.task.test.n_stories,
            resumed=resumed,
        )
        capacity.check_disks(needs)

    def _obey(self) -> None:
        """If any process was asked to end: save, and raise :class:`Stopped` in all of them."""
        request = self.stop.signal
        if self.ranks.any_rank(request is not None):
            self._save_checkpoint()
            message = f"after update {self.n_updates} of {self.n_updates_total}, all saved"
            raise Stopped(request or signal.SIGTERM, message)

    def _schedule(
        self, stream: np.random.RandomState
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Each update's number and training rows; the last partial batch is dropped."""
        n_batch, update = self.settings.n_batch_train, 0
        for epoch in range(1, self.settings.n_iter + 1):
            order = shuffle(np.arange(self.task.train.n_stories), random_state=stream)
            bar = tqdm(
                range(self.updates_an_epoch),
                desc=f"epoch {epoch}",
                leave=False,
                disable=not (self.ranks.is_main and sys.stderr.isatty()),
            )
            for step in bar:
                update += 1
                yield update, order[step * n_batch : (step + 1) * n_batch]

    def _update(self, rows: npt.NDArray[np.int64]) -> None:
        """One step: the gradients of all towers averaged, then the optimizer.

        Args:
            rows: the training stories of the step.
        """
        settings, update = self.settings, self.n_updates + 1
        costs = tower_gradients(
            self.replica,
            self.task.train.take(rows),
            seeds=[tower_seed(settings.seed, update, tower) for tower in range(settings.n_gpu)],
            lm_coef=settings.lm_coef,
            precision=settings.precision,
            share_prefix=settings.share_prefix,
        )
        numbers = torch.cat([costs, self.optimizer.measure().reshape(1)])
        self._recent.append((update, rows))
        if numbers.device.type == "cpu":  # a GPU's are looked at when they are logged
            self._check_finite(update, numbers.tolist())
        self.optimizer.step()
        self.n_updates = update
        if self.ranks.is_main:
            self._update_log.write(update, self.optimizer.current_lr(), numbers)
        self.optimizer.zero_grad()

    def _check_finite(self, update: int, numbers: Sequence[float]) -> None:
        """See whether an update's costs and gradient are numbers.

        Raises:
            Gpt1Error: one is not; the state before the update is kept, if it is still there.
        """
        names = ("classification cost", "language-model cost", "gradient norm")
        bad = [f"{name} {x}" for name, x in zip(names, numbers, strict=True) if not isfinite(x)]
        if not bad:
            return
        if self.n_updates < update:
            self.ranks.on_main_rank(self._write_checkpoint)
        raise self._diverged(update, " and ".join(bad))

    def _check_numbers(self, update: int, numbers: Sequence[float]) -> str | None:
        """See whether an update's numbers are finite, and warn if its costs are far too high.

        Raises:
            Gpt1Error: as :meth:`_check_finite`.
        """
        self._check_finite(update, numbers)
        n_classes, n_rows = self.task.train.X.shape[1], self.model.config.n_rows
        return divergence_warning(update, *numbers[:2], n_classes=n_classes, n_rows=n_rows)

    def _diverged(self, update: int, what: str) -> Gpt1Error:
        """The error that names an update, its stories, and the state that is left.

        Args:
            update: after which, or in which, something is not a number.
            what: that.
        """
        splits = datasets.split_rows(self.task.train.n_stories + self.task.valid.n_stories)
        path = self.sources.data_dir / datasets.VALIDATION_CSV
        stories = [
            f" The update's stories are the {', '.join(str(splits[0][row] + 1) for row in rows)} "
            f"(counted from 1) of {path}."
            for number, rows in self._recent
            if number == update
        ]
        saved = checkpoint.checkpoints(self.outputs.directory)
        state = f"the last good state is {saved[-1]}" if saved else "no state was saved before"
        error = Gpt1Error(
            f"update {update}: {what}; the run has diverged and was stopped, {state}."
            f"{''.join(stories)} Look at them, or train anew with a lower --lr or --precision fp32."
        )
        error.reported_elsewhere = not self.ranks.is_main
        return error

    def _evaluate(self) -> None:
        """Log cost and accuracy, and keep the parameters if they are the best so far.

        As in the original the training figures are those of its first ``n_valid`` stories.

        Raises:
            Gpt1Error: a cost is not a number; nothing is logged or kept then.
            Stopped: one process alone was asked to end.
        """
        n_valid = self.task.valid.n_stories
        if self.ranks.is_main:
            self._update_log.flush()
        try:
            # One process alone may leave at once; several must leave together.
            with self.stop.obeyed() if self.ranks.world == 1 else nullcontext():
                train = self._score(self.task.train.take(slice(0, n_valid)))
                valid = self._score(self.task.valid)
        except Stopped:
            self._obey()
            raise
        costs = {"training": train.cost, "validation": valid.cost}
        bad = [f"{name} cost {cost} after it" for name, cost in costs.items() if not isfinite(cost)]
        if bad:
            raise self._diverged(self.n_updates, " and ".join(bad))
        self.evaluated = True
        is_best = valid.accuracy > self.best_score
        self.best_score = max(self.best_score, valid.accuracy)
        if not self.ranks.is_main:
            return
        n_epochs = self.n_updates // self.updates_an_epoch
        self._evaluation_log.write(
            n_epochs=n_epochs,
            n_updates=self.n_updates,
            tr_cost=train.cost,
            va_cost=valid.cost,
            tr_acc=train.accuracy,
            va_acc=valid.accuracy,
        )
        figures = (train.cost, valid.cost, train.accuracy, valid.accuracy)
        print("{} {} {:.3f} {:.3f} {:.2f} {:.2f}".format(n_epochs, self.n_updates, *figures))
        sys.stdout.flush()
        if self.settings.submit and is_best:
            self._save_best_params()

    def _score(self, arrays: ChoiceArrays) -> Score:
        assert arrays.Y is not None  # train and valid have labels
        return score(self._predict(arrays), arrays.Y)

    def _predict(self, arrays: ChoiceArrays) -> npt.NDArray[np.float32]:
        return predict_logits(
            self.model,
            arrays,
            self.ranks,
            n_batch=self.settings.n_batch_train,
            precision=self.settings.precision,
        )

    def submit(self) -> None:
        """Predict the test set with the best parameters and write the submission, twice.

        The run keeps one; the other, in the original's place, is the next run's to replace.
        Probabilities that an earlier run of this name left would not be of the new predictions.
        """
        outputs = self.outputs
        if self.ranks.is_main:
            best = weights.read_params(outputs.best_params)
            weights.from_list(self.model, best, str(outputs.best_params))
        self.ranks.broadcast(list(self.model.parameters()))
        logits = self._predict(self.task.test)
        if not self.ranks.is_main:
            return
        predictions = logits.argmax(-1).tolist()
        run_id = self._evaluation_log.first.get("run_id")
        record = submissions.Record(
            desc=self.settings.name,
            run_id=run_id if isinstance(run_id, str) else None,
            log=str(outputs.log),
            valid_accuracy=float(self.best_score),
            sha256=submissions.sha256(predictions),
        )
        if self.settings.probs:
            write_probs(outputs.probs, logits)
        elif not submissions.is_of_run(outputs.submission, record.run_id):
            with suppress(OSError):
                outputs.probs.unlink()
        for path in (outputs.submission, outputs.last_submission):
            submissions.write(path, predictions, record)

    def _save_best_params(self) -> None:
        if self.ranks.is_main:
            jl.write_jl(self.outputs.best_params, weights.to_list(self.model))

    def _open_logs(self, resumed: bool) -> None:
        """Start the logs, or cut them back to the checkpoint that the run goes on from."""
        if not self.ranks.is_main:
            return
        keep = self.n_updates if resumed else None
        # An evaluation that is still to be done is not in the log, even if it was once.
        keep_evaluations = None if keep is None else keep - (not self.evaluated)
        mirrors: Any = (None, None)
        if self.settings.tensorboard is not None:
            from gpt1.training.tensorboard import TensorBoard

            self._board = TensorBoard(self.settings.tensorboard)
            mirrors = (self._board.evaluation_line, self._board.update_line)
        self._evaluation_log = JsonLines(self.outputs.log, keep_evaluations, mirrors[0])
        if self._evaluation_log.is_new:
            self._evaluation_log.write(**self._logged_settings())
        self._update_log = UpdateLog(
            JsonLines(self.outputs.updates, keep, mirrors[1]),
            delay=0 if self.ranks.device.type == "cpu" else GPU_LOG_DELAY,
            with_lm=self.settings.lm_coef != 0,
            check=self._check_numbers,
            warn=lambda warning: self._say(f"warning: {warning}"),
        )

    def _close_logs(self) -> None:
        if not self.ranks.is_main:
            return
        try:
            self._update_log.close()
        finally:
            self._evaluation_log.close()
            if self._board is not None:
                self._board.close()

    def _logged_settings(self) -> dict[str, Any]:
        """All settings, with what the files and the machine decided in the place of None.

        ``run_id`` is new for each run: the record of a submission names the log by it.
        """
        sources = self.sources
        found = {
            "desc": self.settings.name,
            "data_dir": str(sources.data_dir),
            "model_dir": str(sources.model_dir),
            "encoder_path": str(sources.encoder_path),
            "bpe_path": str(sources.bpe_path),
            "device": str(self.ranks.device),
        }
        versions = {"gpt1_version": gpt1.__version__, "torch_version": torch.__version__}
        here = {"demo": sources.demo, "n_processes": self.ranks.world, "run_id": uuid.uuid4().hex}
        return self.settings.as_flags() | found | here | versions

    def _meaning(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        settings = {k: v for k, v in self.settings.as_flags().items() if k not in FREE_ON_RESUME}
        return settings | {"model": asdict(self.model.config), "data": self.task.sha256()}

    def _save_checkpoint(self) -> None:
        """Keep the state; no process goes on before it is on the disk."""
        self.ranks.on_main_rank(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        if self.n_updates:
            self._update_log.flush()
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise self._diverged(self.n_updates, "its step has made a parameter infinite or NaN")
        state = checkpoint.capture(
            self.model,
            self.optimizer,
            self.n_updates,
            self.best_score,
            evaluated=self.evaluated,
            environment=environment(self.ranks.device, self.ranks.world),
        )
        checkpoint.save(self.outputs.directory, state, self._meaning())

    def _resume(self) -> bool:
        """Go back to the newest checkpoint that can be read; whether there was any at all.

        Raises:
            InputError: the settings are not those of the run, or no checkpoint can be read.
        """
        directory = self.outputs.directory
        files = self.ranks.on_main_rank(lambda: checkpoint.checkpoints(directory))
        for path in reversed(files):
            try:
                state, meaning = self.ranks.on_main_rank(partial(checkpoint.load, path))
                self.ranks.on_all_ranks(partial(self._check_meaning, meaning, str(path)))
                checkpoint.restore(state, self.model, self.optimizer)
            except checkpoint.DamagedError as error:
                aside = self.ranks.on_main_rank(partial(checkpoint.set_aside, path))
                self._say(f"--resume: {error} (it is now {aside.name})")
                continue
            self.n_updates, self.best_score = state.n_updates, state.best_score
            self.evaluated = state.evaluated
            self._say(f"--resume: going on after update {self.n_updates} of {self.n_updates_total}")
            self._warn_of_changes(state.environment)
            return True
        if files:
            none_left = InputError(
                f"--resume: no checkpoint in {directory}/ can be read (they are kept as "
                f"*{checkpoint.DAMAGED}); start anew without --resume"
            )
            none_left.reported_elsewhere = not self.ranks.is_main
            raise none_left
        self._say(f"--resume: no checkpoint in {directory}/; starting anew")
        return False

    def _check_meaning(self, meaning: dict[str, Any], source: str) -> None:
        """See that a checkpoint is one of a run with these settings."""
        own = self._meaning()
        changed = [name for name in own if own[name] != meaning.get(name)]
        if changed:
            raise InputError(
                join_problems(
                    [
                        f"--resume: {name} was {meaning.get(name)!r:.100} in {source} and is now "
                        f"{own[name]!r}; give the same settings, or another --desc to start anew"
                        for name in changed
                    ]
                )
            )

    def _warn_of_changes(self, before: dict[str, Any]) -> None:
        """Say what differs between here and where a checkpoint was written, if that is known."""
        changes = [
            f"{name} was {before[name]!s:.100} and is now {value}"
            for name, value in environment(self.ranks.device, self.ranks.world).items()
            if before.get(name, value) != value
        ]
        if changes:
            self._say(
                "--resume: warning: the run may end with other numbers than without the "
                f"interruption, since {', '.join(changes)}"
            )

    def _say(self, message: str) -> None:
        if self.ranks.is_main:
            tqdm.write(message, file=sys.stderr)  # above the progress bar, if there is one
