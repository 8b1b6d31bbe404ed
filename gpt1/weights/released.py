"""Parameter files in and out: the released shards, ``.jl`` lists, safetensors.

Three layouts carry the same float32 arrays, under the original's names and in its order:

* the released checkpoint: positions, tokens and layers as one flat vector in ten ``.npy`` shards,
  cut by ``params_shapes.json``; it has no special-token rows and no classifier;
* a full list, ``we, h0/attn/c_attn/w, ..., clf/w, clf/b``, in a joblib file (``best_params.jl``);
* the same full list under its names in a safetensors file.

Kernels are [1, n_in, n_out] in files (the original's convolutions of width one) and
[n_in, n_out] in the model. Nothing here runs code from a file (see :mod:`gpt1.weights.jl`).

Axes: D width, V rows of ``we``.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import (
    atomic_write,
    check_regular,
    read_errors,
    read_text,
    unreadable,
)
from gpt1.weights.jl import read_jl

if TYPE_CHECKING:
    import torch

    from gpt1.model.transformer import ModelConfig

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

N_SHARDS = 10
RELEASED_N_HEAD = 12
SHAPES_FILE = "params_shapes.json"
CONFIG_FILE = "gpt1_config.json"
_LARGEST = 2**31 - 1  # of a size: no model comes near, and products of a few stay printable


# Names and shapes: the one table


def _layer_shapes(n_embd: int) -> dict[str, Shape]:
    """The twelve arrays of a block, in the original's order, with their shapes in files."""
    d = n_embd
    return {
        "attn/c_attn/w": (1, d, 3 * d),
        "attn/c_attn/b": (3 * d,),
        "attn/c_proj/w": (1, d, d),
        "attn/c_proj/b": (d,),
        "ln_1/g": (d,),
        "ln_1/b": (d,),
        "mlp/c_fc/w": (1, d, 4 * d),
        "mlp/c_fc/b": (4 * d,),
        "mlp/c_proj/w": (1, 4 * d, d),
        "mlp/c_proj/b": (d,),
        "ln_2/g": (d,),
        "ln_2/b": (d,),
    }


_PER_LAYER = len(_layer_shapes(1))


def _block_shapes(n_embd: int, n_layer: int) -> dict[str, Shape]:
    layer = _layer_shapes(n_embd)
    return {f"h{i}/{name}": shape for i in range(n_layer) for name, shape in layer.items()}


def _list_shapes(rows: int, n_embd: int, n_layer: int) -> dict[str, Shape]:
    blocks = _block_shapes(n_embd, n_layer)
    return {"we": (rows, n_embd), **blocks, "clf/w": (n_embd, 1), "clf/b": (1,)}


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names of all parameters, in the original's order, with their shapes in files.

    ``we`` is [n_vocab + n_special + n_ctx, n_embd]; kernels are [1, n_in, n_out]. The names are
    the original's TensorFlow variables without ``model/`` and ``:0``.
    """
    rows = config.n_vocab + config.n_special + config.n_ctx
    return _list_shapes(rows, config.n_embd, config.n_layer)


@dataclass(frozen=True, kw_only=True)
class ListShapes:
    """Sizes of a full parameter list: rows of ``we``, width and number of blocks."""

    rows: int
    n_embd: int
    n_layer: int


def config_of_list(arrays: Sequence[Array], source: str | Path) -> ListShapes:
    """Sizes of a full parameter list, every array's shape checked against them.

    Args:
        arrays: ``we``, twelve arrays a block, ``clf/w`` and ``clf/b``.
        source: where they come from, for messages.

    Raises:
        InputError: the number of arrays or the shape of one does not fit such a list.
    """
    n_layer, rest = divmod(len(arrays) - 3, _PER_LAYER)
    if n_layer < 1 or rest:
        raise InputError(
            f"{source}: holds {len(arrays)} arrays, but a full list has 3 + {_PER_LAYER} * n_layer "
            "(we, the layers, clf/w, clf/b); use a file that this program or the original saved."
        )
    if arrays[0].ndim != 2 or not arrays[0].size:
        raise InputError(
            f"{source}: array 0 (we) has shape {list(arrays[0].shape)}, expected [rows, n_embd]; "
            "use a file that this program or the original saved."
        )
    rows, n_embd = arrays[0].shape
    shapes = _list_shapes(rows, n_embd, n_layer)
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        _check_shape(array, name, shape, source)
    return ListShapes(rows=rows, n_embd=n_embd, n_layer=n_layer)


def _check_shape(array: Array, name: str, shape: Shape, source: str | Path) -> None:
    if array.shape != shape:
        raise InputError(
            f"{source}: array {name} has shape {list(array.shape)}, expected {list(shape)}; "
            "the sizes must be those it was saved with (--n_embd, --n_layer, --n_ctx, vocabulary)."
        )


def _check_values(array: Array, name: str, shape: Shape, source: str | Path) -> None:
    """Refuse what must not enter a model: another shape, another dtype, NaN, infinity."""
    _check_shape(array, name, shape, source)
    if array.dtype != np.float32:
        raise InputError(
            f"{source}: array {name} has dtype {array.dtype}, expected float32; convert it."
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{source}: array {name} holds NaN or infinity; the file is damaged, or the run that "
            "wrote it diverged (lower --lr)."
        )


# Parameters to and from a model


def to_list(model: torch.nn.Module) -> list[Array]:
    """All parameters as float32 copies, in the original's order and shapes."""
    import torch

    return [
        np.array(parameter.detach().to("cpu", torch.float32).numpy()).reshape(shape)
        for _, shape, parameter in _model_table(model)
    ]


def from_list(model: torch.nn.Module, arrays: Sequence[Array], source: str | Path) -> None:
    """Copy a full parameter list into the model, in place; nothing is shared.

    Args:
        model: a :class:`gpt1.model.transformer.DoubleHeadsModel`, unwrapped.
        arrays: float32 arrays in the original's order and shapes.
        source: where they come from, for messages.

    Raises:
        InputError: count, shape or dtype differs from the model's, or a value is not finite.
            The model is then untouched.
    """
    names = [name for name, _, _ in _model_table(model)]
    if len(arrays) != len(names):
        raise InputError(
            f"{source}: holds {len(arrays)} arrays, but the model has {len(names)}; "
            "give the --n_layer it was saved with."
        )
    apply(model, dict(zip(names, arrays, strict=True)), source)


def apply(
    model: torch.nn.Module, params: Mapping[str, Array], source: str | Path = "parameters"
) -> None:
    """Copy arrays into the parameters they name, in place; the other parameters stay.

    Args:
        model: a :class:`gpt1.model.transformer.DoubleHeadsModel`, unwrapped.
        params: float32 arrays by the original's names, in file shapes.
        source: where they come from, for messages.

    Raises:
        InputError: a name, shape or dtype is not the model's, or a value is not finite.
            The model is then untouched.
    """
    import torch

    table = {name: (shape, parameter) for name, shape, parameter in _model_table(model)}
    for name, array in params.items():
        if name not in table:
            raise InputError(
                f"{source}: array {name} has no place in the model; "
                "give the --n_layer it was saved with."
            )
        _check_values(array, name, table[name][0], source)
    with torch.no_grad():
        for name, array in params.items():
            parameter = table[name][1]
            parameter.copy_(torch.tensor(array).reshape(parameter.shape))


def _model_table(model: torch.nn.Module) -> list[tuple[str, Shape, torch.nn.Parameter]]:
    """(original name, file shape, parameter) of every parameter, in the original's order."""
    parameters = dict(model.named_parameters())
    rows, n_embd = parameters["we"].shape
    n_layer = sum(name.endswith(".attn.c_attn.w") for name in parameters)
    shapes = _list_shapes(rows, n_embd, n_layer)
    table = [(name, shape, parameters.pop(_model_name(name))) for name, shape in shapes.items()]
    if parameters:
        raise ValueError(f"parameters without a name in the original: {sorted(parameters)}")
    return table


def _model_name(name: str) -> str:
    """``h0/attn/c_attn/w`` in files is ``h.0.attn.c_attn.w`` in the model."""
    return re.sub(r"^h(\d+)/", r"h.\1.", name).replace("/", ".")


# Full lists in files


def read_params(path: str | Path) -> list[Array]:
    """A full parameter list from a ``.jl`` or ``.safetensors`` file (``--init_params``).

    Raises:
        InputError: another suffix, or what :func:`read_jl` and :func:`read_safetensors` refuse.
    """
    readers = {".jl": read_jl, ".safetensors": read_safetensors}
    suffix = Path(path).suffix
    if suffix not in readers:
        raise InputError(
            f"{path}: a parameter file ends in .jl or .safetensors, not {suffix or 'without one'}; "
            "rename it to what it is."
        )
    return readers[suffix](path)


def write_safetensors(path: str | Path, arrays: Sequence[Array], config: ModelConfig) -> None:
    """Write a full parameter list under the original's names, in file shapes.

    Raises:
        InputError: the arrays are not those of a model with ``config``.
        Gpt1Error: the file cannot be written; an old one is then whole.
    """
    import safetensors.numpy

    from gpt1.weights.tensors import saved_by_name

    shapes = parameter_shapes(config)
    if len(arrays) != len(shapes):
        raise InputError(f"{path}: {len(arrays)} arrays to write, but the model has {len(shapes)}.")
    tensors = {}
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        _check_shape(array, name, shape, path)
        tensors[name] = np.asarray(array, order="C")  # the package writes the raw buffer
    with saved_by_name(path) as name:
        safetensors.numpy.save_file(tensors, name)


def read_safetensors(path: str | Path) -> list[Array]:
    """Read a full parameter list, in the original's order, from its names.

    Raises:
        InputError: the file is missing or damaged, or its names are not a full list's.
    """
    from gpt1.weights import tensors

    check_regular(path, "the parameters")
    try:
        with read_errors(path, "the parameters"):
            found = tensors.read_safetensors(path)[1]
        arrays = {name: tensor.numpy() for name, tensor in found.items()}
    except (ValueError, TypeError) as error:  # TypeError: bfloat16, which NumPy lacks
        raise InputError(
            f"{path}: not a safetensors file of float32 arrays: {str(error)!r:.200}. "
            "Use a file that this program saved."
        ) from error
    n_layer = sum(name.endswith("/attn/c_attn/w") for name in arrays)
    names = list(_list_shapes(1, 1, n_layer))
    odd = sorted(set(names) ^ set(arrays))
    if odd:
        problem = "missing" if odd[0] in names else "unknown"
        raise InputError(
            f"{path}: array {odd[0]!r:.80} is {problem}; expected "
            "the original's names (we, h0/attn/c_attn/w, ..., clf/w, clf/b); rename the arrays."
        )
    return [arrays[name] for name in names]


# The released layout


@dataclass(frozen=True, kw_only=True)
class ReleasedShapes:
    """Sizes of a checkpoint in the released layout: position rows, tokens, width, blocks."""

    n_ctx: int
    n_vocab: int
    n_embd: int
    n_layer: int


def _released_shapes(sizes: ReleasedShapes) -> dict[str, Shape]:
    """Names and shapes of the flat vector's pieces, in their order: positions come first."""
    return {
        "positions": (sizes.n_ctx, sizes.n_embd),
        "tokens": (sizes.n_vocab, sizes.n_embd),
        **_block_shapes(sizes.n_embd, sizes.n_layer),
    }


def read_shapes(model_dir: str | Path) -> ReleasedShapes:
    """Sizes of the checkpoint in ``model_dir``, from its ``params_shapes.json`` alone.

    Raises:
        InputError: the file is missing, or is not exactly positions [n_ctx, n_embd], tokens
            [n_vocab, n_embd] and the twelve arrays of each layer.
    """
    model_dir = Path(model_dir)
    _require(model_dir, [SHAPES_FILE])
    path = model_dir / SHAPES_FILE
    table = _read_json(path, "the table of parameter shapes")
    if not isinstance(table, list) or len(table) < 2 + _PER_LAYER or (len(table) - 2) % _PER_LAYER:
        found = f"a list of {len(table)}" if isinstance(table, list) else "something else"
        raise InputError(
            f"{path}: expected a list of 2 + {_PER_LAYER} * n_layer shapes, found {found}; "
            "copy the file again from where the checkpoint came from."
        )
    for index, shape in enumerate(table):
        if not isinstance(shape, list) or not all(map(_is_size, shape)):
            raise InputError(
                f"{path}, shape {index}: expected a list of whole numbers from 1 to {_LARGEST}; "
                "copy the file again from where the checkpoint came from."
            )
    if len(table[0]) != 2 or len(table[1]) != 2:
        raise InputError(
            f"{path}: the first two shapes must be [n_ctx, n_embd] and [n_vocab, n_embd], "
            f"found {table[0]!s:.60} and {table[1]!s:.60}; copy the file again."
        )
    sizes = ReleasedShapes(
        n_ctx=table[0][0],
        n_vocab=table[1][0],
        n_embd=table[0][1],
        n_layer=(len(table) - 2) // _PER_LAYER,
    )
    for found, (name, expected) in zip(table, _released_shapes(sizes).items(), strict=True):
        if tuple(found) != expected:
            raise InputError(
                f"{path}, {name}: has shape {found!s:.60}, expected {list(expected)}; "
                "copy the file again from where the checkpoint came from."
            )
    return sizes


def read_n_head(model_dir: str | Path) -> int | None:
    """Attention heads from ``gpt1_config.json`` beside the checkpoint; None without that file.

    The released layout does not record them. Whether they divide the width is not checked here.

    Raises:
        InputError: the file is not ``{"n_head": N}`` with N a size.
    """
    path = Path(model_dir) / CONFIG_FILE
    if not os.path.lexists(path):
        return None
    config = _read_json(path, "the checkpoint's settings")
    n_head = config.get("n_head") if isinstance(config, dict) and len(config) == 1 else None
    if not _is_size(n_head):
        raise InputError(
            f'{path}: expected {{"n_head": N}} with N a whole number from 1 to {_LARGEST}; '
            "correct it, or remove the file and give --n_head."
        )
    return n_head


def load_released(
    model_dir: str | Path, *, special: Array, n_ctx: int, n_transfer: int
) -> dict[str, Array]:
    """Read parameters from the released shards, only those that are asked for.

    The sizes of all ten shards are checked before any memory is set aside; values go straight
    into the arrays that are returned (section 4.1 of the paper; ``init_params`` there).

    Args:
        model_dir: directory of ``params_shapes.json`` and ``params_0.npy`` ... ``params_9.npy``.
        special: rows for the special tokens, [n_special, n_embd]; rounded to float32.
        n_ctx: position rows to take, from the first.
        n_transfer: layers to take; 0 takes ``we`` alone, -1 nothing at all (and reads nothing).

    Returns:
        float32 arrays by the original's names, in file shapes: ``we`` [n_vocab + n_special +
        n_ctx, n_embd] as tokens, special rows, positions; then twelve arrays a layer.

    Raises:
        InputError: a flag asks for more than there is, a shard is missing or damaged, the shards
            hold more or fewer values than the table says, or a value is not finite.
    """
    if n_transfer == -1:
        return {}
    sizes = read_shapes(model_dir)
    _check_request(model_dir, sizes, n_ctx, n_transfer)
    if special.ndim != 2 or special.shape[1] != sizes.n_embd:
        raise ValueError(f"special rows are {special.shape}, expected [n_special, {sizes.n_embd}]")
    shards = _open_shards(Path(model_dir), sizes)

    first_position = sizes.n_vocab + len(special)
    we = np.empty((first_position + n_ctx, sizes.n_embd), np.float32)
    we[sizes.n_vocab : first_position] = special
    blocks = {
        name: np.empty(shape, np.float32)
        for name, shape in _block_shapes(sizes.n_embd, n_transfer).items()
    }
    targets = {"positions": we[first_position:], "tokens": we[: sizes.n_vocab], **blocks}
    _fill_from_shards(shards, targets, _released_shapes(sizes))
    return {"we": we, **blocks}


def save_released(
    model_dir: str | Path,
    params: Mapping[str, Array],
    *,
    n_vocab: int,
    n_special: int = 3,
    n_head: int,
) -> None:
    """Write a checkpoint in the released layout, which :func:`load_released` reads bit for bit.

    The layout has no place for the special rows of ``we`` and for the classifier: both are left
    out. ``gpt1_config.json`` is written if ``n_head`` is not 12, and removed if it is. Each file
    is written whole; the table comes last, so that a directory with a table has its shards.

    Args:
        model_dir: made if it is not there.
        params: float32 arrays by the original's names, in file shapes: ``we`` [n_vocab +
            n_special + n_ctx, n_embd] and the layers.
        n_vocab, n_special: where the rows of ``we`` are cut.
        n_head: attention heads of the model.

    Raises:
        InputError: an array's shape or dtype is wrong, or a value is not finite.
        ValueError: no layer, or no position row after ``n_vocab + n_special`` rows.
        Gpt1Error: a file cannot be written.
    """
    model_dir = Path(model_dir)
    we = params["we"]
    n_layer = sum(name.endswith("/attn/c_attn/w") for name in params)
    n_ctx = len(we) - n_vocab - n_special
    if n_layer < 1 or n_ctx < 1:
        raise ValueError(f"no checkpoint: {n_layer} layers, {n_ctx} position rows")
    sizes = ReleasedShapes(n_ctx=n_ctx, n_vocab=n_vocab, n_embd=we.shape[1], n_layer=n_layer)
    shapes = _released_shapes(sizes)
    pieces = {**params, "positions": we[n_vocab + n_special :], "tokens": we[:n_vocab]}
    for name, shape in shapes.items():
        _check_values(pieces[name], name, shape, model_dir)

    flat = np.concatenate([pieces[name].ravel() for name in shapes])
    for index, shard in enumerate(np.array_split(flat, N_SHARDS)):
        data = io.BytesIO()  # into a file itself, NumPy does not notice when its last bytes fail
        np.save(data, shard, allow_pickle=False)
        with atomic_write(model_dir / _shard_name(index)) as file:
            file.write(data.getbuffer())
    config = model_dir / CONFIG_FILE
    if n_head == RELEASED_N_HEAD:
        config.unlink(missing_ok=True)
    else:
        _write_json(config, {"n_head": n_head})
    _write_json(model_dir / SHAPES_FILE, [list(shape) for shape in shapes.values()])


def _check_request(model_dir: str | Path, sizes: ReleasedShapes, n_ctx: int, n_layer: int) -> None:
    if not 0 <= n_layer <= sizes.n_layer:
        raise InputError(
            f"--n_transfer {n_layer}: the checkpoint in {model_dir} has {sizes.n_layer} layers; "
            f"give 0 to {sizes.n_layer}, or -1 to take nothing from it."
        )
    if not 1 <= n_ctx <= sizes.n_ctx:
        raise InputError(
            f"--n_ctx {n_ctx}: the checkpoint in {model_dir} has {sizes.n_ctx} position rows; "
            f"give 1 to {sizes.n_ctx}."
        )


@dataclass(frozen=True)
class _Shard:
    """``size`` float32 values that begin ``offset`` bytes into a file."""

    path: Path
    offset: int
    size: int


def _open_shards(model_dir: Path, sizes: ReleasedShapes) -> list[_Shard]:
    """All ten shards, their headers checked and their sizes together those of the table."""
    names = [_shard_name(index) for index in range(N_SHARDS)]
    _require(model_dir, names)
    shards = [_open_shard(model_dir / name) for name in names]
    found = sum(shard.size for shard in shards)
    expected = sum(math.prod(shape) for shape in _released_shapes(sizes).values())
    if found != expected:
        raise InputError(
            f"{model_dir}: the {N_SHARDS} shards hold {found} values, but {SHAPES_FILE} describes "
            f"{expected}; copy all of them again from one checkpoint."
        )
    return shards


def _open_shard(path: Path) -> _Shard:
    try:
        with warnings.catch_warnings():  # of headers as Python 2 wrote them
            warnings.simplefilter("ignore")
            header = np.lib.format.open_memmap(path, mode="r")  # never unpickles; reads no values
    except OSError as error:
        raise unreadable(path, "the weights", error) from error
    except Exception as error:  # NumPy parses Python source there, and raises what that raises
        raise InputError(
            f"{path}: not a whole .npy file of numbers: {error!s:.200}; copy it again."
        ) from error
    if header.dtype.str != "<f4" or header.ndim != 1:
        raise InputError(
            f"{path}: holds {header.dtype} of shape {list(header.shape)}, expected a flat vector "
            "of little-endian float32; copy it again."
        )
    surplus = path.stat().st_size - header.offset - header.nbytes
    if surplus:
        raise InputError(f"{path}: {surplus} bytes follow its {header.size} values; copy it again.")
    return _Shard(path, header.offset, header.size)


def _fill_from_shards(
    shards: Sequence[_Shard], targets: Mapping[str, Array], shapes: Mapping[str, Shape]
) -> None:
    """Read each target from the front of the piece of the flat vector that has its name.

    A piece may begin and end in any shard. Targets shorter than their piece leave its rest unread.
    """
    starts = dict(zip(shapes, _starts([math.prod(s) for s in shapes.values()]), strict=True))
    shard_starts = _starts([shard.size for shard in shards])
    for shard, shard_start in zip(shards, shard_starts, strict=True):
        with read_errors(shard.path, "the weights"), shard.path.open("rb") as file:
            for name, target in targets.items():
                flat = target.reshape(-1)  # a view: targets are contiguous
                low = max(starts[name], shard_start)
                high = min(starts[name] + flat.size, shard_start + shard.size)
                if low >= high:
                    continue
                part = flat[low - starts[name] : high - starts[name]]
                file.seek(shard.offset + (low - shard_start) * part.itemsize)
                _read_part(file, part, shard.path)


def _read_part(file: io.BufferedIOBase, part: Array, path: Path) -> None:
    count = file.readinto(part.view(np.uint8).data)
    if count != part.nbytes:
        raise InputError(f"{path}: ended while it was read; copy it again.")
    if not np.isfinite(part).all():
        raise InputError(f"{path}: holds NaN or infinity; copy it again.")


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several consecutive pieces begins."""
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _shard_name(index: int) -> str:
    return f"params_{index}.npy"


def _require(model_dir: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not os.path.isfile(model_dir / name)]
    if missing:
        raise InputError(
            f"{model_dir}: no {', '.join(missing)}; a checkpoint is {SHAPES_FILE} and "
            f"{_shard_name(0)} to {_shard_name(N_SHARDS - 1)}, as in the directory model/ of "
            "openai/finetune-transformer-lm: fetch them with 'gpt1 download', name their directory "
            "with --model_dir, or start without one with --n_transfer -1."
        )


def _read_json(path: Path, what: str) -> Any:
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not JSON: {error}; copy the file again.") from error


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value) + "\n")
