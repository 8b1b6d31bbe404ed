"""Whole fine-tuning runs: data, model, training, and the submission."""

from __future__ import annotations

import math
import os
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpt1
from gpt1.batches.cache import SWITCHED_OFF, find_cache
from gpt1.batches.task_data import TaskData
from gpt1.datasets import Examples, find_task
from gpt1.datasets.own import has_several_texts, listed
from gpt1.inference.language_model import LanguageModel
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.opt import OpenAIAdam
from gpt1.results import submissions
from gpt1.results.log_lines import UpdateLine
from gpt1.results.outputs import Outputs
from gpt1.runtime import device
from gpt1.runtime.errors import InputError, Stopped
from gpt1.runtime.locks import RunLock
from gpt1.runtime.ranks import Ranks, joined
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.command import naming_arguments
from gpt1.settings.groups import OWN, OptimizerSettings
from gpt1.settings.pretraining import PretrainSettings
from gpt1.settings.training import Settings, from_keywords
from gpt1.settings.words import counted
from gpt1.tasks import Task
from gpt1.tasks.targets import Labels
from gpt1.text_utils.encoder import TextEncoder
from gpt1.training import capacity
from gpt1.training.checkpoint import KEPT, Checkpoints, TrainState
from gpt1.training.console import Console, say
from gpt1.training.fine_tuning import FineTuning
from gpt1.training.logs import History, Keeper, Logs, first_line
from gpt1.training.loop import Evaluation, Listener, Trainer
from gpt1.training.prepare import build_model, load_data, notes, open_encoder, resolve
from gpt1.training.sources import Sources, find_sources
from gpt1.weights import from_list, jl, locate, to_list
from gpt1.weights.parameters import read_params


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of a run. On other ranks than the main one some of them are missing.

    Attributes:
        settings: what the run was made with, every size decided.
        outputs: its files.
        data: what it was trained on.
        model: on the device of the run, ready to predict and to be saved; with the parameters of
            the best evaluation if the run kept them (``submit``), else with the last ones.
        evaluations: in the order in which they were made, since the last start of the run.
        updates: the figures of the updates since the last start of the run.
        best_score: the best score of an evaluation, by the first metric of the task.
        predictions: [n] of each split, by the stem of its submission, that of the test split first;
            empty without ``submit``.
    """

    settings: Settings
    outputs: Outputs
    data: TaskData
    model: LanguageModel
    evaluations: Sequence[Evaluation]
    updates: Sequence[UpdateLine]
    best_score: float
    predictions: Mapping[str, Labels]

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per evaluation: ``n_epochs``, ``n_updates``, costs and metrics as in the log."""
        return [
            {"n_epochs": each.n_epochs, "n_updates": each.n_updates, **each.figures}
            for each in self.evaluations
        ]

    @property
    def labelled(self) -> str:
        """The stem of the first submission whose right answers are known."""
        return next(stem for stem, labels in self.data.labels.items() if labels is not None)

    @property
    def metrics(self) -> dict[str, float]:
        """The best validation score of the first metric; all test scores if labels are known."""
        task = self.data.task
        found = {}
        if math.isfinite(self.best_score):  # Without an evaluation there is no score.
            found[f"valid_{task.metrics[0].title}"] = self.best_score
        if self.predictions:
            stem, predictions = next(iter(self.predictions.items()))
            labels = self.data.labels[stem]
            if labels is not None and not stem.endswith(".dev"):
                for metric in task.metrics:
                    found[f"test_{metric.title}"] = metric.compute(predictions, labels)
        return found


def fine_tune(
    dataset: str | None = None,
    *,
    train: Iterable[object] | None = None,
    valid: Iterable[object] | None = None,
    test: Iterable[object] | None = None,
    verbose: bool = True,
    **settings: Any,
) -> Result:
    """Fine-tune a pretrained model on a data set, and predict its test split.

    The data set is one of ``--dataset``, or examples of your own::

        gpt1.fine_tune(train=[("a good film", "positive"), ("a dull film", "negative"), ...])

    Args:
        dataset: a value of ``--dataset`` [rocstories, or own if examples are given].
        train: examples to train on. Each is a tuple of the texts in the order of the shape, and of
            the label: the name of a class, a number with ``metric="pearson"``, or for a choice the
            index of the right answer from 0. Answers may be fewer in some examples.
        valid: examples that decide which epoch is the best [a fifth of the training examples].
        test: examples to predict, with or without labels.
        verbose: show on the terminal, or in the notebook, what a run of ``gpt1 train`` shows.
        settings: any flag of ``gpt1 train`` by its name, such as ``n_iter=1``. ``shape`` is
            ``classification`` if examples are given with one text each. ``submit`` is true unless
            it is given: the best parameters are kept, and predict the test split.

    Raises:
        InputError: an argument, an example or a file is wrong.
        Gpt1Error: a result cannot be written, or the run diverged.
        KeyboardInterrupt: the run was interrupted, and saved its state; ``resume=True`` continues.
    """
    splits = {"train": train, "valid": valid, "test": test}
    given = {split: listed(split, found) for split, found in splits.items() if found is not None}
    chosen = {"submit": True, "dataset": dataset or (OWN if given else "rocstories")}
    if given and train is None:
        raise InputError("valid, test: are given without train; give train, too")
    if given and chosen["dataset"] != OWN:
        raise InputError(f"dataset={dataset!r}: train is given; leave one of the two out")
    if given and not has_several_texts(given["train"][0]):
        chosen["shape"] = "classification"
    values = from_keywords({**chosen, **settings})
    with naming_arguments(values.as_flags()):
        return _fine_tune(values, given or None, verbose=verbose)


def _fine_tune(settings: Settings, examples: Examples | None, *, verbose: bool) -> Result:
    """Make a whole run in this process; see :func:`fine_tune`."""
    task = find_task(settings, examples)
    sources = find_sources(settings, task)
    if sources.demo:
        settings = settings.for_demo()
    try:
        with (
            StopRequests() as stop,
            RunLock() as lock,
            joined(settings.device, settings.n_gpu) as ranks,
        ):
            return run_fine_tuning(settings, task, sources, ranks, stop, lock, verbose=verbose)
    except Stopped as error:
        raise KeyboardInterrupt(str(error)) from None


def run_fine_tuning(
    settings: Settings,
    task: Task,
    sources: Sources,
    ranks: Ranks,
    stop: StopRequests,
    lock: RunLock,
    *,
    verbose: bool = True,
) -> Result:
    """Make a whole run: data, model, training, and with ``submit`` the submission.

    Args:
        settings: the settings of the user, or of the demo.
        task: the task of :func:`gpt1.datasets.find_task`.
        sources: the paths of the files to read.
        ranks: this process among those of the run.
        stop: requests to end.
        lock: is locked here against other runs of this name; the caller releases it.
        verbose: show the progress of the run on the terminal.

    Raises:
        InputError: a setting or a file is wrong; nothing has been written then.
        Gpt1Error: a result cannot be written, the run diverged, or another process ended.
        Stopped: it was asked to end, and has saved its state.
    """
    settings = _set_up(settings, ranks)
    outputs = Outputs(settings, (task.submission,))
    ranks.on_main_rank(outputs.check)
    ranks.on_main_rank(lambda: outputs.claim(lock))
    data, settings, model = _prepare(settings, task, sources, ranks)
    outputs = Outputs(settings, list(data.predicted))
    ranks.on_main_rank(outputs.remove_unfinished)
    module = model.module
    if settings.compile:
        module.compile_layers()
    job = FineTuning(data, settings, settings, config=module.config, settings=settings.identity())
    logs, history = Logs(outputs, _logged_settings(settings, sources, ranks), say), History()
    show = verbose and ranks.is_main
    console = [Console(settings.batch_size, quiet=settings.quiet)] if show else []
    keepers = [_keeper(outputs, model)] if settings.submit else []
    trainer = _make_trainer(job, module, settings, ranks, stop, (logs, *console, *keepers, history))
    resumed = trainer.restore() if settings.resume else False
    ranks.on_main_rank(lambda: _check_disks(trainer, outputs, data, model, resumed=resumed))
    for shown in console:
        shown.prepared(_describe(job, settings, ranks, sources))
    trainer.train(resumed=resumed)
    predictions: Mapping[str, Labels] = {}
    if settings.submit:
        stop.where = "training is over and saved, the submission is not written"
        predictions = _submit(job, trainer.state, ranks, outputs, logs.first.get("run_id"))
    module.eval()
    stop.where = "all results are written"
    result = Result(
        settings=settings,
        outputs=outputs,
        data=data,
        model=model,
        evaluations=history.evaluations,
        updates=history.updates,
        best_score=trainer.state.best_score,
        predictions=predictions,
    )
    for shown in console:
        shown.finished(_summarize(result))
    return result


def _make_trainer(
    job: FineTuning,
    model: DoubleHeadsModel,
    settings: Settings,
    ranks: Ranks,
    stop: StopRequests,
    listeners: Sequence[Listener],
) -> Trainer:
    """Return the training loop of a job, at its beginning."""
    optimizer = make_optimizer(model, settings, n_updates=job.n_updates)
    lowest = job.data.task.metrics[0].lowest
    return Trainer(
        job,
        TrainState(model=model, optimizer=optimizer, best_score=lowest),
        ranks,
        checkpoints=Checkpoints(Outputs(settings).directory, ranks, say),
        listeners=listeners,
        stop=stop,
        save_every=settings.save_every,
        with_lm=settings.lm_coef != 0,
    )


def _describe(job: FineTuning, settings: Settings, ranks: Ranks, sources: Sources) -> list[str]:
    """Return three lines that describe a run: its data, its model and its updates."""
    data, n = job.data, f"{capacity.n_parameters(job.config):,}"
    model = f"{n} parameters from {settings.init_params or f'{sources.model_dir}/'}"
    if settings.n_transfer == -1:
        model = f"{n} fresh parameters"
    processes = f"{ranks.world} processes, " if ranks.world > 1 else ""
    is_cpu = ranks.device.type == "cpu"
    threads = f"{counted(torch.get_num_threads(), 'thread')}, " if is_cpu else ""
    return [
        f"{data.task.title}: {data.train.n_examples} examples to train on, "
        f"{data.valid.n_examples} to validate, {_n_test(data)} to predict",
        f"{counted(settings.n_iter, 'epoch')} of {counted(job.updates_per_epoch, 'update')}, "
        f"each on {settings.batch_size} examples",
        f"{model}, on {ranks.device}, {processes}{threads}{settings.precision}",
    ]


def _n_test(data: TaskData) -> int:
    """Return the number of test examples; the first split to predict is the test split."""
    stem, split = next(iter(data.predicted.items()))
    return 0 if stem.endswith(".dev") else split.n_examples


def _summarize(result: Result) -> list[str]:
    """Return lines that summarize a run: its scores, its files, and the command for a report."""
    outputs, settings = result.outputs, result.settings
    found = ", ".join(f"{name.replace('_', ' ')} {x:.2f} %" for name, x in result.metrics.items())
    best = max(result.evaluations, key=lambda each: each.score, default=None)
    epoch = f"best after epoch {best.n_epochs}: " if best is not None else ""
    files = [outputs.log, outputs.updates]
    if settings.submit:
        files += [outputs.best_params, outputs.submission]
    lines = [f"{epoch}{found}", "written:", *(f"  {path}" for path in files)]
    if settings.submit and not result.data.task.files:
        lines.append(f"next: gpt1 predict FILE --model_dir {outputs.directory}")
    elif settings.submit:
        own = outputs.submissions[result.labelled]
        place = f" --data_dir {shlex.quote(settings.data_dir)}" if settings.data_dir else ""
        lines.append(f"next: gpt1 analysis {own} --log {outputs.log}{place}")
    return lines


def _set_up(settings: Settings, ranks: Ranks) -> Settings:
    """Return the settings adapted to the device, and set the arithmetic of this process."""
    if settings.fast:
        is_cuda = ranks.device.type == "cuda"
        settings = settings.made_fast(has_bf16=device.has_bf16(ranks.device), is_cuda=is_cuda)
    device.set_up(ranks.device, precision=settings.precision, deterministic=settings.deterministic)
    # torchrun may have restarted the processes of some machines only: all ranks must resume.
    return replace(settings, resume=ranks.any_rank(settings.resume))


def _load(
    settings: Settings, task: Task, sources: Sources, ranks: Ranks
) -> tuple[TextEncoder, TaskData]:
    """Return the text encoder and the data.

    With a cache one rank of each machine encodes, and the others read what it has encoded.

    Raises:
        InputError: a file is missing or malformed.
    """

    def load() -> tuple[TextEncoder, TaskData]:
        encoder = open_encoder(settings, sources)
        return encoder, load_data(
            settings, sources, verbose=ranks.is_main, encoder=encoder, task=task, cache=cache
        )

    def note(message: str) -> None:
        if ranks.is_main:
            say(f"gpt1 train: {message}")

    cache = find_cache(settings.cache_dir, note)
    return ranks.on_all_ranks(load) if cache is None else ranks.one_of_each_machine_first(load)


def _prepare(
    settings: Settings, task: Task, sources: Sources, ranks: Ranks
) -> tuple[TaskData, Settings, LanguageModel]:
    """Return the data, the settings with all sizes decided, and the model on its device.

    Raises:
        InputError: a file is missing or malformed, or does not fit the flags.
    """
    encoder, data = _load(settings, task, sources, ranks)
    used, model = ranks.on_all_ranks(lambda: _build(settings, sources, ranks, encoder, data))
    tower = capacity.largest_tower(data.train, used.n_batch)
    log, program = Outputs(used).log, "gpt1 train"
    recompute = set_recompute(model.module, used, log, tower, ranks, program=program)
    return data, replace(used, recompute=recompute), model


def _build(
    settings: Settings, sources: Sources, ranks: Ranks, encoder: TextEncoder, data: TaskData
) -> tuple[Settings, LanguageModel]:
    """Return the settings with the model's sizes decided, and the model on its device.

    Raises:
        InputError: a file is missing or malformed, or does not fit the flags.
    """
    if data.train.n_examples < settings.batch_size:
        place = sources.data_dir if data.task.files else data.sources[0].rpartition(", ")[0]
        raise InputError(
            f"{place}: {data.train.n_examples} training examples are fewer than a batch "
            f"of --n_batch {settings.n_batch} * --n_gpu {settings.n_gpu}; make the batch smaller"
        )
    used, config = resolve(settings, sources, data)
    all_notes = [*data.notes, *notes(settings, used, sources)]
    for note in all_notes if ranks.is_main else []:
        say(f"gpt1 train: {note}")
    capacity.check_memory(config, ranks.device, settings.init_params or f"{sources.model_dir}/")
    stream = np.random.RandomState(settings.seed)
    model = LanguageModel(
        module=build_model(used, sources, config, stream).to(ranks.device),
        text_encoder=encoder,
        has_choice_head=True,
        source=str(Outputs(settings).directory),
        task=data.task.record(settings.n_ctx),
    )
    return used, model


def set_recompute(
    model: DoubleHeadsModel,
    settings: Settings | PretrainSettings,
    log: Path,
    tower: capacity.Tower,
    ranks: Ranks,
    *,
    program: str,
    on_cpu: capacity.Attention = capacity.Attention.WEIGHTS,
) -> bool:
    """Make a model compute its layers again in the backward pass, if that is needed or asked for.

    Args:
        model: on its device.
        settings: the settings of the run.
        log: the log of the run, which has the decision if the run is resumed.
        tower: the largest part of a batch that is computed at once.
        ranks: this process among those of the run.
        program: the program's name, for the note that memory decides.
        on_cpu: what attention keeps on a CPU.

    Returns:
        The decision.
    """
    is_fused = ranks.device.type == "cuda" and not settings.deterministic
    attention = capacity.Attention.NOTHING if is_fused else capacity.Attention.WEIGHTS
    if ranks.device.type == "cpu":
        attention = on_cpu
    chosen = _needs_recompute(settings, log, model.config, tower, ranks, attention, program=program)
    if chosen:
        model.recompute = True
        if ranks.device.type == "cpu":
            device.return_large_blocks()
    return chosen


def _needs_recompute(
    settings: Settings | PretrainSettings,
    log: Path,
    config: ModelConfig,
    tower: capacity.Tower,
    ranks: Ranks,
    attention: capacity.Attention,
    *,
    program: str,
) -> bool:
    """Decide ``recompute`` if the user did not: as in the run that is resumed, or by the memory."""
    if settings.recompute is not None:
        return settings.recompute
    if settings.resume:
        first = ranks.on_main_rank(partial(first_line, log))
        if isinstance(recorded := first.get("recompute"), bool):
            return recorded
    there = capacity.memory_of(ranks.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    needed = capacity.training_memory(
        config,
        tower,
        recompute=False,
        precision=settings.precision,
        attention=attention,
    )
    chosen = ranks.any_rank(there is not None and needed > capacity.USABLE * there)
    if chosen and ranks.is_main:
        say(
            f"{program}: --recompute is on, because training would take about "
            f"{capacity.shown(needed)} of memory without it"
            + ("" if there is None else f", and there are {capacity.shown(there, math.floor)}")
        )
    return chosen


def make_optimizer(
    model: DoubleHeadsModel, settings: OptimizerSettings, *, n_updates: int
) -> OpenAIAdam:
    """Return the optimizer of all parameters for a run of ``n_updates``."""
    return OpenAIAdam(
        model.parameters(),
        lr=settings.lr,
        schedule=settings.lr_schedule,
        warmup=settings.lr_warmup,
        t_total=max(n_updates, 1),  # a run of no epochs makes no update
        b1=settings.b1,
        b2=settings.b2,
        e=settings.e,
        l2=settings.l2,
        vector_l2=settings.vector_l2,
        max_grad_norm=settings.max_grad_norm,
    )


def _logged_settings(settings: Settings, sources: Sources, ranks: Ranks) -> dict[str, Any]:
    """Return all settings, with the values from files and the machine in place of None."""
    cache = find_cache(settings.cache_dir, say)
    found = {
        "desc": settings.name,
        "data_dir": str(sources.data_dir),
        "model_dir": str(sources.model_dir),
        "encoder_path": str(sources.encoder_path),
        "bpe_path": str(sources.bpe_path),
        "cache_dir": str(cache.directory) if cache else SWITCHED_OFF,
        "demo": sources.demo,
    }
    return settings.as_flags() | found | facts_of_machine(ranks)


def facts_of_machine(ranks: Ranks) -> dict[str, Any]:
    """Return what the log of a run records besides settings: device, processes, versions.

    ``run_id`` is new for each run: the record of a submission names the log by it.
    """
    return {
        "device": str(ranks.device),
        "n_processes": ranks.world,
        "run_id": uuid.uuid4().hex,
        "gpt1_version": gpt1.__version__,
        "torch_version": torch.__version__,
    }


def _check_disks(
    trainer: Trainer, outputs: Outputs, data: TaskData, model: LanguageModel, *, resumed: bool
) -> None:
    """Check before anything is written that there is room for what the run will write."""
    saved = islice(trainer.updates_saved(), KEPT + 1)  # more are never kept
    needs = capacity.disk_needs(
        outputs,
        n_parameters=capacity.n_parameters(model.module.config),
        n_checkpoints=len(list(saved)),
        n_updates=trainer.job.n_updates - trainer.state.n_updates,
        n_predicted={stem: split.n_examples for stem, split in data.predicted.items()},
        vocabulary=model.text_encoder.files,
        resumed=resumed,
    )
    capacity.check_disks(needs)


def _keeper(outputs: Outputs, model: LanguageModel) -> Keeper:
    """Return the listener that keeps the best parameters, and beside them what opens them."""
    params = partial(_write_params, outputs, model.module)
    return Keeper(params, partial(_write_beside, outputs, model))


def _write_params(outputs: Outputs, model: DoubleHeadsModel) -> None:
    """Keep the parameters that the model has now as the best."""
    jl.write_jl(outputs.best_params, to_list(model))


def _write_beside(outputs: Outputs, model: LanguageModel) -> None:
    """Write what the directory of the run needs besides parameters to be opened by its path."""
    names = (outputs.vocabulary[0].name, outputs.vocabulary[1].name)
    locate.copy_vocabulary(model.text_encoder.files, outputs.directory, names)
    config = model.module.config
    record = {} if model.task is None else {locate.TASK: model.task.as_json()}
    locate.write_json(outputs.config, {"n_head": config.n_head, "afn": config.afn, **record})


def _submit(
    job: FineTuning, state: TrainState, ranks: Ranks, outputs: Outputs, run_id: object
) -> dict[str, Labels]:
    """Predict all splits with the best parameters and write their submissions, twice each.

    The run keeps one; the other, in the original's place, is the next run's to replace.
    Probabilities that an earlier run of this name left would not be of the new predictions.

    Returns:
        The predictions [n] of each split.
    """
    if ranks.is_main:
        best = read_params(outputs.best_params)
        from_list(state.model, best, str(outputs.best_params))
    ranks.broadcast(list(state.model.parameters()))
    target, found = job.data.task.target, {}
    for stem, split in job.data.predicted.items():
        logits = job.predict(state.model, split, ranks)
        found[stem] = target.decide(logits)
        if not ranks.is_main:
            continue
        rows = [target.spell(prediction) for prediction in found[stem].tolist()]
        record = submissions.Record(
            desc=outputs.settings.name,
            run_id=run_id if isinstance(run_id, str) else None,
            log=str(outputs.log),
            dataset=job.data.task.name,
            split=stem,
            metric=job.data.task.metrics[0].title,
            valid_score=float(state.best_score) if isfinite(state.best_score) else None,
            sha256=submissions.sha256(rows),
        )
        own = outputs.submissions[stem]
        if outputs.settings.probs:
            submissions.write_probs(submissions.probs_path(own), logits, target)
        elif not submissions.is_of_run(own, record.run_id):
            with suppress(OSError):
                submissions.probs_path(own).unlink()
        for path in (own, outputs.last_submissions[stem]):
            submissions.write(path, rows, record)
    return found
