"""The released layout: one flat vector in ten ``.npy`` shards, and a table of the arrays in it.

The vector holds positions, tokens and layers as float32. It has no rows of special tokens and no
classifier. No code in a file is run.

Axes: D width, V rows of ``we``.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, read_errors, unreadable
from gpt1.settings.command import Spelling, as_keyword
from gpt1.text_utils.special import N_SPECIAL
from gpt1.weights.locate import (
    CONFIG_FILE,
    LARGEST_SIZE,
    N_SHARDS,
    RELEASED_N_HEAD,
    SHAPES_FILE,
    SHARDS,
    is_size,
    read_json,
    require_released,
    write_json,
)
from gpt1.weights.parameters import (
    PER_LAYER,
    Array,
    Shape,
    check_array,
    count_layers,
    layer_shapes,
)


@dataclass(frozen=True, kw_only=True)
class ReleasedShapes:
    """The sizes of a checkpoint in the released layout: position rows, tokens, width, layers."""

    n_ctx: int
    n_vocab: int
    n_embd: int
    n_layer: int

    def table(self) -> dict[str, Shape]:
        """Return the shape of each array in the flat vector, by name, in order: positions first."""
        return {
            "positions": (self.n_ctx, self.n_embd),
            "tokens": (self.n_vocab, self.n_embd),
            **layer_shapes(self.n_embd, self.n_layer),
        }


def read_shapes(model_dir: str | Path) -> ReleasedShapes:
    """Read the sizes of the checkpoint in ``model_dir`` from ``params_shapes.json`` alone.

    Raises:
        InputError: the file is missing, or does not list exactly positions [n_ctx, n_embd], tokens
            [n_vocab, n_embd] and the twelve arrays of each layer.
    """
    model_dir = Path(model_dir)
    require_released(model_dir, [SHAPES_FILE])
    path = model_dir / SHAPES_FILE
    table = read_json(path, "the table of parameter shapes")
    if not isinstance(table, list) or len(table) < 2 + PER_LAYER or (len(table) - 2) % PER_LAYER:
        found = f"a list of {len(table)}" if isinstance(table, list) else "something else"
        raise InputError(
            f"{path}: expected a list of 2 + {PER_LAYER} * n_layer shapes, found {found}; "
            "copy the file again from where the checkpoint came from."
        )
    for index, shape in enumerate(table):
        if not isinstance(shape, list) or not all(map(is_size, shape)):
            raise InputError(
                f"{path}, shape {index}: expected a list of whole numbers from 1 to "
                f"{LARGEST_SIZE}; copy the file again from where the checkpoint came from."
            )
    if len(table[0]) != 2 or len(table[1]) != 2:
        raise InputError(
            f"{path}: the first two shapes must be [n_ctx, n_embd] and [n_vocab, n_embd], "
            f"found {table[0]!s:.60} and {table[1]!s:.60}; copy the file again."
        )
    (n_ctx, n_embd), (n_vocab, _) = table[:2]
    n_layer = (len(table) - 2) // PER_LAYER
    sizes = ReleasedShapes(n_ctx=n_ctx, n_vocab=n_vocab, n_embd=n_embd, n_layer=n_layer)
    for shape, (name, expected) in zip(table, sizes.table().items(), strict=True):
        if tuple(shape) != expected:
            raise InputError(
                f"{path}, {name}: has shape {shape!s:.60}, expected {list(expected)}; "
                "copy the file again from where the checkpoint came from."
            )
    return sizes


def load_released(
    model_dir: str | Path,
    *,
    special: Array,
    n_ctx: int,
    n_transfer: int,
    spell: Spelling = as_keyword,
) -> dict[str, Array]:
    """Read the requested parameters from the released shards (the original's ``init_params``).

    The sizes of all ten shards are checked before any memory is allocated, and the values are read
    directly into the arrays that are returned.

    Args:
        model_dir: directory of ``params_shapes.json`` and ``params_0.npy`` ... ``params_9.npy``.
        special: rows for the special tokens, [n_special, n_embd]; rounded to float32.
        n_ctx: number of position rows to take, from the first.
        n_transfer: number of layers to take; with 0 only ``we`` is taken, with -1 nothing is taken
            or read.
        spell: how messages name ``n_ctx`` and ``n_transfer``.

    Returns:
        float32 arrays by the original's names, in file shapes: ``we`` [n_vocab + n_special +
        n_ctx, n_embd] as tokens, special rows, positions; then twelve arrays per layer.

    Raises:
        InputError: the checkpoint has fewer layers or position rows than ``n_transfer`` or
            ``n_ctx``; a shard is missing or damaged; the shards hold more or fewer values than the
            table says; or a value is not finite.
    """
    if n_transfer == -1:
        return {}
    sizes = read_shapes(model_dir)
    check_request(model_dir, sizes.n_layer, n_transfer, sizes.n_ctx, n_ctx, spell)
    if special.ndim != 2 or special.shape[1] != sizes.n_embd:
        raise ValueError(f"special rows are {special.shape}, expected [n_special, {sizes.n_embd}]")
    shards = _open_shards(Path(model_dir), sizes)

    first_position = sizes.n_vocab + len(special)
    we = np.empty((first_position + n_ctx, sizes.n_embd), np.float32)
    we[sizes.n_vocab : first_position] = special
    layers = {
        name: np.empty(shape, np.float32)
        for name, shape in layer_shapes(sizes.n_embd, n_transfer).items()
    }
    targets = {"positions": we[first_position:], "tokens": we[: sizes.n_vocab], **layers}
    _fill_from_shards(shards, targets, sizes.table())
    return {"we": we, **layers}


def check_request(
    source: str | Path, depth: int, n_transfer: int, n_rows: int, n_ctx: int, spell: Spelling
) -> None:
    """Refuse to take more layers or position rows from a checkpoint than it has.

    Args:
        source: the path of the checkpoint.
        depth: number of layers that the checkpoint has.
        n_transfer: number of layers to take.
        n_rows: number of position rows that the checkpoint has.
        n_ctx: number of position rows to take.
        spell: how messages name ``n_ctx`` and ``n_transfer``.

    Raises:
        InputError: the checkpoint has too few; the message names the argument.
    """
    if not 0 <= n_transfer <= depth:
        raise InputError(
            f"{spell('n_transfer', n_transfer)}: the checkpoint in {source} has {depth} layers; "
            f"give 0 to {depth}, or -1 to take nothing from it."
        )
    if not 1 <= n_ctx <= n_rows:
        raise InputError(
            f"{spell('n_ctx', n_ctx)}: the checkpoint in {source} has {n_rows} position rows; "
            f"give 1 to {n_rows}."
        )


def save_released(
    model_dir: str | Path,
    params: Mapping[str, Array],
    *,
    n_vocab: int,
    n_special: int = N_SPECIAL,
    n_head: int,
    afn: str = "gelu",
) -> None:
    """Write a checkpoint in the released layout, which :func:`load_released` reads bit for bit.

    The layout has no place for the special rows of ``we`` and for the classifier: both are left
    out. ``gpt1_config.json`` is written if ``n_head`` is not 12, and removed if it is. Each file
    is written whole or not at all, and the table last, so that a directory with a table has all
    shards.

    Args:
        model_dir: the directory to write; made if it does not exist.
        params: float32 arrays by the original's names, in file shapes: ``we`` [n_vocab +
            n_special + n_ctx, n_embd] and the layers.
        n_vocab, n_special: numbers of token rows and special rows in ``we``.
        n_head: number of attention heads of the model.

    Raises:
        InputError: an array's shape or dtype is wrong, or a value is not finite.
        ValueError: there is no layer, or no position row after ``n_vocab + n_special`` rows.
        Gpt1Error: a file cannot be written.
    """
    model_dir = Path(model_dir)
    we = params["we"]
    n_layer = count_layers(params)
    n_ctx = len(we) - n_vocab - n_special
    if n_layer < 1 or n_ctx < 1:
        raise ValueError(f"no checkpoint: {n_layer} layers, {n_ctx} position rows")
    sizes = ReleasedShapes(n_ctx=n_ctx, n_vocab=n_vocab, n_embd=we.shape[1], n_layer=n_layer)
    shapes = sizes.table()
    parts = {**params, "positions": we[n_vocab + n_special :], "tokens": we[:n_vocab]}
    for name, shape in shapes.items():
        check_array(parts[name], name, shape, model_dir)

    flat = np.concatenate([parts[name].ravel() for name in shapes])
    for name, shard in zip(SHARDS, np.array_split(flat, N_SHARDS), strict=True):
        data = io.BytesIO()  # NumPy does not notice if a file cannot take its last bytes.
        np.save(data, shard, allow_pickle=False)
        with atomic_write(model_dir / name) as file:
            file.write(data.getbuffer())
    facts = {"n_head": n_head, **({} if afn == "gelu" else {"afn": afn})}
    if facts == {"n_head": RELEASED_N_HEAD}:
        (model_dir / CONFIG_FILE).unlink(missing_ok=True)
    else:
        write_json(model_dir / CONFIG_FILE, facts)
    write_json(model_dir / SHAPES_FILE, [list(shape) for shape in shapes.values()])


@dataclass(frozen=True)
class _Shard:
    """A shard's file, which holds ``size`` float32 values from byte ``offset`` on."""

    path: Path
    offset: int
    size: int


def _open_shards(model_dir: Path, sizes: ReleasedShapes) -> list[_Shard]:
    """Read the headers of all ten shards, and check that their sizes add up to the table's."""
    require_released(model_dir, SHARDS)
    shards = [_open_shard(model_dir / name) for name in SHARDS]
    found = sum(shard.size for shard in shards)
    expected = sum(map(math.prod, sizes.table().values()))
    if found != expected:
        raise InputError(
            f"{model_dir}: the {N_SHARDS} shards hold {found} values, but {SHAPES_FILE} describes "
            f"{expected}; copy all of them again from one checkpoint."
        )
    return shards


def _open_shard(path: Path) -> _Shard:
    try:
        with warnings.catch_warnings():  # about headers that Python 2 wrote
            warnings.simplefilter("ignore")
            header = np.lib.format.open_memmap(path, mode="r")  # never unpickles; reads no values
    except OSError as error:
        raise unreadable(path, "the weights", error) from error
    except Exception as error:  # NumPy parses the header as Python source: any error may come.
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
    """Fill each target with the first values of the array of its name in the flat vector.

    An array may begin and end in any shard. The values after those of a shorter target are skipped.
    """
    starts = dict(zip(shapes, accumulate(map(math.prod, shapes.values()), initial=0), strict=False))
    shard_start = 0
    for shard in shards:
        with read_errors(shard.path, "the weights"), shard.path.open("rb") as file:
            for name, target in targets.items():
                flat = target.reshape(-1)  # a view: targets are contiguous
                low = max(starts[name], shard_start)
                high = min(starts[name] + flat.size, shard_start + shard.size)
                if low >= high:
                    continue
                values = flat[low - starts[name] : high - starts[name]]
                file.seek(shard.offset + (low - shard_start) * values.itemsize)
                _read_values(file, values, shard.path)
        shard_start += shard.size


def _read_values(file: io.BufferedIOBase, values: Array, path: Path) -> None:
    count = file.readinto(values.view(np.uint8).data)
    if count != values.nbytes:
        raise InputError(f"{path}: ended while it was read; copy it again.")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinity; copy it again.")
