"""A model with its text encoder, opened from files in any layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gpt1.inference.opened import OpenedModel
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.device import choose_device
from gpt1.settings.command import Spelling, as_keyword
from gpt1.weights import locate
from gpt1.weights.parameters import Array, set_parameters
from gpt1.weights.stored import (
    find_model,
    open_vocabulary,
    resolve,
    special_rows,
)


class LanguageModel(OpenedModel):
    """A model and its text encoder, opened by :func:`open_model`."""


def open_model(
    path: str | Path | None = None,
    *,
    vocabulary: str | Path | tuple[str | Path, str | Path] | None = None,
    n_head: int | None = None,
    afn: str | None = None,
    device: str | torch.device | None = None,
    spacy_rules: str = "2.0",
    spell: Spelling = as_keyword,
) -> LanguageModel:
    """Open a model: the released one, one of the model hub, or a fine-tuned one.

    The package offers this function as ``gpt1.load_pretrained``.

    Args:
        path: a directory in the released layout or the hub's; a full parameter list (``.jl`` or
            ``.safetensors``); or the directory of a run, ``save/<desc>/`` [``model/``, or the
            bundled demo while ``model/`` holds no model].
        vocabulary: the directory of the vocabulary, which a list needs if none lies beside it; or
            the files of vocabulary and merges.
        n_head: attention heads [what the files record, else 12].
        afn: activation, ``gelu``, ``relu`` or ``swish`` [what the files record, else gelu].
        device: where the model goes [CUDA if there is one, else the CPU].
        spacy_rules: see :class:`gpt1.text_utils.encoder.TextEncoder`.
        spell: how messages name arguments; commands give a spelling as flags.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    path = locate.default_model_dir() if path is None else path
    if isinstance(vocabulary, tuple):
        directory, files = _directory_of(path), (Path(vocabulary[0]), Path(vocabulary[1]))
    else:
        directory = Path(vocabulary or _directory_of(path))
        files = locate.vocabulary_files(directory)
    encoder = open_vocabulary(files, spell, spacy_rules)
    n_vocab = len(encoder.encoder)
    stored = find_model(path, directory)
    _, n_ctx = stored.rows(n_vocab, files[0])
    sizes, n_transfer = resolve(stored, {"n_head": n_head, "afn": afn}, spell=spell)
    config = ModelConfig(n_vocab=n_vocab, n_ctx=n_ctx, **sizes)
    # What no file holds is drawn: the same numbers every time.
    special = special_rows(np.random.RandomState(0), config.n_embd)
    params = stored.read(n_vocab, special, n_ctx=n_ctx, n_transfer=n_transfer, classifier=True)
    module = make_model(config, params, stored.path, seed=0)
    return LanguageModel(
        module=module.to(choose_device(None) if device is None else device).eval(),
        text_encoder=encoder,
        has_choice_head="clf/w" in params,
        source=str(path),
    )


def _directory_of(path: str | Path) -> Path:
    """The directory of a model, in which its vocabulary lies unless another one is named."""
    file = locate.list_file(path)
    return Path(path) if file is None else file.parent


def make_model(
    config: ModelConfig, params: dict[str, Array], source: str | Path, *, seed: int
) -> DoubleHeadsModel:
    """Make a model of given parameters; those that are missing are fresh.

    Args:
        config: the sizes of the model.
        params: float32 arrays by the original's names, in file shapes.
        source: where they come from, for messages.
        seed: seed of the fresh parameters.

    Raises:
        InputError: an array does not fit the model, or a value is not finite.
    """
    model = DoubleHeadsModel(config)
    if "clf/w" not in params:  # a model with a classifier is complete
        model.init_parameters(torch.Generator().manual_seed(seed))
    set_parameters(model, params, source)
    return model
