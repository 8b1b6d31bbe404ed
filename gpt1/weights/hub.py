"""Read and write directories of the model hub in transformers' ``openai-gpt`` layout.

Such a directory holds the sizes (``config.json``), the arrays (``model.safetensors``, or
``pytorch_model.bin``), and the vocabulary and merges under other names than the released ones
(``vocab.json``, ``merges.txt``). The layout has two matrices in place of the original's ``we``:
token rows, which the rows of special tokens may follow, and position rows. transformers itself is
not needed here, and no code in a file is run.

Axes: D width, V rows of ``we``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from gpt1.model.transformer import INIT_STD, LN_EPSILON, ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, unreadable
from gpt1.settings.command import Spelling, as_keyword
from gpt1.settings.words import shorten
from gpt1.tasks.record import TaskRecord
from gpt1.text_utils.special import SPECIAL_TOKENS
from gpt1.weights.locate import (
    HUB_CARD,
    HUB_CONFIG,
    HUB_ENCODER,
    HUB_GENERATION_CONFIG,
    HUB_MERGES,
    HUB_SAFETENSORS,
    HUB_TOKENIZER_CONFIG,
    TASK,
    copy_vocabulary,
    hub_weights,
    read_json,
    write_json,
)
from gpt1.weights.parameters import (
    Array,
    Shape,
    check_array,
    layer_shapes,
)
from gpt1.weights.released import check_request
from gpt1.weights.tensors import read_safetensors, saved_by_name

MODEL_TYPE = "openai-gpt"
UNKNOWN = "<unk>"

_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# The original's name of each activation by transformers' name. In this model transformers computes
# "gelu" in its tanh form, as the original does.
AFN = {"gelu": "gelu", "relu": "relu", "swish": "swish", "silu": "swish"}
PDROP = 0.1  # the original's dropout rate at every place; no file of parameters records rates
N_CLASSES = "n_classes"  # the entry of config.json for a classifier that transformers lacks
# The choice head as the original has it: one logit from the state at _classify_.
_SUMMARY = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_proj_to_labels": True,
    "summary_activation": None,
}

_TOKENS = "tokens_embed.weight"
_POSITIONS = "positions_embed.weight"
_LM_HEAD = "lm_head.weight"
_CLF_W = "multiple_choice_head.summary.weight"
_CLF_B = "multiple_choice_head.summary.bias"
_BUFFERS = re.compile(r"h\.\d+\.attn\.bias|position_ids")  # constants that old files hold


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """The sizes and the activation in a ``config.json``.

    Attributes:
        vocab_size: number of token rows, including those of special tokens.
        n_positions: number of position rows.
        n_embd, n_layer, n_head: as in the original.
        afn: the activation, under the original's name.
        n_classes: number of outputs of the classifier; 1 for a choice head, or if there is none.
        has_choice_settings: whether a choice head with these settings computes what the original's
            classifier computes.
        task: the record of a fine-tuned model's task, as it is in the file; None if there is none.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    afn: str
    n_classes: int
    has_choice_settings: bool
    task: Any = None


# Reading


def read_config(model_dir: str | Path) -> HubConfig:
    """Read the sizes of the model in ``model_dir`` from its ``config.json``.

    Raises:
        InputError: ``config.json`` is missing or damaged, or describes another model than GPT-1.
    """
    path = Path(model_dir) / HUB_CONFIG
    config = read_json(path, "the model's settings")
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected one JSON object; copy the file again.")
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{path}: model_type is {_shown(config.get('model_type'))}, expected {MODEL_TYPE!r}; "
            "name the directory of a GPT-1 model."
        )
    sizes = {name: _size(path, config, name) for name in _SIZES}
    afn = config.get("afn", "gelu")
    if not isinstance(afn, str) or afn not in AFN:
        raise InputError(f"{path}: afn is {_shown(afn)}, expected one of {', '.join(AFN)}.")
    epsilon = config.get("layer_norm_epsilon", LN_EPSILON)
    if epsilon != LN_EPSILON:
        raise InputError(
            f"{path}: layer_norm_epsilon is {_shown(epsilon)}, but GPT-1 has {LN_EPSILON} fixed; "
            "a model trained with another one cannot be used."
        )
    same = all(config.get(name, value) == value for name, value in _SUMMARY.items())
    n_classes = _size(path, config, N_CLASSES) if N_CLASSES in config else 1
    return HubConfig(
        **sizes,
        afn=AFN[afn],
        n_classes=n_classes,
        has_choice_settings=same,
        task=config.get(TASK),
    )


def n_special_rows(config: HubConfig, n_vocab: int, path: str | Path) -> int:
    """Return how many rows of special tokens the token matrix has: 0 or 3.

    Args:
        config: from :func:`read_config`.
        n_vocab: number of tokens in the vocabulary.
        path: the directory, for the message.

    Raises:
        InputError: the matrix has neither one row per token of the vocabulary nor three more.
    """
    n_special = config.vocab_size - n_vocab
    if n_special not in (0, len(SPECIAL_TOKENS)):
        raise InputError(
            f"{Path(path) / HUB_CONFIG}: vocab_size is {config.vocab_size}, but the vocabulary has "
            f"{n_vocab} tokens; expected {n_vocab}, or {n_vocab + len(SPECIAL_TOKENS)} with rows "
            f"for {', '.join(SPECIAL_TOKENS)}; use the vocabulary that came with the weights."
        )
    return n_special


def load_hub(
    model_dir: str | Path,
    *,
    n_vocab: int,
    special: Array,
    n_ctx: int,
    n_transfer: int,
    classifier: bool = False,
    spell: Spelling = as_keyword,
) -> dict[str, Array]:
    """Read parameters from a hub directory, as :func:`gpt1.weights.load_released` does.

    float16 and bfloat16 are converted to float32, which is exact.

    Args:
        model_dir: the directory with ``config.json`` and the arrays, ``model.safetensors`` or
            ``pytorch_model.bin``.
        n_vocab: number of tokens in the vocabulary; three token rows after them are taken for
            those of the special tokens.
        special: [n_special, D], rows for the special tokens if the directory has none.
        n_ctx: number of position rows to take, from the first.
        n_transfer: number of layers to take; with 0 only ``we`` is taken, with -1 nothing is taken
            or read.
        classifier: whether to take a choice head, too. Fine-tuning starts from a fresh one.
        spell: how messages name ``n_ctx`` and ``n_transfer``.

    Returns:
        float32 arrays by the original's names, in its order and file shapes: ``we`` as tokens,
        special rows, positions; twelve arrays per layer; ``clf/w`` [D, C] and ``clf/b`` [C].

    Raises:
        InputError: the model has fewer layers or position rows than ``n_transfer`` or ``n_ctx``;
            or a file is missing, damaged, or does not fit the others. The message names the array.
    """
    if n_transfer == -1:
        return {}
    config = read_config(model_dir)
    n_special = n_special_rows(config, n_vocab, model_dir)
    check_request(model_dir, config.n_layer, n_transfer, config.n_positions, n_ctx, spell)
    arrays = _read_arrays(hub_weights(model_dir), config)
    rows = [arrays[_TOKENS], *([] if n_special else [special]), arrays[_POSITIONS][:n_ctx]]
    params = {"we": np.concatenate(rows)}
    for name, shape in layer_shapes(config.n_embd, n_transfer).items():
        params[name] = arrays[hub_name(name)].reshape(shape)
    clf_w, clf_b = _classifier_names(config.n_classes)
    if classifier and clf_w in arrays:
        params |= {"clf/w": arrays[clf_w].T, "clf/b": arrays[clf_b]}
    return params


def _read_arrays(path: Path, config: HubConfig) -> dict[str, Array]:
    """Read and check all arrays of a file: float32, by their names in the hub's layout."""
    tensors = _without_prefix(path, _read_tensors(path))
    if _LM_HEAD in tensors:  # A file holds the tied matrix as input, as output, or as both.
        tensors.setdefault(_TOKENS, tensors[_LM_HEAD])
    shapes = _expected_shapes(config, path, tensors)
    arrays = {name: _to_array(path, name, tensors[name], shapes[name]) for name in shapes}
    if not np.array_equal(arrays[_TOKENS], arrays.get(_LM_HEAD, arrays[_TOKENS])):
        raise InputError(
            f"{path}: {_LM_HEAD} differs from {_TOKENS}, but GPT-1 has one matrix for both; "
            "a model with two cannot be used."
        )
    if _CLF_W in arrays and not config.has_choice_settings:
        wanted = ", ".join(f"{name} {json.dumps(value)}" for name, value in _SUMMARY.items())
        raise InputError(
            f"{path.with_name(HUB_CONFIG)}: the choice head is another than GPT-1's, which has "
            f"{wanted}; it cannot be used."
        )
    return arrays


def _size(path: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise InputError(
            f"{path}: {name} is {_shown(value) if name in config else 'missing'}, expected a "
            "positive whole number; copy the file again from where the model came from."
        )
    return value


def _shown(value: object) -> str:
    """Return a value from a file as a message quotes it: short, on one line."""
    return shorten(json.dumps(value), 40)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a file; a pickle may build tensors and a dictionary, nothing else."""
    is_safetensors = path.name == HUB_SAFETENSORS
    try:
        if is_safetensors:
            tensors: object = read_safetensors(path)[1]
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise unreadable(path, "the parameters", error) from error
    except Exception as error:  # A damaged file can raise almost any exception in torch.
        what = "safetensors file" if is_safetensors else "file of torch tensors alone"
        # torch's message is not quoted: it may recommend loading the file without protection.
        detail = f": {error!s:.200}" if is_safetensors else ""
        raise InputError(
            f"{path}: not a whole {what}{detail}. Nothing in it was run; copy it again, or use a "
            "model.safetensors from a source you trust."
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in tensors.items()
    ):
        raise InputError(
            f"{path}: expected a dictionary of tensors by name; save the model with "
            "model.save_pretrained(DIR)."
        )
    return tensors


def _without_prefix(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parameters by their names in a model without a head.

    Models with a head have the prefix ``transformer.`` before these names. Buffers are left out.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("transformer.")
        if _BUFFERS.fullmatch(bare):
            continue
        if bare in found:
            raise InputError(
                f"{path}: array {_shown(bare)} is there twice, with and without the prefix "
                "'transformer.'; keep one of the two."
            )
        found[bare] = tensor
    return found


def _expected_shapes(
    config: HubConfig, path: Path, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Shape]:
    """Return the shape of each array that the file must hold, by its name in the hub's layout.

    Raises:
        InputError: the file lacks one of these arrays, or holds another one.
    """
    if config.n_layer > len(tensors):  # so that an absurd n_layer makes no table of that length
        raise InputError(
            f"{path}: holds {len(tensors)} arrays, too few for the {config.n_layer} layers in "
            f"{HUB_CONFIG}; use the files of one checkpoint."
        )
    d = config.n_embd
    shapes: dict[str, Shape] = {
        _TOKENS: (config.vocab_size, d),
        _POSITIONS: (config.n_positions, d),
    }
    for name, shape in layer_shapes(d, config.n_layer).items():
        shapes[hub_name(name)] = shape[-2:]  # A kernel [1, n_in, n_out] is [n_in, n_out] here.
    if _LM_HEAD in tensors:
        shapes[_LM_HEAD] = shapes[_TOKENS]
    clf_w, clf_b = _classifier_names(config.n_classes)
    if tensors.keys() & {clf_w, clf_b}:
        shapes |= {clf_w: (config.n_classes, d), clf_b: (config.n_classes,)}
    for name in shapes:
        if name not in tensors:
            raise InputError(f"{path}: array {name} is missing; use the files of one checkpoint.")
    for name in tensors:
        if name not in shapes:
            raise InputError(
                f"{path}: array {_shown(name)} is not one of GPT-1's {config.n_layer} layers, "
                "embeddings or choice head; of a model for another task, save the part "
                "'transformer' alone: model.transformer.save_pretrained(DIR)."
            )
    return shapes


def _classifier_names(n_classes: int) -> tuple[str, str]:
    """Return the names of the classifier's matrix and bias.

    transformers has a place for a choice head, but none for a classifier of summed states.
    """
    return (_CLF_W, _CLF_B) if n_classes == 1 else ("classifier.weight", "classifier.bias")


def hub_name(name: str) -> str:
    """Return a layer parameter's name in the hub's layout.

    For example, ``h0/attn/c_attn/w`` is ``h.0.attn.c_attn.weight`` there.
    """
    *path, last = re.sub(r"^h(\d+)/", r"h/\1/", name).split("/")
    return ".".join([*path, "bias" if last == "b" else "weight"])


def _to_array(path: Path, name: str, tensor: torch.Tensor, shape: Shape) -> Array:
    """Convert a tensor from a file to a float32 array, and check it.

    Raises:
        InputError: the tensor is not stored number by number, has another shape or dtype, or holds
            a value that is not finite.
    """
    # A pickle can describe a tensor larger than its data: one number repeated, or a sparse tensor.
    plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta)
    if not plain or tensor.is_neg() or not tensor.is_contiguous():
        raise InputError(
            f"{path}: array {name} is not stored number by number; save the model with "
            "model.save_pretrained(DIR)."
        )
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"{path}: array {name} has shape {list(tensor.shape)}, but {HUB_CONFIG} makes it "
            f"{list(shape)}; use the files of one checkpoint."
        )
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(
            f"{path}: array {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected "
            "float32; in transformers: model.float().save_pretrained(DIR)."
        )
    array: Array = tensor.detach().float().numpy()
    check_array(array, name, shape, path)
    return array


# Writing


def write_hub(
    model_dir: str | Path,
    params: Mapping[str, Array],
    vocabulary: tuple[str | Path, str | Path],
    config: ModelConfig,
    task: TaskRecord | None = None,
) -> None:
    """Write a directory that transformers opens with ``from_pretrained``; arrays stay bit for bit.

    Special rows follow the token rows, and the tokenizer's settings name the special tokens. A
    classifier becomes the choice head of ``OpenAIGPTDoubleHeadsModel``. Each file is written
    whole or not at all, and ``config.json`` last, so that a directory with ``config.json`` is
    complete.

    Args:
        model_dir: the directory to write; made if it does not exist.
        params: float32 arrays by the original's names, in file shapes, with or without a
            classifier. In transformers the model has only the position rows of this ``we``.
        vocabulary: the files of the vocabulary and the merges, which are copied byte for byte.
        config: sizes and activation of the model.
        task: the record of the task that the model was trained on, if it has a classifier.

    Raises:
        InputError: the vocabulary cannot be read.
        Gpt1Error: a file cannot be written.
    """
    model_dir = Path(model_dir)
    copy_vocabulary(vocabulary, model_dir, (HUB_ENCODER, HUB_MERGES))
    with saved_by_name(model_dir / HUB_SAFETENSORS) as name:
        # Some versions of transformers refuse a file that does not name its library.
        safetensors.numpy.save_file(_tensors(params, config), name, metadata={"format": "pt"})
    tokenizer = {
        "tokenizer_class": "OpenAIGPTTokenizer",
        "unk_token": UNKNOWN,
        "model_max_length": config.n_ctx,
        # transformers gives additional tokens the ids after those of the vocabulary.
        **({"additional_special_tokens": list(SPECIAL_TOKENS)} if config.n_special else {}),
    }
    write_json(model_dir / HUB_TOKENIZER_CONFIG, tokenizer, indent=2)
    # No token ends a text, so that the positions are the only end of generation.
    write_json(
        model_dir / HUB_GENERATION_CONFIG, {"do_sample": False, "max_length": config.n_ctx}, 2
    )
    has_choices = "clf/w" in params and config.n_classes == 1
    architecture = f"OpenAIGPT{'DoubleHeads' if has_choices else 'LMHead'}Model"
    with atomic_write(model_dir / HUB_CARD, "w") as file:
        file.write(_card(config, architecture))
    record = {} if task is None else {TASK: task.as_json()}
    settings = {"architectures": [architecture], **_settings(config), **record}
    write_json(model_dir / HUB_CONFIG, settings, indent=2)


_CARD = """\
---
library_name: transformers
---
# A GPT-1 model

| | |
|---|---|
{table}

With the package `gpt1`, where `DIR` is this directory:

```python
import gpt1

model = gpt1.load_pretrained("DIR")
```

With transformers:

```python
from transformers import {architecture}

model = {architecture}.from_pretrained("DIR")
```

The tokenizer of transformers gives other token ids for some texts, and it cannot be used where
piece 0 of the vocabulary is not `{unknown}`. With the package `gpt1`, `model.encode` gives the ids
that the model was trained with.
"""


def _card(config: ModelConfig, architecture: str) -> str:
    """Return the text of a model card: sizes, and how to open the model."""
    facts = {
        "layers": config.n_layer,
        "width": config.n_embd,
        "attention heads": config.n_head,
        "activation": config.afn,
        "tokens of the vocabulary": config.n_vocab,
        "special tokens": ", ".join(f"`{token}`" for token in SPECIAL_TOKENS[: config.n_special])
        or "none",
        "positions (longest text in tokens)": config.n_ctx,
        "choice head": "yes" if "DoubleHeads" in architecture else "no",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return _CARD.format(table=table, architecture=architecture, unknown=UNKNOWN)


def _settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings for ``OpenAIGPTConfig``, whose old versions read n_ctx."""
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": config.first_position,
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "afn": "silu" if config.afn == "swish" else config.afn,
        "layer_norm_epsilon": LN_EPSILON,
        "initializer_range": INIT_STD,
        "embd_pdrop": PDROP,
        "attn_pdrop": PDROP,
        "resid_pdrop": PDROP,
        **_SUMMARY,
        "summary_first_dropout": PDROP,
        "tie_word_embeddings": True,
        **({N_CLASSES: config.n_classes} if config.n_classes > 1 else {}),
    }


def _tensors(params: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    """Return the arrays under the hub's names and in its shapes, without the tied output matrix."""
    n_tokens = config.first_position
    body = {_TOKENS: params["we"][:n_tokens], _POSITIONS: params["we"][n_tokens:]}
    for name in layer_shapes(config.n_embd, config.n_layer):
        body[hub_name(name)] = params[name].reshape(params[name].shape[-2:])
    tensors = {f"transformer.{name}": array for name, array in body.items()}
    if "clf/w" in params:
        clf_w, clf_b = _classifier_names(config.n_classes)
        tensors |= {clf_w: params["clf/w"].T, clf_b: params["clf/b"]}
    # safetensors writes the raw buffer and ignores the strides.
    return {name: np.asarray(array, order="C") for name, array in tensors.items()}
