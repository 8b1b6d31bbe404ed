"""Lists of number arrays in joblib's files (``.jl``), read without running anything.

A ``.jl`` file is a pickle: a program that builds objects by calling what it names, so plain
``joblib.load`` runs whatever the file's author put there. :func:`read_jl` interprets the few
operations that a list of arrays is written with, and refuses the rest by name.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt1.errors import InputError
from gpt1.files import atomic_write, check_regular, read_errors

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_CHUNK = 1 << 24  # bytes read at once
_INFLATION = 100, 1 << 26  # a compressed file of n bytes may hold 100 * n + 2**26
_MAX_DIMS = 32
_MAX_OPERATIONS = 1_000_000
_NUMBER_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = re.compile(r"INT|BININT[12]?|LONG[14]?|(SHORT_)?BIN(STRING|BYTES|UNICODE)8?|UNICODE")
_ADMITTED = {
    "joblib.numpy_pickle.NumpyArrayWrapper": "wrapper",
    "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper": "wrapper",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "reconstruct",
    "numpy._core.multiarray._reconstruct": "reconstruct",
}


def write_jl(path: str | Path, arrays: Sequence[Array]) -> None:
    """Write arrays as a joblib file that plain ``joblib.load`` reads as a list (``save`` there).

    Raises:
        Gpt1Error: the file cannot be written; an old one is then whole.
    """
    import joblib

    # order="C" and asarray: joblib records a memmap or a transposed array as something special.
    plain = [np.asarray(array, order="C") for array in arrays]
    with atomic_write(path) as file:
        joblib.dump(plain, file)


def read_jl(path: str | Path) -> list[Array]:
    """Read a list of number arrays that joblib 0.10 or newer wrote, without running any of it.

    Compression by zlib, gzip, bz2, xz or lzma is undone; NumPy 1 and 2 files are both read.

    Raises:
        InputError: the file is missing, damaged, not a list of arrays, or asks for anything but
            number arrays, which is named; no memory is set aside that the file could not fill.
    """
    try:
        with read_errors(path, "the parameters"), _open_jl(path) as stream:
            return _ListReader(stream).load()
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path}: not a list of NumPy arrays as joblib writes it: {error!s:.200}. "
            "Use a file that this program or the original saved."
        ) from error


class _Stream:
    """A file's bytes as :mod:`pickletools` reads them, never more than ``left`` of them."""

    def __init__(self, file: io.BufferedIOBase, limit: int) -> None:
        self._file = file
        self.left = limit

    def read(self, size: int) -> bytes:
        self._reserve(size)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it ends too early")
        return data

    def readline(self) -> bytes:
        line = self._file.readline(self.left)
        self.left -= len(line)
        return line

    def empty_array(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An array to be filled from here, made only if enough bytes can be left."""
        self._reserve(math.prod(shape) * dtype.itemsize)
        return np.empty(shape, dtype)

    def fill(self, array: Array) -> None:
        """Read the bytes of an array from :meth:`empty_array`."""
        bytes_left = array.reshape(-1).view(np.uint8).data
        while bytes_left:
            count = self._file.readinto(bytes_left[:_CHUNK])
            if not count:
                raise ValueError("it ends inside an array")
            bytes_left = bytes_left[count:]

    def at_end(self) -> bool:
        return not self._file.read(1)

    def _reserve(self, size: int) -> None:
        if size > self.left:
            raise ValueError("it ends too early, or claims more than it can hold")
        self.left -= size


@contextmanager
def _open_jl(path: str | Path) -> Iterator[_Stream]:
    """The file's bytes, decompressed; damage to them is a :class:`ValueError`."""
    check_regular(path, "the parameters")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty")
        decoder, damage = _decoder(file)
        if decoder is not file:  # the true size is unknown; bound it against bombs
            size = _INFLATION[0] * size + _INFLATION[1]
        try:
            yield _Stream(decoder, size)
        except damage as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's: gzip and bz2 give the errors of their own no number
            raise ValueError(f"it is damaged ({error})") from error


def _decoder(file: io.BufferedReader) -> tuple[io.BufferedIOBase, tuple[type[Exception], ...]]:
    """What undoes the compression that the first bytes announce, and what it raises."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=file), (OSError, EOFError, zlib.error)
    if head.startswith(b"BZ"):
        import bz2

        return bz2.BZ2File(file), (OSError, EOFError)
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        import lzma

        return lzma.LZMAFile(file), (lzma.LZMAError, EOFError)
    if head.startswith(b"\x78"):
        return io.BufferedReader(_ZlibFile(file)), (OSError, EOFError, zlib.error)
    return file, ()


class _ZlibFile(io.RawIOBase):
    """The bytes in a zlib stream; joblib's own reader never returns if others follow it."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._inflater = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(1 << 16)
            if not packed:
                raise EOFError("it ends inside its zlib stream")
            data = self._inflater.decompress(packed, len(buffer))
        if self._inflater.unused_data:
            raise EOFError("there is more after its zlib stream")
        buffer[: len(data)] = data
        return len(data)


@dataclass(eq=False)
class _Object:
    """An admitted name in a pickle, or the object being made from it; holds no code."""

    kind: str
    dtype: str = ""


class _Mark:
    """Where the items of a coming tuple, list or dict begin on the stack."""


class _ListReader:
    """Interprets the few pickle operations that a list of number arrays is written with.

    A pickle is a program that builds objects by calling what it names. Here names stay names:
    those of ``_ADMITTED`` select what this class does itself, any other one is refused.
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> list[Array]:
        """The list; :class:`ValueError` says what is wrong with the file."""
        operations = pickletools.genops(self._stream)  # type: ignore[arg-type]
        for count, (operation, argument, _) in enumerate(operations):
            if count > _MAX_OPERATIONS:
                raise ValueError("it uses more operations than any list of arrays needs")
            self._step(operation.name, argument)
        result: list[Array] = self._pop(list)
        for index, item in enumerate(result):
            if not isinstance(item, np.ndarray):
                raise ValueError(f"item {index} is not an array")
        if self._stack or not self._stream.at_end():
            raise ValueError("there is more after the list's end")
        return result

    def _step(self, operation: str, argument: Any) -> None:
        if operation in _CONSTANTS or _LITERALS.fullmatch(operation):
            self._stack.append(_CONSTANTS.get(operation, argument))
            return
        match operation:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top(object)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top(object)
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise ValueError("it refers to an item before it is there")
                self._stack.append(self._memo[argument])
            case "GLOBAL" | "INST":
                self._stack.append(_admit(str(argument).replace(" ", ".", 1)))
                if operation == "INST":
                    raise ValueError("it makes objects by INST, which arrays do not need")
            case "STACK_GLOBAL":
                name, module = self._pop(str), self._pop(str)
                self._stack.append(_admit(f"{module}.{name}"))
            case "NEWOBJ" | "REDUCE":
                arguments = self._pop(tuple)
                self._stack.append(_make(self._pop(_Object), arguments))
            case "BUILD":
                state = self._pop(object)
                self._stack.append(self._build(self._pop(_Object), state))
            case _:
                self._collect(operation)

    def _collect(self, operation: str) -> None:
        """The operations that make and extend tuples, lists and dicts."""
        match operation:
            case "EMPTY_TUPLE":
                self._stack.append(())
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_DICT":
                self._stack.append({})
            case "MARK":
                self._stack.append(_Mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop(object) for _ in range(int(operation[-1]))]
                self._stack.append(tuple(reversed(items)))
            case "TUPLE":
                self._stack.append(tuple(self._pop_to_mark()))
            case "LIST":
                self._stack.append(self._pop_to_mark())
            case "DICT":
                self._stack.append(_pairs(self._pop_to_mark()))
            case "APPEND" | "APPENDS":
                items = self._pop_to_mark() if operation == "APPENDS" else [self._pop(object)]
                self._top(list).extend(items)
            case "SETITEM":
                value, key = self._pop(object), self._pop(object)
                self._top(dict).update(_pairs([key, value]))
            case "SETITEMS":
                items = self._pop_to_mark()
                self._top(dict).update(_pairs(items))
            case _:
                raise ValueError(f"it uses the operation {operation}, which arrays do not need")

    def _top(self, kind: type) -> Any:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise ValueError("its operations lack an operand")
        if not isinstance(self._stack[-1], kind):
            found = type(self._stack[-1]).__name__.strip("_").lower()
            raise ValueError(f"it has a {found} where a {kind.__name__.strip('_').lower()} belongs")
        return self._stack[-1]

    def _pop(self, kind: type) -> Any:
        self._top(kind)
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if isinstance(item, _Mark):
                return items[::-1]
            items.append(item)
        raise ValueError("its operations lack a mark")

    def _build(self, target: _Object, state: Any) -> _Object | Array:
        """Give a started object its state; a finished array takes the object's place."""
        match target.kind, state:
            case "a dtype", (int(), "<" | "|", None, None, None, *_):
                return target
            case "a wrapper", {"subclass": _Object(kind="ndarray"), "shape": shape, **rest}:
                return self._read_wrapped(_shape(shape), rest)
            case "a plain array", (int(), shape, _Object(kind="a dtype") as dtype, order, data):
                return _plain_array(_shape(shape), _number_type(dtype), order, data)
        raise ValueError(f"{target.kind} in it has a state that is not understood")

    def _read_wrapped(self, shape: Shape, rest: Mapping[Any, Any]) -> Array:
        """The array whose bytes follow joblib's wrapper in the file, after some padding."""
        if rest.get("order") not in ("C", "F"):
            raise ValueError("an array's order is neither C nor F")
        if rest.get("numpy_array_alignment_bytes") is not None:  # joblib 1.2 and newer
            self._stream.read(self._stream.read(1)[0])
        # A Fortran array's bytes are those of its transpose.
        fortran = rest["order"] == "F"
        stored = shape[::-1] if fortran else shape
        array = self._stream.empty_array(stored, _number_type(rest.get("dtype")))
        self._stream.fill(array)
        return np.ascontiguousarray(array.T) if fortran else array


def _admit(name: str) -> _Object:
    if name not in _ADMITTED:
        raise ValueError(f"it asks for {name!r:.100}, which is refused and was not run")
    return _Object(_ADMITTED[name])


def _make(what: _Object, arguments: tuple[Any, ...]) -> _Object:
    """The object that a call of an admitted name starts."""
    match what.kind, arguments:
        case "wrapper", ():
            return _Object("a wrapper")
        case "reconstruct", (_Object(kind="ndarray"), _, _):
            return _Object("a plain array")
        case "dtype", (str() as code, *_):
            return _Object("a dtype", code)
    raise ValueError(f"it makes something from {what.kind} in a way that is not understood")


def _number_type(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Object) or dtype.kind != "a dtype":
        raise ValueError("an array has no dtype")
    if dtype.dtype not in _NUMBER_TYPES:
        raise ValueError(f"an array has dtype {dtype.dtype!r:.40}, which is not a number's")
    return np.dtype(f"<{dtype.dtype}")


def _shape(value: Any) -> Shape:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMS:
        raise ValueError("an array's shape is not understood")
    # Beside an axis of 0, the file's size bounds no other: NumPy wants it to fit 64 bits.
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in value):
        raise ValueError("an array's shape is not of sizes")
    return value


def _plain_array(shape: Shape, dtype: np.dtype[Any], fortran: Any, data: Any) -> Array:
    """An array pickled without joblib: its bytes are in the pickle itself."""
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array's bytes do not fit its shape")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _pairs(items: list[Any]) -> dict[str, Any]:
    """Alternating keys and values as a dict; keys are words, so hashing them is cheap."""
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it has a dict that is not understood")
    return dict(zip(keys, values, strict=True))
