"""The model hub's directories, transformers' ``openai-gpt`` layout, in and out.

Such a directory holds sizes (``config.json``), arrays (``model.safetensors``, or
``pytorch_model.bin``), and the vocabulary and merges under other names (``vocab.json``,
``merges.txt``). Where the original has one matrix ``we``, it has two: token rows, which the rows
of special tokens may follow, and position rows. transformers itself is not needed here, and
nothing in a file is run.

Axes: D width.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, read_bytes, read_text, unreadable
from gpt1.text_utils.special import SPECIAL_TOKENS
from gpt1.weights import released as weights
from gpt1.weights.released import Array, Shape

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "openai-gpt"
CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
FILES = (CONFIG, SAFETENSORS, VOCABULARY, MERGES, TOKENIZER_CONFIG)  # that write_hub writes

UNKNOWN = "<unk>"

_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# transformers' names of activations, and ours. Its "gelu" is the tanh form for this model.
AFN = {"gelu": "gelu", "relu": "relu", "swish": "swish", "silu": "swish"}
PDROP = 0.1  # the original's rate at every place: no file of parameters records rates
_LN_EPSILON = 1e-5
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
_CLF = {
    "clf/w": "multiple_choice_head.summary.weight",
    "clf/b": "multiple_choice_head.summary.bias",
}
_BUFFERS = re.compile(r"h\.\d+\.attn\.bias|position_ids")  # masks that old files hold


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Sizes from a ``config.json``, and what else shapes the computation.

    Attributes:
        vocab_size: token rows, those of special tokens included.
        n_positions: position rows.
        n_embd, n_layer, n_head: as in the original.
        afn: the activation, under the original's name.
        has_choice_settings: whether a choice head would be the original's.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    afn: str
    has_choice_settings: bool


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A model's float32 parameters, cut where the layouts differ.

    Attributes:
        tokens: [n_vocab, D].
        special: [3, D] of `_start_`, `_delimiter_` and `_classify_`, or None.
        positions: [n_ctx, D].
        blocks: twelve arrays a layer, by the original's names in its file shapes.
        classifier: ``clf/w`` [D, 1] and ``clf/b`` [1], or empty.
        n_head: attention heads.
        afn: activation, under the original's name.
    """

    tokens: Array
    special: Array | None
    positions: Array
    blocks: Mapping[str, Array]
    classifier: Mapping[str, Array]
    n_head: int
    afn: str

    @property
    def n_embd(self) -> int:
        """D, the width."""
        return int(self.tokens.shape[1])

    @property
    def n_layer(self) -> int:
        """Blocks."""
        return sum(name.endswith("/attn/c_attn/w") for name in self.blocks)

    def we(self, special: Array, n_ctx: int | None = None) -> Array:
        """The original's one matrix: tokens, special rows, the first ``n_ctx`` positions [all].

        Args:
            special: rows for the special tokens where these pieces have none, [any, D].
            n_ctx: position rows to take.
        """
        rows = special if self.special is None else self.special
        return np.concatenate([self.tokens, rows, self.positions[:n_ctx]])

    def params(self, special: Array) -> dict[str, Array]:
        """All by the original's names and in its order; ``special`` as in :meth:`we`."""
        return {"we": self.we(special), **self.blocks, **self.classifier}


# Reading


def is_hub(model_dir: str | Path) -> bool:
    """Whether a directory is in the hub's layout, and not (also) in the released one."""
    model_dir = Path(model_dir)
    # Not Path.is_file(): it raises for names too long and for directories that are closed to us.
    is_file = os.path.isfile
    return is_file(model_dir / CONFIG) and not is_file(model_dir / weights.SHAPES_FILE)


def read_config(model_dir: str | Path) -> HubConfig:
    """Sizes of the model in ``model_dir``.

    Raises:
        InputError: ``config.json`` is missing or damaged, or describes another model than GPT-1.
    """
    path = Path(model_dir) / CONFIG
    config = _read_json(path)
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{path}: model_type is {_shown(config.get('model_type'))}, expected {MODEL_TYPE!r}; "
            "name the directory of a GPT-1 model."
        )
    sizes = {name: _size(path, config, name) for name in _SIZES}
    if sizes["n_embd"] % sizes["n_head"]:
        raise InputError(
            f"{path}: n_head {sizes['n_head']} does not divide n_embd {sizes['n_embd']}; "
            "copy the file again from where the model came from."
        )
    afn = config.get("afn", "gelu")
    if not isinstance(afn, str) or afn not in AFN:
        raise InputError(f"{path}: afn is {_shown(afn)}, expected one of {', '.join(AFN)}.")
    epsilon = config.get("layer_norm_epsilon", _LN_EPSILON)
    if epsilon != _LN_EPSILON:
        raise InputError(
            f"{path}: layer_norm_epsilon is {_shown(epsilon)}, but GPT-1 has {_LN_EPSILON} fixed; "
            "a model trained with another one cannot be used."
        )
    same = all(config.get(name, value) == value for name, value in _SUMMARY.items())
    return HubConfig(**sizes, afn=AFN[afn], has_choice_settings=same)


def n_special_rows(config: HubConfig, n_vocab: int, path: str | Path) -> int:
    """Rows of special tokens in the token matrix: 0 or 3.

    Args:
        config: from :func:`read_config`.
        n_vocab: pieces in the vocabulary.
        path: the directory, for the message.

    Raises:
        InputError: the matrix has neither as many rows as the vocabulary nor three more.
    """
    n_special = config.vocab_size - n_vocab
    if n_special not in (0, len(SPECIAL_TOKENS)):
        raise InputError(
            f"{Path(path) / CONFIG}: vocab_size is {config.vocab_size}, but the vocabulary has "
            f"{n_vocab} pieces; expected {n_vocab}, or {n_vocab + len(SPECIAL_TOKENS)} with rows "
            f"for {', '.join(SPECIAL_TOKENS)}; use the vocabulary that came with the weights."
        )
    return n_special


def read_hub(model_dir: str | Path, n_vocab: int) -> Pieces:
    """The model in a hub directory; float16 and bfloat16 are widened, which is exact.

    Args:
        model_dir: with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.
        n_vocab: pieces in the vocabulary; three more token rows are those of special tokens.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others; names the array.
    """
    config = read_config(model_dir)
    n_special = n_special_rows(config, n_vocab, model_dir)
    path = weights_file(model_dir)
    tensors = _without_prefix(path, _read_tensors(path))
    if _LM_HEAD in tensors:  # files hold the tied matrix as input, as output, or as both
        tensors.setdefault(_TOKENS, tensors[_LM_HEAD])
    shapes = _expected_shapes(config, path, tensors)
    arrays = {name: _to_array(path, name, tensors[name], shapes[name]) for name in shapes}

    rows = arrays.pop(_TOKENS)
    if not np.array_equal(rows, arrays.pop(_LM_HEAD, rows)):
        raise InputError(
            f"{path}: {_LM_HEAD} differs from {_TOKENS}, but GPT-1 has one matrix for both; "
            "a model with two cannot be used."
        )
    positions = arrays.pop(_POSITIONS)
    classifier = {}
    if _CLF["clf/w"] in arrays:
        _check_choice_settings(model_dir, config)
        classifier = {
            "clf/w": arrays.pop(_CLF["clf/w"]).reshape(-1, 1),  # [1, D] -> [D, 1]
            "clf/b": arrays.pop(_CLF["clf/b"]),
        }
    return Pieces(
        tokens=rows[:n_vocab],
        special=rows[n_vocab:] if n_special else None,
        positions=positions,
        blocks={ours: arrays[hub_name(ours)].reshape(s) for ours, s in _blocks(config).items()},
        classifier=classifier,
        n_head=config.n_head,
        afn=config.afn,
    )


def load_hub(
    model_dir: str | Path,
    *,
    n_vocab: int,
    special: Array,
    n_ctx: int,
    n_transfer: int,
) -> dict[str, Array]:
    """What training takes from a hub directory, as :func:`gpt1.weights.load_released` does.

    A choice head is never taken: a run starts from a fresh one, as from the released weights.

    Args:
        model_dir: the directory.
        n_vocab: pieces in the vocabulary.
        special: rows for the special tokens where the directory has none, [3, D]; where it has
            them, its own are taken.
        n_ctx: position rows to take, from the first.
        n_transfer: layers to take; 0 takes ``we`` alone, -1 nothing (and reads nothing).

    Returns:
        float32 arrays by the original's names, in file shapes: ``we``, then the layers.

    Raises:
        InputError: more is asked for than there is, or see :func:`read_hub`.
    """
    if n_transfer == -1:
        return {}
    pieces = read_hub(model_dir, n_vocab)
    if not 0 <= n_transfer <= pieces.n_layer:
        raise InputError(
            f"--n_transfer {n_transfer}: the checkpoint in {model_dir} has {pieces.n_layer} "
            f"layers; give 0 to {pieces.n_layer}, or -1 to take nothing from it."
        )
    if not 1 <= n_ctx <= len(pieces.positions):
        raise InputError(
            f"--n_ctx {n_ctx}: the checkpoint in {model_dir} has {len(pieces.positions)} position "
            f"rows; give 1 to {len(pieces.positions)}."
        )
    names = list(pieces.blocks)[: n_transfer * len(pieces.blocks) // pieces.n_layer]
    return {"we": pieces.we(special, n_ctx), **{name: pieces.blocks[name] for name in names}}


def weights_file(model_dir: str | Path) -> Path:
    """The file with a hub directory's arrays; safetensors if there are both kinds.

    Raises:
        InputError: there is none, or it comes in parts.
    """
    model_dir = Path(model_dir)
    for name in (SAFETENSORS, PICKLED):
        if (model_dir / name).is_file():
            return model_dir / name
    for name in (SAFETENSORS, PICKLED):
        index = model_dir / f"{name}.index.json"
        if index.is_file():
            raise InputError(
                f"{index}: weights in several files are not read; in transformers, save the model "
                "again in one: model.save_pretrained(DIR, max_shard_size='10GB')."
            )
    raise InputError(
        f"{model_dir}: has {CONFIG} but no {SAFETENSORS} or {PICKLED}; put the weights there, or "
        "name their directory with --model_dir."
    )


def vocabulary_remedy(path: str | Path) -> str | None:
    """How to get a hub directory's missing vocabulary or merges from its ``tokenizer.json``.

    None if ``path`` is not of such a directory; transformers 5 saves that one file.
    """
    model_dir = Path(path).parent
    if not is_hub(model_dir) or not (model_dir / "tokenizer.json").is_file():
        return None
    return (
        f"tokenizer.json alone is not read; with d={str(model_dir)!r}, transformers writes "
        f"{VOCABULARY} and {MERGES} by "
        "AutoTokenizer.from_pretrained(d).backend_tokenizer.model.save(d)"
    )


def _size(path: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise InputError(
            f"{path}: {name} is {_shown(value) if name in config else 'missing'}, expected a "
            "positive whole number; copy the file again from where the model came from."
        )
    return value


def _read_json(path: Path) -> dict[str, Any]:
    text = read_text(path, "the model's settings")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}; copy the file again.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected one JSON object; copy the file again.")
    return config


def _shown(value: object) -> str:
    """A piece of a file as a message quotes it: short, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All arrays of a file; a pickle may build tensors and their dictionary, nothing else."""
    import torch

    from gpt1.weights.tensors import read_safetensors

    try:
        if path.name == SAFETENSORS:
            tensors: object = read_safetensors(path)[1]
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise unreadable(path, "the parameters", error) from error
    except Exception as error:  # torch's own, and others from damaged files
        what = "safetensors file" if path.name == SAFETENSORS else "file of torch tensors alone"
        # torch's message may recommend to load the file without protection: it is not passed on.
        detail = f": {error!s:.200}" if path.name == SAFETENSORS else ""
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
    """Tensors by the bare model's names, which heads put ``transformer.`` before; no buffers."""
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
    """Shapes of all arrays that the file must hold, by its names; it may not hold others."""
    if config.n_layer > len(tensors):  # before a table of absurd length is made
        raise InputError(
            f"{path}: holds {len(tensors)} arrays, too few for the {config.n_layer} layers in "
            f"{CONFIG}; use the files of one checkpoint."
        )
    d = config.n_embd
    shapes: dict[str, Shape] = {
        _TOKENS: (config.vocab_size, d),
        _POSITIONS: (config.n_positions, d),
    }
    for name, shape in _blocks(config).items():
        shapes[hub_name(name)] = shape[-2:]  # kernels [1, n_in, n_out] are [n_in, n_out] there
    if _LM_HEAD in tensors:
        shapes[_LM_HEAD] = shapes[_TOKENS]
    if tensors.keys() & set(_CLF.values()):
        shapes |= {_CLF["clf/w"]: (1, d), _CLF["clf/b"]: (1,)}
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


def _blocks(config: HubConfig) -> dict[str, Shape]:
    """Names and file shapes of the layers in the original."""
    from gpt1.model.transformer import ModelConfig

    sizes = ModelConfig(n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head)
    shapes = weights.parameter_shapes(sizes)
    return {name: shape for name, shape in shapes.items() if name.startswith("h")}


def hub_name(name: str) -> str:
    """``h0/attn/c_attn/w`` is ``h.0.attn.c_attn.weight`` in the hub's layout."""
    *path, last = re.sub(r"^h(\d+)/", r"h/\1/", name).split("/")
    return ".".join([*path, "bias" if last == "b" else "weight"])


def _to_array(path: Path, name: str, tensor: torch.Tensor, shape: Shape) -> Array:
    """A tensor from a file as a float32 array that the file really held."""
    import torch

    # A pickle can claim more than it holds: one number repeated, a sparse or an empty tensor.
    plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta)
    if not plain or tensor.is_neg() or not tensor.is_contiguous():
        raise InputError(
            f"{path}: array {name} is not stored number by number; save the model with "
            "model.save_pretrained(DIR)."
        )
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"{path}: array {name} has shape {list(tensor.shape)}, but {CONFIG} makes it "
            f"{list(shape)}; use the files of one checkpoint."
        )
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(
            f"{path}: array {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected "
            "float32; in transformers: model.float().save_pretrained(DIR)."
        )
    array: Array = tensor.detach().float().numpy()
    check_numbers(array, name, path)
    return array


def check_numbers(array: Array, name: str, source: str | Path) -> None:
    """Refuse another dtype than float32, NaN and infinity with an :class:`InputError`."""
    if array.dtype != np.float32:
        raise InputError(
            f"{source}: array {name} has dtype {array.dtype}, expected float32; convert it."
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{source}: array {name} holds NaN or infinity; the file is damaged, or the run that "
            "wrote it diverged."
        )


def _check_choice_settings(model_dir: str | Path, config: HubConfig) -> None:
    if not config.has_choice_settings:
        wanted = ", ".join(f"{name} {json.dumps(value)}" for name, value in _SUMMARY.items())
        raise InputError(
            f"{Path(model_dir) / CONFIG}: the choice head is another than GPT-1's, which has "
            f"{wanted}; it cannot be used."
        )


# Writing


def write_hub(
    model_dir: str | Path, pieces: Pieces, encoder_path: str | Path, bpe_path: str | Path
) -> None:
    """Write a directory that transformers opens with ``from_pretrained``, bit for bit.

    Special rows follow the tokens, with the special tokens in the tokenizer's settings; a
    classifier becomes the choice head of ``OpenAIGPTDoubleHeadsModel``. Each file is written
    whole, ``config.json`` last, so that a directory that has it has the rest.

    Args:
        model_dir: made if it is not there.
        pieces: the model; the position rows it has are all that transformers will have.
        encoder_path, bpe_path: its vocabulary and merges, copied byte for byte.

    Raises:
        InputError: the vocabulary cannot be read.
        Gpt1Error: a file cannot be written.
    """
    import safetensors.numpy

    from gpt1.weights.tensors import saved_by_name

    model_dir = Path(model_dir)
    copies = {
        VOCABULARY: read_bytes(encoder_path, "the vocabulary"),
        MERGES: read_bytes(bpe_path, "the BPE merges"),
    }
    with saved_by_name(model_dir / SAFETENSORS) as name:
        # Some versions of transformers refuse a file that does not name its library.
        safetensors.numpy.save_file(_tensors(pieces), name, metadata={"format": "pt"})
    for copy, data in copies.items():
        with atomic_write(model_dir / copy) as file:
            file.write(data)
    _write_json(model_dir / TOKENIZER_CONFIG, _tokenizer_settings(pieces))
    _write_json(model_dir / CONFIG, _settings(pieces))


def _tensors(pieces: Pieces) -> dict[str, Array]:
    """The arrays under the hub's names, in its shapes; the tied output matrix is left out."""
    rows = [pieces.tokens] if pieces.special is None else [pieces.tokens, pieces.special]
    body = {_TOKENS: np.concatenate(rows), _POSITIONS: pieces.positions}
    for name, array in pieces.blocks.items():
        body[hub_name(name)] = array[0] if array.ndim == 3 else array
    tensors = {f"transformer.{name}": array for name, array in body.items()}
    if pieces.classifier:
        tensors[_CLF["clf/w"]] = pieces.classifier["clf/w"].reshape(1, -1)  # [D, 1] -> [1, D]
        tensors[_CLF["clf/b"]] = pieces.classifier["clf/b"]
    # The package writes the raw buffer, whatever the strides say.
    return {name: np.asarray(array, order="C") for name, array in tensors.items()}


def _settings(pieces: Pieces) -> dict[str, Any]:
    """``config.json``: what ``OpenAIGPTConfig`` reads, new (n_positions) and old (n_ctx)."""
    heads = "DoubleHeads" if pieces.classifier else "LMHead"
    n_special = 0 if pieces.special is None else len(pieces.special)
    return {
        "architectures": [f"OpenAIGPT{heads}Model"],
        "model_type": MODEL_TYPE,
        "vocab_size": len(pieces.tokens) + n_special,
        "n_positions": len(pieces.positions),
        "n_ctx": len(pieces.positions),
        "n_embd": pieces.n_embd,
        "n_layer": pieces.n_layer,
        "n_head": pieces.n_head,
        "afn": "silu" if pieces.afn == "swish" else pieces.afn,
        "layer_norm_epsilon": _LN_EPSILON,
        "initializer_range": 0.02,
        "embd_pdrop": PDROP,
        "attn_pdrop": PDROP,
        "resid_pdrop": PDROP,
        **_SUMMARY,
        "summary_first_dropout": PDROP,
        "tie_word_embeddings": True,
    }


def _tokenizer_settings(pieces: Pieces) -> dict[str, Any]:
    """``tokenizer_config.json``; what is additional gets the ids after the vocabulary's."""
    settings: dict[str, Any] = {
        "tokenizer_class": "OpenAIGPTTokenizer",
        "unk_token": UNKNOWN,
        "model_max_length": len(pieces.positions),
    }
    if pieces.special is not None:
        settings["additional_special_tokens"] = list(SPECIAL_TOKENS)
    return settings


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
