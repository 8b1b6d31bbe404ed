"""The original's list of parameters: their names and shapes, and how they are read and written.

A full list holds float32 arrays in the original's order, ``we, h0/attn/c_attn/w, ..., clf/w,
clf/b``. It is stored in a joblib file (``best_params.jl``) or, with these names, in a safetensors
file. Kernels are [1, n_in, n_out] in files (the original's convolutions of width one) and
[n_in, n_out] in the model. No code in a file is run (see :mod:`gpt1.weights.jl`).

Axes: D width, V rows of ``we``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import check_regular, read_errors
from gpt1.tasks.record import TaskRecord
from gpt1.weights import tensors
from gpt1.weights.jl import read_jl
from gpt1.weights.locate import LIST_SUFFIXES, TASK

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# The entry of a safetensors file's metadata with the settings that no array shows, as JSON.
CONFIG_KEY = "config"


# Names and shapes: the one table


def _layer_shapes(n_embd: int) -> dict[str, Shape]:
    """Return the shape in files of each of a layer's twelve arrays, in the original's order."""
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


PER_LAYER = len(_layer_shapes(1))


def layer_shapes(n_embd: int, n_layer: int) -> dict[str, Shape]:
    """Return the shape in files of each parameter of the layers, in the original's order."""
    layer = _layer_shapes(n_embd)
    return {f"h{i}/{name}": shape for i in range(n_layer) for name, shape in layer.items()}


def list_shapes(rows: int, n_embd: int, n_layer: int, n_classes: int = 1) -> dict[str, Shape]:
    """Return what :func:`parameter_shapes` does, for a model whose ``we`` has ``rows`` rows."""
    layers = layer_shapes(n_embd, n_layer)
    return {"we": (rows, n_embd), **layers, "clf/w": (n_embd, n_classes), "clf/b": (n_classes,)}


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape in files of each parameter, by name, in the original's order.

    ``we`` is [n_vocab + n_special + n_ctx, n_embd]; kernels are [1, n_in, n_out]. The names are
    the original's TensorFlow variables without ``model/`` and ``:0``.
    """
    return list_shapes(config.n_rows, config.n_embd, config.n_layer, config.n_classes)


def count_layers(names: Mapping[str, object]) -> int:
    """Return the number of layers whose parameters have these names."""
    return sum(name.endswith("/attn/c_attn/w") for name in names)


def list_sizes(arrays: Sequence[Array], source: str | Path) -> tuple[int, int, int, int]:
    """Return the rows of ``we``, the width, the layers and the classes of a full parameter list.

    The shape of each array is checked against these sizes.

    Args:
        arrays: ``we``, twelve arrays per layer, ``clf/w`` and ``clf/b``.
        source: where the arrays come from, for messages.

    Raises:
        InputError: the number of arrays is not that of a full list, or an array has another shape.
    """
    n_layer, rest = divmod(len(arrays) - 3, PER_LAYER)
    if n_layer < 1 or rest:
        raise InputError(
            f"{source}: holds {len(arrays)} arrays, but a full list has 3 + {PER_LAYER} * n_layer "
            "(we, the layers, clf/w, clf/b); use a file that this program or the original saved."
        )
    if arrays[0].ndim != 2 or not arrays[0].size:
        raise InputError(
            f"{source}: array 0 (we) has shape {list(arrays[0].shape)}, expected [rows, n_embd]; "
            "use a file that this program or the original saved."
        )
    rows, n_embd = arrays[0].shape
    n_classes = max(1, arrays[-1].size)
    shapes = list_shapes(rows, n_embd, n_layer, n_classes)
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        _check_shape(array, name, shape, source)
    return rows, n_embd, n_layer, n_classes


def _check_shape(array: Array, name: str, shape: Shape, source: str | Path) -> None:
    if array.shape != shape:
        raise InputError(
            f"{source}: array {name} has shape {list(array.shape)}, expected {list(shape)}; "
            "the sizes must be those it was saved with (n_embd, n_layer, n_ctx, vocabulary)."
        )


def check_array(array: Array, name: str, shape: Shape, source: str | Path) -> None:
    """Check the shape, the dtype (float32) and the values (all finite) of an array.

    Raises:
        InputError: a check fails; the message names the array and ``source``.
    """
    _check_shape(array, name, shape, source)
    if array.dtype != np.float32:
        raise InputError(
            f"{source}: array {name} has dtype {array.dtype}, expected float32; convert it."
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{source}: array {name} holds NaN or infinity; the file is damaged, or the run that "
            "wrote it diverged and needs a lower lr."
        )


# To and from a model


def to_list(model: torch.nn.Module) -> list[Array]:
    """Return float32 copies of all parameters, in the original's order and shapes."""
    return [
        np.array(parameter.detach().to("cpu", torch.float32).numpy()).reshape(shape)
        for shape, parameter in _model_table(model).values()
    ]


def from_list(model: torch.nn.Module, arrays: Sequence[Array], source: str | Path) -> None:
    """Copy a full parameter list into the parameters of the model.

    Args:
        model: a :class:`gpt1.model.transformer.DoubleHeadsModel`, unwrapped.
        arrays: float32 arrays in the original's order and shapes.
        source: where the arrays come from, for messages.

    Raises:
        InputError: the number of arrays, a shape or a dtype does not fit the model, or a value is
            not finite.
            The model is then untouched.
    """
    names = list(_model_table(model))
    if len(arrays) != len(names):
        raise InputError(
            f"{source}: holds {len(arrays)} arrays, but the model has {len(names)}; "
            "n_layer must be that of the model it was saved from."
        )
    set_parameters(model, dict(zip(names, arrays, strict=True)), source)


def set_parameters(
    model: torch.nn.Module, params: Mapping[str, Array], source: str | Path = "parameters"
) -> None:
    """Copy arrays into the parameters of these names; the other parameters stay as they are.

    Args:
        model: a :class:`gpt1.model.transformer.DoubleHeadsModel`, unwrapped.
        params: float32 arrays by the original's names, in file shapes.
        source: where the arrays come from, for messages.

    Raises:
        InputError: a name, a shape or a dtype does not fit the model, or a value is not finite.
            The model is then untouched.
    """
    table = _model_table(model)
    for name, array in params.items():
        if name not in table:
            raise InputError(
                f"{source}: array {name} has no place in the model; "
                "n_layer must be that of the model it was saved from."
            )
        check_array(array, name, table[name][0], source)
    with torch.no_grad():
        for name, array in params.items():
            parameter = table[name][1]
            parameter.copy_(torch.tensor(array).reshape(parameter.shape))


def _model_table(model: torch.nn.Module) -> dict[str, tuple[Shape, torch.nn.Parameter]]:
    """Return each parameter and its shape in files by the original's name, in its order."""
    parameters = dict(model.named_parameters())
    rows, n_embd = parameters["we"].shape
    n_layer = sum(name.endswith(".attn.c_attn.w") for name in parameters)
    shapes = list_shapes(rows, n_embd, n_layer, len(parameters["clf.b"]))
    table = {name: (shape, parameters.pop(_model_name(name))) for name, shape in shapes.items()}
    if parameters:
        raise ValueError(f"parameters without a name in the original: {sorted(parameters)}")
    return table


def _model_name(name: str) -> str:
    """Return a parameter's name in the model: ``h.0.attn.c_attn.w`` for ``h0/attn/c_attn/w``."""
    return re.sub(r"^h(\d+)/", r"h.\1.", name).replace("/", ".")


# To and from files


def read_params(path: str | Path) -> list[Array]:
    """Read a full parameter list from a ``.jl`` or ``.safetensors`` file.

    Raises:
        InputError: the file has another suffix, is missing or damaged, or is not a list of number
            arrays.
    """
    suffix = Path(path).suffix
    if suffix not in LIST_SUFFIXES:
        raise InputError(
            f"{path}: a parameter file ends in .jl or .safetensors, not {suffix or 'without one'}; "
            "rename it to what it is."
        )
    return read_jl(path) if suffix == ".jl" else read_safetensors(path)[1]


def write_safetensors(
    path: str | Path,
    arrays: Sequence[Array],
    config: ModelConfig,
    task: TaskRecord | None = None,
) -> None:
    """Write a full parameter list under the original's names, in file shapes.

    The metadata record what no array shows: the number of heads, the activation, and the task if
    it is known.

    Raises:
        InputError: the arrays are not those of a model with ``config``.
        Gpt1Error: the file cannot be written; an earlier file of that name is then unchanged.
    """
    shapes = parameter_shapes(config)
    if len(arrays) != len(shapes):
        raise InputError(f"{path}: {len(arrays)} arrays to write, but the model has {len(shapes)}.")
    named = {}
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        _check_shape(array, name, shape, path)
        named[name] = np.asarray(array, order="C")  # the package writes the raw buffer
    # One entry: the package writes several in an order that changes from run to run.
    record = {} if task is None else {TASK: task.as_json()}
    values = {"n_head": config.n_head, "afn": config.afn, **record}
    metadata = {CONFIG_KEY: json.dumps(values)}
    with tensors.saved_by_name(path) as name:
        safetensors.numpy.save_file(named, name, metadata)


def read_safetensors(path: str | Path) -> tuple[dict[str, str], list[Array]]:
    """Read a full parameter list from a safetensors file.

    Returns:
        The metadata, and the arrays in the original's order.

    Raises:
        InputError: the file is missing or damaged, or its names are not those of a full list.
    """
    check_regular(path, "the parameters")
    try:
        with read_errors(path, "the parameters"):
            metadata, found = tensors.read_safetensors(path)
        arrays = {name: tensor.numpy() for name, tensor in found.items()}
    except (ValueError, TypeError) as error:  # TypeError: bfloat16, which NumPy lacks
        raise InputError(
            f"{path}: not a safetensors file of float32 arrays: {str(error)!r:.200}. "
            "Use a file that this program saved."
        ) from error
    names = list(list_shapes(1, 1, count_layers(arrays)))
    odd = sorted(set(names) ^ set(arrays))
    if odd:
        problem = "missing" if odd[0] in names else "unknown"
        raise InputError(
            f"{path}: array {odd[0]!r:.80} is {problem}; expected "
            "the original's names (we, h0/attn/c_attn/w, ..., clf/w, clf/b); rename the arrays."
        )
    return metadata, [arrays[name] for name in names]
