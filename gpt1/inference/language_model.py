"""A model with its text encoder, opened from files in any layout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch

from gpt1.batches.packing import SpecialTokens
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.device import choose_device
from gpt1.settings.command import Spelling, as_keyword
from gpt1.settings.groups import OpenSettings
from gpt1.text_utils.encoder import TextEncoder
from gpt1.weights import locate
from gpt1.weights.parameters import Array, set_parameters
from gpt1.weights.stored import (
    as_model_flag,
    find_model,
    open_vocabulary,
    resolve,
    special_rows,
)


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model and its text encoder.

    Attributes:
        module: the model, in evaluation mode, on its device.
        text_encoder: its vocabulary and the way from text to ids.
        has_choice_head: whether its classifier was trained; otherwise its values are random.
        source: the files it came from, for messages.
    """

    module: DoubleHeadsModel
    text_encoder: TextEncoder
    has_choice_head: bool
    source: str

    @property
    def special(self) -> SpecialTokens:
        """Ids of the three special tokens."""
        return SpecialTokens.after(self.module.config.n_vocab)

    @overload
    def encode(self, text: str) -> list[int]: ...  # type: ignore[overload-overlap]

    @overload
    def encode(self, text: Sequence[str]) -> list[list[int]]: ...

    def encode(self, text: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Turn a text into its token ids, or each of several texts into a list of them."""
        if isinstance(text, str):
            return self.text_encoder.encode([text], verbose=False)[0]
        return self.text_encoder.encode(text, verbose=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn token ids into readable text; special tokens are left out."""
        n_vocab = self.module.config.n_vocab
        return self.text_encoder.decode(i for i in ids if i < n_vocab)


def open_model(
    path: str | Path,
    *,
    vocabulary: str | Path | tuple[str | Path, str | Path] | None = None,
    n_head: int | None = None,
    afn: str | None = None,
    device: str | torch.device | None = None,
    spacy_rules: str = "2.0",
    spell: Spelling = as_keyword,
) -> LanguageModel:
    """Open a model: the released one, one of the model hub, or a fine-tuned one.

    Args:
        path: a directory in the released layout or the hub's; a full parameter list (``.jl`` or
            ``.safetensors``); or the directory of a run, ``save/<desc>/``.
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


# For commands


def open_from_settings(settings: OpenSettings, program: str) -> LanguageModel:
    """Open the model that the flags of a command name.

    Args:
        settings: the values of the flags.
        program: the name before the notice that the demo's model is used.

    Raises:
        InputError: see :func:`open_model`; speaks of flags.
    """
    model_dir = settings.model_dir
    if model_dir is None:
        model_dir = str(locate.default_model_dir())
        if model_dir != "model":
            print(
                f"{program}: no model in model/, using the demo's in {model_dir}/", file=sys.stderr
            )
    return open_model(
        settings.params or model_dir,
        vocabulary=model_dir if settings.params else None,
        n_head=settings.n_head,
        afn=settings.afn,
        device=choose_device(settings.device),
        spacy_rules=settings.spacy_rules,
        spell=as_model_flag,
    )
