"""A model and its text encoder from files, for every program that does not train.

A model is either the one in the directory ``--model_dir``, in the released layout or the model
hub's, or a fine-tuned one, from the full parameter list ``--params`` with the vocabulary of
``--model_dir``. A list always has a choice head, a hub directory may have one.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.runtime.errors import InputError
from gpt1.settings.arguments import number
from gpt1.text_utils.special import N_SPECIAL, SPECIAL_STD, SpecialTokens
from gpt1.weights import hub
from gpt1.weights import released as weights

if TYPE_CHECKING:
    import torch

    from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
    from gpt1.text_utils.encoder import TextEncoder

VOCABULARY = "encoder_bpe_40000.json"
MERGES = "vocab_40000.bpe"
DEFAULT_N_HEAD = 12
DEFAULT_AFN = "gelu"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model ready to be asked: in evaluation mode, on its device.

    Attributes:
        model: the model.
        encoder: its text encoder.
        has_choice_head: whether its classifier was trained; else its values are random.
        source: the files it came from, for messages.
    """

    model: DoubleHeadsModel
    encoder: TextEncoder
    has_choice_head: bool
    source: str

    @property
    def special(self) -> SpecialTokens:
        """Ids of the three special tokens."""
        return SpecialTokens.after(self.model.config.n_vocab)


def load_pretrained(
    model_dir: str | Path,
    params: str | Path | None = None,
    *,
    n_head: int | None = None,
    encoder_path: str | Path | None = None,
    bpe_path: str | Path | None = None,
    spacy_rules: str = "2.0",
    afn: str | None = None,
    device: torch.device | str = "cpu",
) -> Pretrained:
    """Load a model and its encoder.

    Args:
        model_dir: vocabulary, merges, and unless ``params`` is given the weights; in the
            released layout or the model hub's (see :mod:`gpt1.weights.hub`).
        params: a full parameter list (``best_params.jl``, or safetensors) to use instead.
        n_head: attention heads [what ``model_dir`` records, else 12].
        encoder_path, bpe_path: vocabulary and merges elsewhere than in ``model_dir``.
        spacy_rules: as :class:`gpt1.text_utils.encoder.TextEncoder`.
        afn: activation that the model was trained with [what ``model_dir`` records, else gelu].
        device: where the model goes.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    from gpt1.model.transformer import DoubleHeadsModel

    model_dir = Path(model_dir)
    vocabulary, merges = vocabulary_files(model_dir)
    encoder_path = Path(encoder_path or vocabulary)
    encoder = load_encoder(encoder_path, bpe_path or merges, spacy_rules)
    n_vocab = len(encoder.encoder)
    recorded = read_recorded(model_dir)
    n_head, afn = n_head or recorded.n_head, afn or recorded.afn
    source = str(model_dir if params is None else params)
    if params is not None:
        config, values = _full_list(params, n_vocab, n_head, afn, encoder_path)
    elif hub.is_hub(model_dir):
        config, values = _hub(model_dir, n_vocab, n_head, afn)
    else:
        config, values = _released(model_dir, n_vocab, n_head, afn, encoder_path)
    model = DoubleHeadsModel(config)
    model.init_parameters(_generator())
    weights.apply(model, values, source)
    return Pretrained(
        model=model.to(device).eval(),
        encoder=encoder,
        has_choice_head="clf/w" in values,
        source=source,
    )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a model directory says of its model besides sizes, or the original's values."""

    n_head: int
    afn: str


def read_recorded(model_dir: str | Path) -> Recorded:
    """Heads and activation from ``config.json`` (hub) or ``gpt1_config.json`` (heads only).

    Raises:
        InputError: that file is damaged.
    """
    if hub.is_hub(model_dir):
        config = hub.read_config(model_dir)
        return Recorded(n_head=config.n_head, afn=config.afn)
    return Recorded(n_head=weights.read_n_head(model_dir) or DEFAULT_N_HEAD, afn=DEFAULT_AFN)


def vocabulary_files(model_dir: str | Path) -> tuple[Path, Path]:
    """Vocabulary and merges of a model directory, under the names of its layout."""
    model_dir = Path(model_dir)
    if hub.is_hub(model_dir) and not os.path.isfile(model_dir / VOCABULARY):
        return model_dir / hub.VOCABULARY, model_dir / hub.MERGES
    return model_dir / VOCABULARY, model_dir / MERGES


def load_encoder(
    encoder_path: str | Path, bpe_path: str | Path, spacy_rules: str = "2.0"
) -> TextEncoder:
    """A text encoder; if there is no vocabulary, the message says how to get one.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    from gpt1.text_utils.encoder import TextEncoder

    if not os.path.isfile(encoder_path):
        remedy = hub.vocabulary_remedy(encoder_path)
        remedy = remedy or "name the directory of the model's vocabulary with --model_dir"
        raise InputError(f"{encoder_path} is missing: {remedy}")
    return TextEncoder(encoder_path, bpe_path, spacy_rules=spacy_rules, check_merges=True)


def _released(
    model_dir: Path, n_vocab: int, n_head: int, afn: str, encoder_path: Path
) -> tuple[ModelConfig, dict[str, weights.Array]]:
    """Sizes and parameters of a checkpoint in the released layout."""
    shapes = weights.read_shapes(model_dir)
    if shapes.n_vocab != n_vocab:
        raise InputError(
            f"{encoder_path} has {n_vocab} pieces, but {model_dir / weights.SHAPES_FILE} is for "
            f"{shapes.n_vocab}; use the vocabulary that came with the weights"
        )
    config = _config(
        n_vocab=n_vocab,
        n_ctx=shapes.n_ctx,
        n_embd=shapes.n_embd,
        n_layer=shapes.n_layer,
        n_head=n_head,
        afn=afn,
    )
    special = _special_rows(shapes.n_embd)
    return config, weights.load_released(
        model_dir, special=special, n_ctx=shapes.n_ctx, n_transfer=shapes.n_layer
    )


def _hub(
    model_dir: Path, n_vocab: int, n_head: int, afn: str
) -> tuple[ModelConfig, dict[str, weights.Array]]:
    """Sizes and parameters of a hub directory, the choice head included if it has one."""
    pieces = hub.read_hub(model_dir, n_vocab)
    config = _config(
        n_vocab=n_vocab,
        n_ctx=len(pieces.positions),
        n_embd=pieces.n_embd,
        n_layer=pieces.n_layer,
        n_head=n_head,
        afn=afn,
    )
    return config, pieces.params(_special_rows(pieces.n_embd))


def _full_list(
    path: str | Path, n_vocab: int, n_head: int, afn: str, encoder_path: Path
) -> tuple[ModelConfig, dict[str, weights.Array]]:
    """Sizes and parameters of a full list; its position rows are those the vocabulary leaves."""
    arrays = weights.read_params(path)
    sizes = weights.config_of_list(arrays, path)
    n_ctx = sizes.rows - n_vocab - N_SPECIAL
    if n_ctx < 1:
        raise InputError(
            f"{path}: {sizes.rows} rows of we are too few for the {n_vocab} pieces of "
            f"{encoder_path}; name the vocabulary it was trained with by --model_dir"
        )
    config = _config(
        n_vocab=n_vocab,
        n_ctx=n_ctx,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=n_head,
        afn=afn,
    )
    return config, dict(zip(weights.parameter_shapes(config), arrays, strict=True))


def _config(*, n_head: int, n_embd: int, afn: str, **sizes: int) -> ModelConfig:
    from gpt1.model.transformer import ModelConfig

    if n_embd % n_head:
        raise InputError(
            f"--n_head {n_head}: does not divide the width {n_embd}; give the number of heads the "
            "model was trained with"
        )
    return ModelConfig(n_embd=n_embd, n_head=n_head, afn=afn, **sizes)


def _special_rows(n_embd: int) -> weights.Array:
    """Rows [3, n_embd] for special tokens that no file holds: the same numbers every time."""
    import numpy as np

    rows = np.random.RandomState(0).randn(N_SPECIAL, n_embd) * SPECIAL_STD
    return rows.astype(np.float32)


def _generator() -> torch.Generator:
    """For what no file holds (an untrained classifier): the same numbers every time."""
    import torch

    return torch.Generator().manual_seed(0)


# The command line's part


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


def from_arguments(args: argparse.Namespace, program: str) -> Pretrained:
    """The model that the flags name.

    Args:
        args: with the flags of :func:`add_model_arguments`.
        program: the name before the notice that the demo's model is used.

    Raises:
        InputError: see :func:`load_pretrained`.
    """
    from gpt1.runtime.device import choose_device

    return load_pretrained(
        args.model_dir or default_model_dir(program),
        args.params,
        n_head=args.n_head,
        spacy_rules=args.spacy_rules,
        afn=args.afn,
        device=choose_device(args.device),
    )


def default_model_dir(program: str) -> Path:
    """``model/``, or the bundled demo while there is no vocabulary."""
    model_dir, demo = Path("model"), Path("model/demo")
    if os.path.isfile(vocabulary_files(model_dir)[0]) or not os.path.isfile(demo / VOCABULARY):
        return model_dir
    print(f"{program}: no model in {model_dir}/, using the demo's in {demo}/", file=sys.stderr)
    return demo
