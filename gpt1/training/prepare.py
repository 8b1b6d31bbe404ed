"""Prepare a run from its settings and files: the data as arrays, and the model."""

from __future__ import annotations

import os
from dataclasses import replace

import joblib
import numpy as np
import torch

from gpt1.batches.cache import Cache
from gpt1.batches.task_data import TaskData, load_task_data
from gpt1.datasets import find_task
from gpt1.inference.language_model import make_model
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.settings.command import as_flag
from gpt1.settings.training import Settings
from gpt1.tasks import Task
from gpt1.text_utils.encoder import TextEncoder
from gpt1.training.sources import Sources
from gpt1.weights import locate, stored
from gpt1.weights.stored import StoredModel, find_model


def open_encoder(settings: Settings, sources: Sources) -> TextEncoder:
    """Open the vocabulary and the merges of a run.

    Raises:
        InputError: one of them is not what it should be.
    """
    return TextEncoder(
        sources.encoder_path,
        sources.bpe_path,
        spacy_rules=settings.spacy_rules,
        check_merges=True,
    )


def load_data(
    settings: Settings,
    sources: Sources,
    *,
    verbose: bool,
    encoder: TextEncoder | None = None,
    task: Task | None = None,
    cache: Cache | None = None,
) -> TaskData:
    """Read and encode the data set of a run (docs/fidelity.md, 1 to 6).

    Args:
        settings: the settings, of which ``dataset``, ``n_ctx`` and ``spacy_rules`` are used.
        sources: the paths of the data and the vocabulary.
        verbose: whether a progress bar may be shown.
        encoder: of :func:`open_encoder` [opened here].
        task: the task of :func:`gpt1.datasets.find_task` [found here].
        cache: where encoded texts are kept for the next run [nowhere].

    Raises:
        InputError: a data file, the vocabulary or the merges are missing or malformed.
    """
    encoder = encoder or open_encoder(settings, sources)
    return load_task_data(
        task or find_task(settings),
        sources.data_dir,
        encoder,
        n_ctx=settings.n_ctx,
        cache=cache,
        n_processes=_n_processes(),
        verbose=verbose,
    )


def _n_processes() -> int:
    """Return how many processes may encode texts: one per core that this run may compute on.

    Those are the cores that the system gives this process (its affinity, and the limit of its
    container), but no more than torch's threads (``OMP_NUM_THREADS``) in all ranks of this machine:
    the other ranks wait for this one.
    """
    n_threads = torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(int(joblib.cpu_count()), n_threads)


def resolve(settings: Settings, sources: Sources, data: TaskData) -> tuple[Settings, ModelConfig]:
    """Decide the model's sizes and the number of layers that it takes from the checkpoint.

    The rules are those of :func:`gpt1.weights.stored.resolve`.

    Returns:
        The settings with numbers for ``n_embd``, ``n_head``, ``n_layer`` and ``n_transfer``, and
        the model's configuration.

    Raises:
        InputError: a flag contradicts the checkpoint, or sizes do not fit together.
    """
    model = _stored_model(settings, sources)
    if settings.init_params is None and settings.n_transfer != -1 and model is not None:
        model.rows(data.n_vocab, sources.encoder_path)
    names = (*stored.DEFAULTS, "n_transfer")
    given = {name: getattr(settings, name) for name in names}
    sizes, n_transfer = stored.resolve(model, given, fixed=("n_embd", "afn"), spell=as_flag)
    config = ModelConfig(
        n_vocab=data.n_vocab,
        n_ctx=data.n_ctx,
        **sizes,
        n_classes=data.task.target.n_outputs,
        embd_pdrop=settings.embd_pdrop,
        attn_pdrop=settings.attn_pdrop,
        resid_pdrop=settings.resid_pdrop,
        clf_pdrop=settings.clf_pdrop,
    )
    return replace(settings, **sizes, n_transfer=n_transfer), config


def _stored_model(settings: Settings, sources: Sources) -> StoredModel | None:
    """Return the stored model that a run takes parameters or sizes from; None if there is none."""
    model_dir = sources.model_dir
    if settings.init_params is not None:
        return find_model(settings.init_params, model_dir)
    is_there = locate.is_released(model_dir) or locate.is_hub(model_dir)
    return None if settings.n_transfer == -1 and not is_there else find_model(model_dir)


def notes(given: Settings, used: Settings, sources: Sources) -> list[str]:
    """Return notes on allowed flags that may not do what the user expects, one line per flag.

    Args:
        given: the settings that the user gave.
        used: the settings that :func:`resolve` returned for them.
        sources: the path of the checkpoint.
    """
    assert used.n_transfer is not None
    found = []
    recorded = stored.recorded(sources.model_dir).get("n_head")
    if used.n_transfer > 0 and recorded and given.n_head not in (None, recorded.value):
        found.append(
            f"--n_head {used.n_head}: according to {recorded.file} the layers that are taken were "
            f"trained with {recorded.value} heads"
        )
    if given.n_transfer not in (None, used.n_transfer):
        found.append(
            f"--n_transfer {given.n_transfer} has no effect: --init_params gives all "
            f"{used.n_transfer} layers"
        )
    return found


def build_model(
    settings: Settings, sources: Sources, config: ModelConfig, stream: np.random.RandomState
) -> DoubleHeadsModel:
    """Make the model with fresh parameters, and copy the checkpoint's parameters into it.

    See docs/fidelity.md, 12, 13 and 18.

    Args:
        settings: the settings that :func:`resolve` returned, of which ``seed``, ``n_transfer`` and
            ``init_params`` are used.
        sources: the path of the checkpoint.
        config: the model's sizes.
        stream: the run's NumPy stream, from which the rows of the special tokens are always drawn.
            They are not used if the checkpoint has such rows.
    """
    special = stored.special_rows(stream, config.n_embd)
    n_transfer, path = settings.n_transfer, settings.init_params or sources.model_dir
    if n_transfer is None:
        raise ValueError("n_transfer must be a number; resolve() decides it")
    params = {}
    if n_transfer != -1:
        model = find_model(path, sources.model_dir)
        params = model.read(
            config.n_vocab, special, n_ctx=config.n_ctx, n_transfer=n_transfer, spell=as_flag
        )
        if model.n_classes != config.n_classes:  # The classifier is of another task.
            params = {name: array for name, array in params.items() if not name.startswith("clf/")}
    return make_model(config, params, path, seed=settings.seed)
