"""Find the files of a model: names, layouts, vocabulary. Imports neither NumPy nor torch.

A model is a directory in the released layout, a directory in the model hub's layout, or one file
with a full parameter list, which a training run writes into the directory ``save/<desc>/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt1.runtime.demo import demo_dir
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, read_bytes, read_text
from gpt1.settings.groups import ACTIVATION_NAMES
from gpt1.text_utils.vocabulary import RELEASED_NAMES

N_SHARDS = 10
SHARDS = tuple(f"params_{index}.npy" for index in range(N_SHARDS))
SHAPES_FILE = "params_shapes.json"
# Holds what no array shows: the number of heads, and perhaps the activation.
CONFIG_FILE = "gpt1_config.json"
RELEASED_N_HEAD = 12
# The entry of a configuration, in both layouts, with the record of the task of a fine-tuned model.
TASK = "gpt1_task"
ENCODER_FILE, BPE_FILE = RELEASED_NAMES
RELEASED_FILES = (ENCODER_FILE, BPE_FILE, SHAPES_FILE, CONFIG_FILE, *SHARDS)

HUB_CONFIG = "config.json"
HUB_SAFETENSORS, HUB_PICKLE = "model.safetensors", "pytorch_model.bin"
HUB_ENCODER, HUB_MERGES = "vocab.json", "merges.txt"
HUB_TOKENIZER_CONFIG = "tokenizer_config.json"
HUB_GENERATION_CONFIG, HUB_CARD = "generation_config.json", "README.md"
# The files that gpt1.weights.hub.write_hub writes.
HUB_FILES = (
    HUB_CONFIG,
    HUB_SAFETENSORS,
    HUB_ENCODER,
    HUB_MERGES,
    HUB_TOKENIZER_CONFIG,
    HUB_GENERATION_CONFIG,
    HUB_CARD,
)

LIST_SUFFIXES = (".jl", ".safetensors")
RUN_LIST = "best_params.jl"
CHECKPOINTS = "checkpoint-*.safetensors"
# Of a size that a file gives: no model comes near, and products of a few sizes stay printable.
LARGEST_SIZE = 2**31 - 1

# Path.is_file() is not used: it raises an error for a name that is too long, and for a directory
# that this process may not read.
_is_file = os.path.isfile


def is_released(model_dir: str | Path) -> bool:
    """Return whether a directory has the table of a checkpoint in the released layout."""
    return _is_file(Path(model_dir) / SHAPES_FILE)


def is_hub(model_dir: str | Path) -> bool:
    """Return whether a directory is in the hub's layout and not also in the released one."""
    return _is_file(Path(model_dir) / HUB_CONFIG) and not is_released(model_dir)


def list_file(path: str | Path) -> Path | None:
    """Return the file with a full parameter list that ``path`` names; None if there is none.

    The directory of a run, which holds no model in another layout, names the file with the run's
    best parameters.

    Raises:
        InputError: the file has another suffix, belongs to a hub model, or is the state of a
            training run.
    """
    path = Path(path)
    if os.path.isdir(path):
        found = not (is_released(path) or is_hub(path)) and _is_file(path / RUN_LIST)
        return path / RUN_LIST if found else None
    if path.name in (HUB_SAFETENSORS, HUB_PICKLE) and is_hub(path.parent):
        raise InputError(f"{path}: is part of a hub model; name the directory {path.parent}")
    if path.match(CHECKPOINTS):
        beside = path.with_name(RUN_LIST)
        make_it = f"train with --submit, which writes {beside}, and name that"
        remedy = f"name {beside} instead" if _is_file(beside) else make_it
        raise InputError(
            f"{path}: is the state of a training run, from which --resume goes on, and not a list "
            f"of parameters; {remedy}"
        )
    if path.suffix in LIST_SUFFIXES:
        return path
    if not (path.suffix or os.path.lexists(path)):
        return None
    raise InputError(
        f"{path}: a parameter file ends in .jl or .safetensors, and this is no directory; name one "
        "of the two"
    )


def vocabulary_files(model_dir: str | Path) -> tuple[Path, Path]:
    """Return the paths of the vocabulary and the merges in a model directory of either layout."""
    model_dir = Path(model_dir)
    if is_hub(model_dir) and not _is_file(model_dir / ENCODER_FILE):
        return model_dir / HUB_ENCODER, model_dir / HUB_MERGES
    return model_dir / ENCODER_FILE, model_dir / BPE_FILE


def vocabulary_beside(path: str | Path) -> Path | None:
    """The directory of a parameter list if its vocabulary lies there, as in that of a run."""
    file = list_file(path)
    found = file is not None and _is_file(vocabulary_files(file.parent)[0])
    return file.parent if file is not None and found else None


def copy_vocabulary(
    files: tuple[str | Path, str | Path], model_dir: Path, names: tuple[str, str]
) -> None:
    """Copy vocabulary and merges, byte for byte, into a directory under other names.

    Raises:
        InputError: one of the files cannot be read; nothing is written then.
        Gpt1Error: a file cannot be written.
    """
    contents = [read_bytes(file, "the vocabulary") for file in files]
    for name, data in zip(names, contents, strict=True):
        with atomic_write(model_dir / name) as file:
            file.write(data)


def missing_vocabulary(path: Path, remedy: str) -> str | None:
    """Return a message if a file of the vocabulary or the merges is missing, else None.

    transformers 5 saves one file ``tokenizer.json`` in place of the two files. If it is there, the
    message says how to make the two files from it; otherwise the message ends with ``remedy``.
    """
    if _is_file(path):
        return None
    model_dir = path.parent
    if is_hub(model_dir) and _is_file(model_dir / "tokenizer.json"):
        remedy = (
            f"tokenizer.json alone is not read; with d={str(model_dir)!r}, transformers writes "
            f"{HUB_ENCODER} and {HUB_MERGES} by "
            "AutoTokenizer.from_pretrained(d).backend_tokenizer.model.save(d)"
        )
    return f"{path} is missing: {remedy}"


def hub_weights(model_dir: str | Path) -> Path:
    """Return the file with a hub directory's arrays; the safetensors file if there are two.

    Raises:
        InputError: there is no such file, or the arrays are split over several files.
    """
    model_dir = Path(model_dir)
    for name in (HUB_SAFETENSORS, HUB_PICKLE):
        if _is_file(model_dir / name):
            return model_dir / name
    for name in (HUB_SAFETENSORS, HUB_PICKLE):
        index = model_dir / f"{name}.index.json"
        if _is_file(index):
            raise InputError(
                f"{index}: weights in several files are not read; in transformers, save the model "
                "again in one: model.save_pretrained(DIR, max_shard_size='10GB')."
            )
    raise InputError(
        f"{model_dir}: has {HUB_CONFIG} but no {HUB_SAFETENSORS} or {HUB_PICKLE}; put the weights "
        "there, or name their directory (on the command line with --model_dir)."
    )


def require_model(path: Path) -> None:
    """See that there is a model in a directory, of either layout, be it incomplete.

    Raises:
        InputError: there is none; says what a directory with a model is.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file or directory")
    names = (HUB_CONFIG, SHAPES_FILE, *SHARDS)
    if not os.path.isdir(path) or any(_is_file(path / name) for name in names):
        return
    if any(path.glob(CHECKPOINTS)):
        raise InputError(
            f"{path}: holds the state of a training run, but not {RUN_LIST}; train with --submit, "
            "which writes it"
        )
    raise InputError(
        f"{path}: there is no model in this directory; name the directory of a model, such as "
        "model/, or of a run with --submit, such as save/rocstories/"
    )


def require_released(model_dir: Path, names: Sequence[str]) -> None:
    """Check that a directory has these files of the released layout.

    Raises:
        InputError: a file is missing; the message names all missing files.
    """
    missing = [name for name in names if not _is_file(model_dir / name)]
    if missing:
        raise InputError(
            f"{model_dir}: no {', '.join(missing)}; a checkpoint is {SHAPES_FILE} and {SHARDS[0]} "
            f"to {SHARDS[-1]}, as in the directory model/ of openai/finetune-transformer-lm: fetch "
            "them with 'gpt1 download', name their directory (on the command line with "
            "--model_dir), or train without a checkpoint (--n_transfer -1)."
        )


def default_model_dir() -> Path:
    """Return ``model/``, or the directory of the demo if ``model/`` has no vocabulary."""
    model_dir, demo = Path("model"), demo_dir("model")
    if _is_file(vocabulary_files(model_dir)[0]) or not _is_file(demo / ENCODER_FILE):
        return model_dir
    return demo


def read_config_file(model_dir: str | Path) -> dict[str, Any]:
    """Read ``gpt1_config.json`` beside a checkpoint or a parameter list.

    The released layout and ``.jl`` lists record neither the number of attention heads nor the
    activation. Whether the heads divide the width is not checked here.

    Returns:
        ``n_head`` and, where the file has them, ``afn`` and :data:`TASK`, the record of a task as
        it is in the file; nothing without that file.

    Raises:
        InputError: the file is not ``{"n_head": N}``, perhaps with ``"afn"`` and the record.
    """
    path = Path(model_dir) / CONFIG_FILE
    if not os.path.lexists(path):
        return {}
    config = read_json(path, "the checkpoint's settings")
    values = config if isinstance(config, dict) else {}
    is_known = values.keys() <= {"n_head", "afn", TASK} and is_size(values.get("n_head"))
    if not is_known or values.get("afn", "gelu") not in ACTIVATION_NAMES:
        raise InputError(
            f'{path}: expected {{"n_head": N}} with N a whole number from 1 to {LARGEST_SIZE}, and '
            f'perhaps "afn", one of {", ".join(ACTIVATION_NAMES)}; correct it, or remove the file '
            "and give the number (on the command line, --n_head)."
        )
    return values


def read_n_head(model_dir: str | Path) -> int | None:
    """Read the attention heads of a checkpoint; None where nothing records them.

    Raises:
        InputError: see :func:`read_config_file`.
    """
    n_head: int | None = read_config_file(model_dir).get("n_head")
    return n_head


def is_size(value: Any) -> bool:
    """Return whether a value from a JSON file can be a size, such as a number of rows or layers."""
    return type(value) is int and 0 < value <= LARGEST_SIZE


def read_json(path: Path, what: str) -> Any:
    """Read the value in a JSON file.

    Args:
        path: the file.
        what: what the file should be, for the message.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {what}: {error}; copy the file again.") from error


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=indent) + "\n")
