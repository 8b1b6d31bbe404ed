"""The loop of the original: updates, evaluations, checkpoints, and the submission."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import shuffle
from tqdm import tqdm

import gpt1
from gpt1 import checkpoint, datasets, jl, weights
from gpt1.batches import ChoiceArrays
from gpt1.calibration import write_probs
from gpt1.distributed import Process, tower_seed
from gpt1.errors import Gpt1Error, InputError, Stopped
from gpt1.files import atomic_write
from gpt1.logs import JsonLines, UpdateLog
from gpt1.model import DoubleHeadsModel
from gpt1.opt import OpenAIAdam
from gpt1.outputs import Outputs
from gpt1.predict import Score, predict_logits, score
from gpt1.prepare import Task
from gpt1.settings import Settings, Sources, join_problems
from gpt1.steps import tower_gradients
from gpt1.stopping import StopRequests

if TYPE_CHECKING:
    from gpt1.tensorboard import TensorBoard

# Updates of the first epoch after which the original evaluates, besides each epoch's end.
EXTRA_EVALUATIONS = (1000, 2000, 4000, 8000, 16000, 32000)
# What may differ between a run and its continuation: where things are, and where they run.
FREE_ON_RESUME = {
    *("desc", "log_dir", "save_dir", "submission_dir", "data_dir", "model_dir", "encoder_path"),
    *("bpe_path", "init_params", "n_embd", "n_head", "n_layer", "analysis", "device", "resume"),
    *("save_every", "fast", "probs", "tensorboard", "deterministic"),
}
GPU_LOG_DELAY = 50  # updates whose numbers may wait on a GPU before they are logged


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
        process: Process,
        task: Task,
        model: DoubleHeadsModel,
        stop: StopRequests,
    ) -> None:
        self.settings, self.sources, self.process = settings, sources, process
        self.task, self.model, self.stop = task, model, stop
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
        if not resumed and self.process.is_main:
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
            every = self.settings.save_every
            if epoch_ends or (every and update % every == 0):
                self._save_checkpoint()
        self._obey()  # what came after the last update

    def _obey(self) -> None:
        """If any process was asked to end: save, and raise :class:`Stopped` in all of them."""
        request = self.stop.signal
        if self.process.any(request is not None):
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
                disable=not (self.process.is_main and sys.stderr.isatty()),
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
            self.model,
            self.task.train.take(rows),
            self.process,
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
        if self.process.is_main:
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
            self.process.from_main(self._write_checkpoint)
        raise self._diverged(update, " and ".join(bad))

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
        error.told = not self.process.is_main
        return error

    def _evaluate(self) -> None:
        """Log cost and accuracy, and keep the parameters if they are the best so far.

        As in the original the training figures are those of its first ``n_valid`` stories.

        Raises:
            Gpt1Error: a cost is not a number; nothing is logged or kept then.
            Stopped: one process alone was asked to end.
        """
        n_valid = self.task.valid.n_stories
        if self.process.is_main:
            self._update_log.flush()
        try:
            # One process alone may leave at once; several must leave together.
            with self.stop.obeyed() if self.process.world == 1 else nullcontext():
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
        if not self.process.is_main:
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
            self.process,
            n_batch=self.settings.n_batch_train,
            precision=self.settings.precision,
        )

    def submit(self) -> None:
        """Predict the test set with the best parameters and write the submission."""
        outputs = self.outputs
        if self.process.is_main:
            best = weights.read_params(outputs.best_params)
            weights.from_list(self.model, best, str(outputs.best_params))
        self.process.broadcast(list(self.model.parameters()))
        logits = self._predict(self.task.test)
        if not self.process.is_main:
            return
        if self.settings.probs:
            write_probs(outputs.probs, logits)
        with atomic_write(outputs.submission, "w") as file:
            file.write("index\tprediction\n")
            file.writelines(f"{i}\t{choice}\n" for i, choice in enumerate(logits.argmax(-1)))

    def _save_best_params(self) -> None:
        if self.process.is_main:
            jl.write_jl(self.outputs.best_params, weights.to_list(self.model))

    def _open_logs(self, resumed: bool) -> None:
        """Start the logs, or cut them back to the checkpoint that the run goes on from."""
        if not self.process.is_main:
            return
        keep = self.n_updates if resumed else None
        # An evaluation that is still to be done is not in the log, even if it was once.
        keep_evaluations = None if keep is None else keep - (not self.evaluated)
        mirrors: Any = (None, None)
        if self.settings.tensorboard is not None:
            from gpt1.tensorboard import TensorBoard

            self._board = TensorBoard(self.settings.tensorboard)
            mirrors = (self._board.evaluation_line, self._board.update_line)
        self._evaluation_log = JsonLines(self.outputs.log, keep_evaluations, mirrors[0])
        if self._evaluation_log.is_new:
            self._evaluation_log.write(**self._logged_settings())
        self._update_log = UpdateLog(
            JsonLines(self.outputs.updates, keep, mirrors[1]),
            delay=0 if self.process.device.type == "cpu" else GPU_LOG_DELAY,
            with_lm=self.settings.lm_coef != 0,
            check=self._check_finite,
        )

    def _close_logs(self) -> None:
        if not self.process.is_main:
            return
        try:
            self._update_log.close()
        finally:
            self._evaluation_log.close()
            if self._board is not None:
                self._board.close()

    def _logged_settings(self) -> dict[str, Any]:
        """All settings, with what the files and the machine decided in the place of None."""
        sources = self.sources
        found = {
            "desc": self.settings.name,
            "data_dir": str(sources.data_dir),
            "model_dir": str(sources.model_dir),
            "encoder_path": str(sources.encoder_path),
            "bpe_path": str(sources.bpe_path),
            "device": str(self.process.device),
        }
        versions = {"gpt1_version": gpt1.__version__, "torch_version": torch.__version__}
        here = {"demo": sources.demo, "n_processes": self.process.world}
        return self.settings.as_flags() | found | here | versions

    def _meaning(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        settings = {k: v for k, v in self.settings.as_flags().items() if k not in FREE_ON_RESUME}
        return settings | {"model": asdict(self.model.config), "data": self.task.sha256()}

    def _save_checkpoint(self) -> None:
        """Keep the state; no process goes on before it is on the disk."""
        self.process.from_main(self._write_checkpoint)

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
        )
        checkpoint.save(self.outputs.directory, state, self._meaning())

    def _resume(self) -> bool:
        """Go back to the newest checkpoint that can be read; whether there was any at all.

        Raises:
            InputError: the settings are not those of the run, or no checkpoint can be read.
        """
        directory = self.outputs.directory
        files = self.process.from_main(lambda: checkpoint.checkpoints(directory))
        for path in reversed(files):
            try:
                state, meaning = self.process.from_main(partial(checkpoint.load, path))
                self.process.together(partial(self._check_meaning, meaning, str(path)))
                checkpoint.restore(state, self.model, self.optimizer)
            except checkpoint.DamagedError as error:
                aside = self.process.from_main(partial(checkpoint.set_aside, path))
                self._say(f"--resume: {error} (it is now {aside.name})")
                continue
            self.n_updates, self.best_score = state.n_updates, state.best_score
            self.evaluated = state.evaluated
            self._say(f"--resume: going on after update {self.n_updates} of {self.n_updates_total}")
            return True
        if files:
            none_left = InputError(
                f"--resume: no checkpoint in {directory}/ can be read (they are kept as "
                f"*{checkpoint.DAMAGED}); start anew without --resume"
            )
            none_left.told = not self.process.is_main
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

    def _say(self, message: str) -> None:
        if self.process.is_main:
            print(message, file=sys.stderr)
