"""Whole pretraining runs: corpus, model, training, and the directory of the finished model."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt1.batches.corpus import Corpus
from gpt1.inference import generation
from gpt1.inference.language_model import LanguageModel, make_model, open_model
from gpt1.inference.opened import OpenedModel
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.results.log_lines import UpdateLine
from gpt1.results.outputs import RunFiles
from gpt1.runtime import device
from gpt1.runtime.errors import InputError, Stopped
from gpt1.runtime.files import check_writable, remove_leftovers
from gpt1.runtime.locks import RunLock
from gpt1.runtime.ranks import Ranks, joined
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.command import as_flag, naming_arguments
from gpt1.settings.groups import SamplingSettings
from gpt1.settings.pretraining import PRETRAIN, SIZES, PretrainSettings
from gpt1.settings.words import counted
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import N_SPECIAL
from gpt1.text_utils.vocabulary import vocabulary_sha256
from gpt1.training import capacity
from gpt1.training.checkpoint import KEPT, Checkpoints, TrainState
from gpt1.training.console import Console, say
from gpt1.training.logs import History, Keeper, Logs, first_line
from gpt1.training.loop import Evaluation, Listener, Trainer
from gpt1.training.pretraining import Pretraining
from gpt1.training.runs import facts_of_machine, make_optimizer, set_recompute
from gpt1.weights import locate, save_released, stored, to_list
from gpt1.weights.conversion import check_no_foreign_files
from gpt1.weights.parameters import Array, parameter_shapes
from gpt1.weights.released import check_request

SAMPLE_TOKENS = 40
SAMPLE_TOP_P = 0.9
_KEPT = "model-"  # followed by the number of updates, the name of the directory of a kept model


@dataclass(frozen=True, kw_only=True)
class PretrainingResult:
    """The results of a pretraining run.

    Attributes:
        settings: what the run was made with.
        device: the device of the run.
        evaluations: in the order in which they were made, since the last start of the run.
        updates: the figures of the updates since the last start of the run.
    """

    settings: PretrainSettings
    device: torch.device
    evaluations: Sequence[Evaluation]
    updates: Sequence[UpdateLine]

    @cached_property
    def model(self) -> LanguageModel:
        """The model of the best evaluation, opened from the directory ``out`` when first asked."""
        return open_model(self.settings.out, device=self.device)

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per evaluation: ``n_epochs``, ``n_updates`` and the figures of the log."""
        return [
            {"n_epochs": each.n_epochs, "n_updates": each.n_updates, **each.figures}
            for each in self.evaluations
        ]


@dataclass(frozen=True)
class PretrainingFiles(RunFiles):
    """The files of a pretraining run: logs, checkpoints, kept models and the finished model."""

    settings: PretrainSettings

    @property
    def out(self) -> Path:
        """The directory of the finished model."""
        return Path(self.settings.out)

    def kept(self, n_updates: int) -> Path:
        """Return the directory of the model after so many updates (``--keep_every``)."""
        return self.directory / f"{_KEPT}{n_updates:08d}"

    def all_kept(self) -> list[Path]:
        """Return the directories of all kept models that are there."""
        return [
            path
            for path in sorted(self.directory.glob(f"{_KEPT}*"))
            if re.fullmatch(rf"{_KEPT}\d{{8}}", path.name)
        ]

    def check(self) -> None:
        """Check before any work that the results can be written and overwrite nothing.

        Raises:
            InputError: ``--out`` is a file, or a directory that holds other files or a model that
                this run has not written.
            Gpt1Error: a directory cannot be written.
        """
        settings, out = self.settings, self.out
        if os.path.lexists(out) and not out.is_dir():
            raise InputError(f"--out {out}: is a file; name a directory")
        inputs = {"--corpus": settings.corpus, "--model_dir": settings.model_dir}
        for flag, path in inputs.items():
            if path is not None and out.resolve() == Path(path).resolve():
                raise InputError(f"--out {out}: is read by {flag}; name another directory")
        is_own = self._check_earlier_run()
        if out.is_dir() and not is_own and any(out.iterdir()):
            check_no_foreign_files(out, "released")
            remedy = (
                "or give the --desc of the run that wrote it"
                if settings.resume
                else "or give --resume to go on with the run that wrote it"
            )
            raise InputError(
                f"--out {out}: holds a model already; name another directory, {remedy}"
            )
        self.check_places()
        check_writable(out)

    def _check_earlier_run(self) -> bool:
        """Check that an earlier run of this name loses nothing.

        Returns:
            Whether this run goes on with the earlier one, which wrote the model in ``--out``.

        Raises:
            InputError: the earlier run writes to another directory, or has kept models.
        """
        settings = self.settings
        recorded = first_line(self.log).get("out")
        is_other = isinstance(recorded, str) and Path(recorded).resolve() != self.out.resolve()
        if is_other and settings.resume:
            raise InputError(
                f"--out {self.out}: the run that --resume goes on with writes to {recorded}; name "
                "that directory, or give another --desc to start anew"
            )
        if not settings.resume and (kept := self.all_kept()):
            raise InputError(
                f"--desc {settings.name}: an earlier run has kept {kept[0]}; give another --desc, "
                "or remove its kept models"
            )
        if is_other and any(self.directory.glob("checkpoint-*")):
            raise InputError(
                f"--desc {settings.name}: {self.directory}/ holds the state of a run that writes "
                f"to {recorded}; give another --desc, such as --desc {self.out.name}, or remove "
                "that state"
            )
        return settings.resume and isinstance(recorded, str)

    def remove_unfinished(self) -> None:
        """Remove unfinished files of killed runs; the lock of the run must be held."""
        super().remove_unfinished()
        for directory in (self.out, *self.all_kept()):
            for name in locate.RELEASED_FILES:
                remove_leftovers(directory, glob.escape(name))


def pretrain(
    corpus: str | Path, out: str | Path, *, verbose: bool = True, **settings: Any
) -> PretrainingResult:
    """Train a language model on a corpus, as the paper pretrained GPT-1 (sections 3.1 and 4.1).

    Args:
        corpus: the directory that ``gpt1 corpus`` wrote.
        out: the directory of the finished model, complete with its vocabulary.
        verbose: show on the terminal, or in the notebook, what ``gpt1 pretrain`` shows.
        settings: any other flag of ``gpt1 pretrain`` by its name, such as ``size="mini"``.

    Raises:
        InputError: an argument or a file is wrong.
        Gpt1Error: a result cannot be written, or the run diverged.
        KeyboardInterrupt: the run was interrupted, and saved its state; ``resume=True`` continues.
    """
    given = {"corpus": str(corpus), "out": str(out), **settings}
    chosen = PretrainSettings.of(PRETRAIN.values(given))
    with naming_arguments(chosen.as_flags()):
        try:
            with (
                StopRequests() as stop,
                RunLock() as lock,
                joined(chosen.device, chosen.n_gpu) as ranks,
            ):
                return run_pretraining(chosen, ranks, stop, lock, verbose=verbose)
        except Stopped as error:
            raise KeyboardInterrupt(str(error)) from None


def run_pretraining(
    settings: PretrainSettings,
    ranks: Ranks,
    stop: StopRequests,
    lock: RunLock,
    *,
    verbose: bool = True,
) -> PretrainingResult:
    """Make a whole run: corpus, model, training, and the directory of the finished model.

    Args:
        settings: the settings of the user.
        ranks: this process among those of the run.
        stop: requests to end.
        lock: is locked here against other runs of this name; the caller releases it.
        verbose: show the progress of the run on the terminal.

    Raises:
        InputError: a setting or a file is wrong; nothing has been written then.
        Gpt1Error: a result cannot be written, the run diverged, or another process ended.
        Stopped: it was asked to end, and has saved its state.
    """
    device.set_up(ranks.device, precision=settings.precision, deterministic=settings.deterministic)
    # torchrun may have restarted the processes of some machines only: all ranks must resume.
    settings = replace(settings.paced(), resume=ranks.any_rank(settings.resume))
    files = PretrainingFiles(settings)
    ranks.on_main_rank(files.check)
    ranks.on_main_rank(lambda: files.claim(lock))
    job, model = ranks.on_all_ranks(lambda: _prepare(settings, ranks))
    settings = _with_recompute(settings, model.module, files.log, ranks)
    ranks.on_main_rank(files.remove_unfinished)
    if settings.compile:
        model.module.compile_layers()
    history = History()
    show = verbose and ranks.is_main
    units = job.tokens_per_update
    console = [Console(units, quiet=settings.quiet, units="tokens")] if show else []
    trainer = _make_trainer(
        job,
        model,
        files,
        ranks,
        stop,
        [
            Logs(files, _logged_settings(settings, job, ranks), say),
            *console,
            *_writers(model, files),
            history,
        ],
    )
    resumed = trainer.restore() if settings.resume else False
    ranks.on_main_rank(lambda: _check_disks(trainer, job, files, resumed=resumed))
    for shown in console:
        shown.prepared(_describe(job, settings, ranks))
    trainer.train(resumed=resumed)
    stop.where = "all results are written"
    for shown in console:
        shown.finished(_summarize(files, history.evaluations))
    return PretrainingResult(
        settings=settings,
        device=ranks.device,
        evaluations=history.evaluations,
        updates=history.updates,
    )


def _prepare(settings: PretrainSettings, ranks: Ranks) -> tuple[Pretraining, OpenedModel]:
    """Open the corpus, make the model on its device, and check that they fit the settings.

    Raises:
        InputError: a file is missing or malformed, or does not fit the flags.
    """
    corpus = Corpus.open(settings.corpus)
    if ranks.is_main:
        corpus.check_tokens()
    encoder = TextEncoder(*corpus.vocabulary, check_merges=True)
    config, params = _sizes_and_params(settings, corpus)
    source = settings.model_dir or f"--size {settings.size}"
    capacity.check_memory(config, ranks.device, source)
    module = make_model(config, params, source, seed=settings.seed)
    module.clf.requires_grad_(False)  # There is no classifier in pretraining.
    job = Pretraining(
        corpus,
        settings,
        config=config,
        precision=settings.precision,
        eval_every=settings.eval_every,
        settings=settings.identity(),
    )
    _check_lengths(job, settings)
    model = OpenedModel(
        module=module.to(ranks.device),
        text_encoder=encoder,
        has_choice_head=False,
        source=settings.out,
        has_special_rows=False,
    )
    _check_samples(model, settings.sample)
    return job, model


def _with_recompute(
    settings: PretrainSettings, model: DoubleHeadsModel, log: Path, ranks: Ranks
) -> PretrainSettings:
    """Return the settings with ``recompute`` decided, and set up the model for it."""
    n, length = settings.n_batch, model.config.n_ctx
    tower = capacity.Tower(n_tokens=n * length, n_sequences=n, length=length)
    chosen = set_recompute(
        model,
        settings,
        log,
        tower,
        ranks,
        program="gpt1 pretrain",
        # Compiled layers have no attention of their own for a CPU (gpt1.model.contexts).
        on_cpu=capacity.Attention.WEIGHTS if settings.compile else capacity.Attention.MASK,
    )
    return replace(settings, recompute=chosen)


def _sizes_and_params(
    settings: PretrainSettings, corpus: Corpus
) -> tuple[ModelConfig, dict[str, Array]]:
    """Decide the sizes of the model, and read the weights to go on from, if there are any.

    Raises:
        InputError: the weights are of another vocabulary, or a flag contradicts them.
    """
    n_vocab, params = corpus.header.n_vocab, dict[str, Array]()
    given = {name: getattr(settings, name) for name in stored.DEFAULTS}
    n_ctx = settings.n_ctx
    if settings.model_dir is None:
        preset = SIZES[settings.size]
        given = {name: preset.get(name) if x is None else x for name, x in given.items()}
        sizes, _ = stored.resolve(None, given, spell=as_flag)
        n_ctx = n_ctx or preset["n_ctx"]
    else:
        model_dir = Path(settings.model_dir)
        found = stored.find_model(model_dir, model_dir)
        _check_vocabulary(model_dir, corpus)
        fixed = ("n_embd", "n_layer", "afn")
        sizes, n_transfer = stored.resolve(found, given, fixed=fixed, spell=as_flag)
        _, n_rows = found.rows(n_vocab, locate.vocabulary_files(model_dir)[0])
        n_ctx = n_ctx or n_rows
        check_request(model_dir, sizes["n_layer"], n_transfer, n_rows, n_ctx, as_flag)
        # Some layouts hold rows of special tokens, which pretraining does not have.
        special = np.zeros((N_SPECIAL, sizes["n_embd"]), np.float32)
        params = found.read(n_vocab, special, n_ctx=n_ctx, n_transfer=n_transfer, spell=as_flag)
        params = {name: x for name, x in params.items() if not name.startswith("clf/")}
        rows = np.delete(params["we"], range(n_vocab, n_vocab + N_SPECIAL), axis=0)
        params["we"] = rows[: n_vocab + n_ctx]
    pdrops = {name: getattr(settings, name) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    return ModelConfig(n_vocab=n_vocab, n_special=0, n_ctx=n_ctx, **sizes, **pdrops), params


def _check_vocabulary(model_dir: Path, corpus: Corpus) -> None:
    """Check that a model was trained with the vocabulary of the corpus.

    Raises:
        InputError: it was not, or its vocabulary is missing.
    """
    files = locate.vocabulary_files(model_dir)
    if vocabulary_sha256(files) != corpus.header.vocabulary_sha256:
        raise InputError(
            f"--model_dir {model_dir}: its vocabulary is not that of the corpus in "
            f"{corpus.directory}/; encode the text again with gpt1 corpus --vocabulary {model_dir}"
        )


def _check_lengths(job: Pretraining, settings: PretrainSettings) -> None:
    """Check that the corpus has windows for an update, and text that is held out.

    Raises:
        InputError: it has not, or the warm-up is longer than the run.
    """
    directory, n_ctx = job.corpus.directory, job.config.n_ctx
    n_windows = job.windows.n_windows
    if n_windows < settings.batch_size:
        smaller = "--n_ctx"
        if n_windows:
            n_gpu = min(settings.n_gpu, n_windows)
            smaller = f"batch, such as --n_batch {n_windows // n_gpu} --n_gpu {n_gpu}"
        raise InputError(
            f"{directory}: {counted(len(job.windows.tokens), 'token')} to train on make "
            f"{counted(n_windows, 'window')} of --n_ctx {n_ctx}, fewer than the "
            f"{settings.batch_size} of an update (--n_batch {settings.n_batch} * --n_gpu "
            f"{settings.n_gpu}); give a smaller {smaller}, or more text"
        )
    if len(job.corpus.held_out) < 2:
        raise InputError(
            f"{directory}: holds out {len(job.corpus.held_out)} tokens, too few to evaluate the "
            "model; make the corpus again, and hold out more"
        )
    warmup = settings.warmup_updates or 0
    if warmup > job.n_updates > 0:
        raise InputError(
            f"--warmup_updates {warmup}: the whole run has {job.n_updates} updates; give fewer, "
            f"such as --warmup_updates {job.n_updates // 10}, or make the run longer"
        )


def _check_samples(model: OpenedModel, texts: Sequence[str]) -> None:
    """Check that the model has room for each text and at least one token after it."""
    n_ctx = model.module.config.n_ctx
    for text in texts:
        n = len(model.encode(text))
        if not 1 <= n < n_ctx:
            raise InputError(
                f"{as_flag('sample', text)}: has {n} tokens, but must have from 1 to {n_ctx - 1}; "
                f"{'shorten it' if n else 'write a word at least'}"
            )


def _make_trainer(
    job: Pretraining,
    model: OpenedModel,
    files: PretrainingFiles,
    ranks: Ranks,
    stop: StopRequests,
    listeners: Sequence[Listener],
) -> Trainer:
    """Return the training loop of a job, at its beginning."""
    settings = files.settings
    optimizer = make_optimizer(
        model.module, settings.optimizer(job.n_updates), n_updates=job.n_updates
    )
    return Trainer(
        job,
        TrainState(model=model.module, optimizer=optimizer, best_score=-np.inf),
        ranks,
        checkpoints=Checkpoints(files.directory, ranks, say),
        listeners=listeners,
        stop=stop,
        save_every=settings.save_every,
        with_clf=False,
    )


# Writing


class _KeepEvery(Listener):
    """Writes the model into a directory of its own after every N updates."""

    def __init__(self, model: OpenedModel, files: PretrainingFiles) -> None:
        self._model, self._files = model, files

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Remove what an earlier run of this name has kept."""
        for path in [] if resumed else self._files.all_kept():
            shutil.rmtree(path)

    def stepped(self, n_updates: int) -> None:
        """Keep the model, if it is its turn."""
        parameters = self._model.module.parameters()
        is_due = n_updates % self._files.settings.keep_every == 0
        # The training loop reports a parameter that is not finite.
        if is_due and all(bool(p.isfinite().all()) for p in parameters):
            write_model(self._files.kept(n_updates), self._model)


class _Samples(Listener):
    """Shows continuations of the user's texts after each evaluation."""

    def __init__(self, model: OpenedModel, texts: Sequence[str], seed: int) -> None:
        self._model, self._texts, self._seed = model, texts, seed

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Show one sampled continuation of each text."""
        for text in self._texts:
            room = self._model.module.config.n_ctx - len(self._model.encode(text))
            options = SamplingSettings(
                max_new_tokens=min(SAMPLE_TOKENS, room), top_p=SAMPLE_TOP_P, seed=self._seed
            )
            ((found,),) = generation.generate(self._model, [text], options)
            say(f"sample after update {evaluation.n_updates}: {text} {found.text}")


def _writers(model: OpenedModel, files: PretrainingFiles) -> list[Listener]:
    """Return the listeners that write the model and show samples."""
    settings = files.settings
    found: list[Listener] = [Keeper(partial(write_model, files.out, model))]
    if settings.keep_every:
        found.append(_KeepEvery(model, files))
    if settings.sample:
        found.append(_Samples(model, settings.sample, settings.seed))
    return found


def write_model(directory: Path, model: OpenedModel) -> None:
    """Write a model with its vocabulary into a directory, in the released layout.

    While the files are replaced, the directory has no table of shapes, so that a directory with a
    part of the files is not taken for a model.

    Raises:
        InputError: a parameter is not finite.
        Gpt1Error: a file cannot be written.
    """
    config = model.module.config
    directory.mkdir(parents=True, exist_ok=True)
    (directory / locate.SHAPES_FILE).unlink(missing_ok=True)
    names = (locate.ENCODER_FILE, locate.BPE_FILE)
    locate.copy_vocabulary(model.text_encoder.files, directory, names)
    params = dict(zip(parameter_shapes(config), to_list(model.module), strict=True))
    save_released(
        directory,
        params,
        n_vocab=config.n_vocab,
        n_special=config.n_special,
        n_head=config.n_head,
        afn=config.afn,
    )


def _check_disks(
    trainer: Trainer, job: Pretraining, files: PretrainingFiles, *, resumed: bool
) -> None:
    """Check before anything is written that there is room for what the run will write."""
    n, keep_every = capacity.n_parameters(job.config), files.settings.keep_every
    size, done = capacity.FLOAT_BYTES * n, trainer.state.n_updates
    n_saved = len(list(islice(trainer.updates_saved(), KEPT + 1)))
    saved = capacity.new_checkpoints(files.directory, n, n_saved, resumed=resumed)
    logged = (job.n_updates - done) * capacity.UPDATE_LINE
    if not resumed:
        saved -= capacity.old_checkpoints(files.directory)
        logged -= capacity.size_of(files.updates)
    if keep_every:
        saved += size * (job.n_updates // keep_every - done // keep_every)
    is_there = locate.is_released(files.out)
    capacity.check_disks(
        [
            capacity.Need("--save_dir", files.directory, saved),
            capacity.Need("--out", files.out, 0 if is_there else size),
            capacity.Need("--log_dir", files.log.parent, logged),
        ]
    )


def _logged_settings(settings: PretrainSettings, job: Pretraining, ranks: Ranks) -> dict[str, Any]:
    """Return all settings, with the values from files and the machine in place of None."""
    sizes = {name: getattr(job.config, name) for name in ("n_ctx", *stored.DEFAULTS)}
    found = {**sizes, "out": str(Path(settings.out).resolve())}
    return settings.as_flags() | found | facts_of_machine(ranks)


# Telling


def _describe(job: Pretraining, settings: PretrainSettings, ranks: Ranks) -> list[str]:
    """Return three lines that describe a run: its text, its updates and its model."""
    header, config = job.corpus.header, job.config
    n = f"{capacity.n_parameters(config) - config.n_embd - 1:,}"  # without the classifier
    weights = f"from {settings.model_dir}/" if settings.model_dir else "fresh"
    processes = f"{ranks.world} processes, " if ranks.world > 1 else ""
    is_cpu = ranks.device.type == "cpu"
    threads = f"{counted(torch.get_num_threads(), 'thread')}, " if is_cpu else ""
    return [
        f"{job.corpus.directory}/: {len(job.corpus.train):,} tokens to train on, "
        f"{header.n_held_out_tokens:,} held out, {header.n_vocab:,} in the vocabulary",
        f"{counted(job.n_updates, 'update')} of {counted(settings.batch_size, 'window')} of "
        f"{config.n_ctx} tokens, {counted(job.updates_per_epoch, 'update')} per epoch",
        f"{counted(config.n_layer, 'layer')} of width {config.n_embd}, {n} parameters "
        f"({weights}), "
        f"on {ranks.device}, {processes}{threads}{settings.precision}",
    ]


def _summarize(files: PretrainingFiles, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return lines that summarize a run: its best evaluation and its files."""
    lines = []
    if evaluations:
        best = max(evaluations, key=lambda each: each.score)
        cost, per_token = best.figures["va_cost"], best.figures["va_ppl"]
        lines.append(
            f"best after update {best.n_updates}: held-out loss {cost:.3f}, perplexity "
            f"{per_token:.2f} per token, {best.figures['va_word_ppl']:.2f} per word"
        )
    written = [files.out, files.log, files.updates]
    return [
        *lines,
        "written:",
        *(f"  {path}" for path in written),
        f'next: gpt1 generate --model_dir {files.out} --prompt "..." --top_p 0.9',
    ]
