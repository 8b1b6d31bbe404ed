"""Safetensors files: a JSON header, then the bytes of tensors one after another.

The safetensors package writes these files, and this module reads them. The package's reader does
not tell a damaged file from a failure of the machine: it reports too many open files and a missing
permission as a missing file, and because it maps the file into memory, a failing disk ends the
process by SIGBUS. Ordinary reads report each of these failures by an :class:`OSError` of its own.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from gpt1.runtime.files import atomic_write, write_errors

_LONGEST_HEADER = 100_000_000  # bytes; the safetensors package has the same limit
_MOST_AXES = 32
_MOST_NUMBERS = 1 << 60  # in one tensor; torch counts bytes in 64 bits
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class _Entry(NamedTuple):
    """A tensor as the header describes it; ``begin`` and ``end`` count bytes after the header."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: list[int]


@contextmanager
def saved_by_name(path: str | Path) -> Iterator[str]:
    """Yield the name of a temporary file, which the safetensors package can write.

    The file is renamed to ``path`` when the block ends without an error
    (:func:`gpt1.runtime.files.atomic_write`).

    Raises:
        Gpt1Error: the file cannot be written; an earlier file of that name is then unchanged.
    """
    with atomic_write(path) as file, write_errors(path):
        try:
            yield file.name
        except SafetensorError as error:  # The package raises it for a full disk, too.
            raise OSError(str(error)) from error


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file.

    The sizes in the header are compared with the size of the file before any memory is allocated,
    and the numbers are read once, directly into the tensors.

    Returns:
        The metadata, and the tensors by name in the order of the file.

    Raises:
        ValueError: the file is damaged or is not a safetensors file.
        OSError, MemoryError: the file could not be read; its content is not known to be wrong.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for its other end
        raise ValueError("not a file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(_take(file, 8), "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError("its header is longer than the file can hold")
        metadata, entries = _parse_header(_take(file, length))
        described = 8 + length + (entries[-1].end if entries else 0)
        if described != size:
            raise ValueError(f"it has {size} bytes, but its header describes {described}")
        return metadata, {entry.name: _read_tensor(file, entry) for entry in entries}


def _take(file: IO[bytes], n: int) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise ValueError("it ends too early")
    return data


def _parse_header(data: bytes) -> tuple[dict[str, str], list[_Entry]]:
    """Return the metadata, and the entries of the tensors in the order of their bytes."""
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    entries = sorted(_parse_entry(name, entry) for name, entry in header.items())
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise ValueError(f"the bytes of its tensor {entry.name!r} do not follow the others")
        end = entry.end
    return metadata, entries


def _parse_entry(name: str, entry: Any) -> _Entry:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": [*shape],
            "data_offsets": [int(begin), int(end)],
        } if len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in shape):
            if dtype not in _TYPES:
                raise ValueError(f"its tensor {name!r} has the type {dtype!r}, which is not read")
            n_bytes = math.prod(shape) * _TYPES[dtype].itemsize
            is_countable = math.prod(max(n, 1) for n in shape) < _MOST_NUMBERS
            if end - begin == n_bytes and is_countable:
                return _Entry(begin, end, name, _TYPES[dtype], shape)
    raise ValueError(f"its tensor {name!r} has no type, shape and place that fit each other")


def _read_tensor(file: IO[bytes], entry: _Entry) -> Tensor:
    """Read the next tensor of a file.

    NumPy allocates the memory, because it raises MemoryError if there is too little.
    """
    if entry.end == entry.begin:
        return torch.empty(entry.shape, dtype=entry.dtype)
    data = np.empty(entry.end - entry.begin, np.uint8)
    if file.readinto(data.data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("it ends too early")
    return torch.from_numpy(data).view(entry.dtype).reshape(entry.shape)
