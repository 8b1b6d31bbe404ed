"""A model and its text encoder, as the commands that use a model ask for them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1.settings.arguments import number
from gpt1.weights.locate import SPECIAL_TOKENS

if TYPE_CHECKING:
    import torch

    from gpt1.batches.packing import SpecialTokens
    from gpt1.inference.language_model import LanguageModel
    from gpt1.model.transformer import DoubleHeadsModel
    from gpt1.text_utils.encoder import TextEncoder

N_SPECIAL = len(SPECIAL_TOKENS)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model ready to be asked; see :class:`gpt1.inference.language_model.LanguageModel`."""

    model: DoubleHeadsModel
    encoder: TextEncoder
    has_choice_head: bool
    source: str

    @property
    def special(self) -> SpecialTokens:
        """Ids of the three special tokens."""
        from gpt1.batches.packing import SpecialTokens

        return SpecialTokens.after(self.model.config.n_vocab)


def load_pretrained(
    model_dir: str | Path,
    params: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Pretrained:
    """Load a model and its encoder.

    Args:
        model_dir: vocabulary, merges, and unless ``params`` is given the weights.
        params: a full parameter list to use instead.
        device: where the model goes.
        options: see :func:`gpt1.inference.language_model.open_model`.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    from gpt1.inference.language_model import open_model

    vocabulary = None if params is None else model_dir
    path = model_dir if params is None else params
    return _wrapped(open_model(path, vocabulary=vocabulary, device=device, **options))


def _wrapped(model: LanguageModel) -> Pretrained:
    return Pretrained(
        model=model.module,
        encoder=model.text_encoder,
        has_choice_head=model.has_choice_head,
        source=model.source,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that :func:`from_arguments` reads."""
    add = parser.add_argument
    add("--model_dir", metavar="DIR", help="vocabulary and weights [model/, or model/demo]")
    add("--params", metavar="FILE", help="a fine-tuned model: best_params.jl or .safetensors")
    add(
        "--n_head",
        metavar="N",
        type=number(int, 1),
        help="attention heads [the checkpoint's, else 12]",
    )
    add(
        "--afn",
        choices=("gelu", "relu", "swish"),
        help="activation [the checkpoint's, else gelu]",
    )
    add("--spacy_rules", default="2.0", choices=("2.0", "installed"), help="word rules [2.0]")
    add("--device", help="cpu, cuda, mps, ... [cuda if there is one, else cpu]")


def from_arguments(args: Any, program: str) -> Pretrained:
    """The model that the flags name.

    Args:
        args: with the flags of :func:`add_model_arguments`, or the group ``OpenSettings``.
        program: the name before the notice that the demo's model is used.

    Raises:
        InputError: see :func:`load_pretrained`.
    """
    from gpt1.inference.language_model import open_from_settings

    return _wrapped(open_from_settings(args, program))
