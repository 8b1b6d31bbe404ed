"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

The loop of the original, from settings to submission. Heavy modules are imported when a run
needs them, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1 import datasets
from gpt1.errors import InputError, report_errors
from gpt1.files import atomic_write, check_writable
from gpt1.settings import Settings, Sources, find_sources, join_problems, parse

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gpt1.batches import ChoiceArrays
    from gpt1.distributed import Process
    from gpt1.model import DoubleHeadsModel
    from gpt1.prepare import Task

PROGRAM = "python -m gpt1.train"
SUBMISSION = "ROCStories.tsv"
# Updates of the first epoch after which the original evaluates, besides each epoch's end.
EXTRA_EVALUATIONS = (1000, 2000, 4000, 8000, 16000, 32000)
# What may differ between a run and its continuation: where things are, and where they run.
FREE_ON_RESUME = {
    *("desc", "log_dir", "save_dir", "submission_dir", "data_dir", "model_dir", "encoder_path"),
    *("bpe_path", "init_params", "n_embd", "n_head", "n_layer", "analysis", "device", "resume"),
    "save_every",
    "fast",
}
GPU_LOG_DELAY = 50  # updates whose numbers may wait on a GPU before they are logged


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, 2 for bad input, 1 for other failures."""
    return report_errors("gpt1.train", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    """Check the command line, then train here or in as many processes as there are GPUs."""
    settings = parse(argv, PROGRAM)
    sources = find_sources(settings, (datasets.VALIDATION_CSV, datasets.TEST_CSV))
    if sources.demo:
        settings = settings.for_demo()
    from gpt1 import distributed

    n = distributed.processes_to_start(settings.device, settings.n_gpu)
    if n > 1:
        return distributed.start_processes(main, argv, n)
    with distributed.joined(settings.device, settings.n_gpu) as process:
        run(settings, sources, process)
    return 0


def run(settings: Settings, sources: Sources, process: Process) -> None:
    """A whole run: data, model, training, and with ``submit`` the submission.

    Raises:
        InputError: something of the user's is wrong; nothing has been written then.
        Gpt1Error: a result cannot be written.
    """
    import numpy as np

    from gpt1.distributed import keep_freed_memory
    from gpt1.prepare import build_model, load_task, model_config

    if process.is_main and sources.demo:
        _announce_demo(settings, sources)
    if settings.fast:
        is_cuda = process.device.type == "cuda"
        settings = settings.made_fast(has_bf16=process.has_bf16(), is_cuda=is_cuda)
    process.check_precision(settings.precision)
    if process.device.type == "cpu":
        keep_freed_memory()
    _check_results(settings, process)
    task = load_task(settings, sources, verbose=process.is_main)
    if task.train.n_stories < settings.n_batch_train:
        raise InputError(
            f"{sources.data_dir}: {task.train.n_stories} training stories are fewer than a batch "
            f"of --n_batch {settings.n_batch} * --n_gpu {settings.n_gpu}; make the batch smaller"
        )
    # One stream, drawn from in the original's order: special rows, then a shuffle an epoch.
    stream = np.random.RandomState(settings.seed)
    config = model_config(settings, sources, task)
    model = build_model(settings, sources, config, stream).to(process.device)
    if settings.compile:
        model.compile_layers()
    trainer = Trainer(settings, sources, process, task, model)
    trainer.train(stream)
    if settings.submit:
        trainer.submit()
    if settings.analysis and process.is_main:
        from gpt1.analysis import analyse_rocstories

        print(analyse_rocstories(sources.data_dir, trainer.submission_path, trainer.log_path))


def _announce_demo(settings: Settings, sources: Sources) -> None:
    """Say that this is not the real thing, and where that is described."""
    lines = textwrap.wrap(
        f"This is the bundled demo: self-made stories ({sources.data_dir}/) and a small model "
        f"({sources.model_dir}/), trained with --lr {settings.lr:g} --n_iter {settings.n_iter}. It "
        "runs because data/ holds no ROCStories and neither --data_dir nor --model_dir was given; "
        "README.md says how to get the real data and weights.",
        width=88,
    )
    rule = "-" * max(map(len, lines))
    print("\n".join([rule, *lines, rule]), file=sys.stderr)


def _check_results(settings: Settings, process: Process) -> None:
    """See before any work whether its results can be written, and analysed."""
    submission = Path(settings.submission_dir) / SUBMISSION
    if settings.analysis and not settings.submit and not submission.exists():
        raise InputError(f"--analysis: there is no {submission} to analyse; give --submit too")

    def check() -> None:
        check_writable(Path(settings.log_dir))
        check_writable(Path(settings.save_dir) / settings.name)
        if settings.submit:
            check_writable(submission.parent)

    process.from_main(check)


class Trainer:
    """A run under way: model, optimizer, logs, and how far it is.

    Attributes:
        n_updates: updates done.
        best_score: best validation accuracy so far, in percent.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sources,
        process: Process,
        task: Task,
        model: DoubleHeadsModel,
    ) -> None:
        from gpt1.opt import OpenAIAdam

        self.settings, self.sources, self.process = settings, sources, process
        self.task, self.model = task, model
        self.directory = Path(settings.save_dir) / settings.name
        self.best_params_path = self.directory / "best_params.jl"
        self.log_path = Path(settings.log_dir) / f"{settings.name}.jsonl"
        self.updates_path = Path(settings.log_dir) / f"{settings.name}.updates.jsonl"
        self.submission_path = Path(settings.submission_dir) / SUBMISSION
        self.n_updates = 0
        self.best_score = 0.0
        self.updates_an_epoch = task.train.n_stories // settings.n_batch_train
        self.n_updates_total = self.updates_an_epoch * settings.n_iter
        self.optimizer = OpenAIAdam(
            model.parameters(),
            lr=settings.lr,
            schedule=settings.lr_schedule,
            warmup=settings.lr_warmup,
            t_total=self.n_updates_total,
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
        from gpt1 import checkpoint

        resumed = self._resume() if self.settings.resume else False
        if not resumed and self.process.is_main:
            checkpoint.clear(self.directory)
        self._open_logs(resumed)
        if self.settings.submit and not resumed:
            self._save_best_params()
        done = self.n_updates
        self.model.train()
        for update, rows in self._schedule(stream):
            if update <= done:  # already in the checkpoint; the stream had to be drawn from
                continue
            self._update(self.task.train.take(rows))
            epoch_ends = self.n_updates % self.updates_an_epoch == 0
            extra = update in EXTRA_EVALUATIONS and update < self.updates_an_epoch
            if epoch_ends or extra:
                self._evaluate()
            every = self.settings.save_every
            if epoch_ends or (every and self.n_updates % every == 0):
                self._save_checkpoint()
        self._close_logs()

    def _schedule(
        self, stream: np.random.RandomState
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Each update's number and training rows; the last partial batch is dropped."""
        import numpy as np
        from sklearn.utils import shuffle
        from tqdm import tqdm

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

    def _update(self, stories: ChoiceArrays) -> None:
        """One step: the gradients of all towers averaged, then the optimizer."""
        import torch

        from gpt1.distributed import tower_seed
        from gpt1.steps import tower_gradients

        settings = self.settings
        self.n_updates += 1
        costs = tower_gradients(
            self.model,
            stories,
            self.process,
            seeds=[tower_seed(settings.seed, self.n_updates, k) for k in range(settings.n_gpu)],
            lm_coef=settings.lm_coef,
            precision=settings.precision,
            share_prefix=settings.share_prefix,
        )
        self.optimizer.step()
        if self.process.is_main:
            numbers = torch.cat([costs, self.optimizer.grad_norm.reshape(1)])
            self._update_log.write(self.n_updates, self.optimizer.current_lr(), numbers)
        self.optimizer.zero_grad()

    def _evaluate(self) -> None:
        """Log cost and accuracy, and keep the parameters if they are the best so far.

        As in the original the training figures are those of its first ``n_valid`` stories.
        """
        n_valid = self.task.valid.n_stories
        train = self._score(self.task.train.take(slice(0, n_valid)))
        valid = self._score(self.task.valid)
        is_best = valid.accuracy > self.best_score
        self.best_score = max(self.best_score, valid.accuracy)
        if not self.process.is_main:
            return
        n_epochs = self.n_updates // self.updates_an_epoch
        self._update_log.flush()
        self._log.write(
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

    def _score(self, arrays: ChoiceArrays) -> Any:
        from gpt1.predict import score

        assert arrays.Y is not None  # train and valid have labels
        return score(self._predict(arrays), arrays.Y)

    def _predict(self, arrays: ChoiceArrays) -> npt.NDArray[np.float32]:
        from gpt1.predict import predict_logits

        return predict_logits(
            self.model,
            arrays,
            self.process,
            n_batch=self.settings.n_batch_train,
            precision=self.settings.precision,
        )

    def submit(self) -> None:
        """Predict the test set with the best parameters and write the submission."""
        from gpt1 import weights

        if self.process.is_main:
            best = weights.read_params(self.best_params_path)
            weights.from_list(self.model, best, str(self.best_params_path))
        self.process.broadcast(list(self.model.parameters()))
        predictions = self._predict(self.task.test).argmax(-1)
        if self.process.is_main:
            with atomic_write(self.submission_path, "w") as file:
                file.write("index\tprediction\n")
                file.writelines(f"{i}\t{choice}\n" for i, choice in enumerate(predictions))

    def _save_best_params(self) -> None:
        from gpt1 import jl, weights

        if self.process.is_main:
            jl.write_jl(self.best_params_path, weights.to_list(self.model))

    def _open_logs(self, resumed: bool) -> None:
        """Start the logs, or cut them back to the checkpoint that the run goes on from."""
        from gpt1.logs import JsonLines, UpdateLog

        if not self.process.is_main:
            return
        keep = self.n_updates if resumed else None
        self._log = JsonLines(self.log_path, keep)
        if self._log.is_new:
            self._log.write(**self._logged_settings())
        self._update_log = UpdateLog(
            JsonLines(self.updates_path, keep),
            delay=0 if self.process.device.type == "cpu" else GPU_LOG_DELAY,
            with_lm=self.settings.lm_coef != 0,
        )

    def _close_logs(self) -> None:
        if self.process.is_main:
            self._log.close()
            self._update_log.close()

    def _logged_settings(self) -> dict[str, Any]:
        """All settings, with what the files and the machine decided in the place of None."""
        import torch

        import gpt1

        config, sources = self.model.config, self.sources
        found = {
            "desc": self.settings.name,
            "data_dir": str(sources.data_dir),
            "model_dir": str(sources.model_dir),
            "encoder_path": str(sources.encoder_path),
            "bpe_path": str(sources.bpe_path),
            "n_embd": config.n_embd,
            "n_head": config.n_head,
            "n_layer": config.n_layer,
            "device": str(self.process.device),
        }
        if self.settings.n_transfer is None:
            found["n_transfer"] = config.n_layer
        versions = {"gpt1_version": gpt1.__version__, "torch_version": torch.__version__}
        here = {"demo": sources.demo, "n_processes": self.process.world}
        return self.settings.as_flags() | found | here | versions

    def _meaning(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        settings = {k: v for k, v in self.settings.as_flags().items() if k not in FREE_ON_RESUME}
        return settings | {"model": asdict(self.model.config), "data": self.task.sha256()}

    def _save_checkpoint(self) -> None:
        from gpt1 import checkpoint

        if self.process.is_main:
            self._update_log.flush()
            state = checkpoint.capture(self.model, self.optimizer, self.n_updates, self.best_score)
            checkpoint.save(self.directory, state, self._meaning())

    def _resume(self) -> bool:
        """Go back to the newest checkpoint; whether there was one."""
        from gpt1 import checkpoint

        files = self.process.from_main(lambda: checkpoint.checkpoints(self.directory))
        if not files:
            self._say(f"--resume: no checkpoint in {self.directory}/; starting anew")
            return False
        state, meaning = self.process.from_main(lambda: checkpoint.load(files[-1]))
        own = self._meaning()
        changed = [name for name in own if own[name] != meaning.get(name)]
        if changed:
            raise InputError(
                join_problems(
                    [
                        f"--resume: {name} was {meaning.get(name)!r} in {files[-1]} and is now "
                        f"{own[name]!r}; give the same settings, or another --desc to start anew"
                        for name in changed
                    ]
                )
            )
        checkpoint.restore(state, self.model, self.optimizer)
        self.n_updates, self.best_score = state.n_updates, state.best_score
        self._say(f"--resume: going on after update {self.n_updates} of {self.n_updates_total}")
        return True

    def _say(self, message: str) -> None:
        if self.process.is_main:
            print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
