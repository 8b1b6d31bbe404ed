"""Read and write lists of number arrays in joblib's format (``.jl``) without running code in files.

A ``.jl`` file is a pickle: a sequence of operations that build objects, which can import and call
any function by its name. The bytes of each array follow the operations that describe the array.
``joblib.load`` calls every function that a file names. :func:`read_jl` restricts the standard
library's unpickler to the operations and the names that a list of number arrays needs, and
replaces the named classes by classes of this module.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import joblib
import numpy as np
import numpy.typing as npt

from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_regular, read_errors

bz2: ModuleType | None
lzma: ModuleType | None
try:
    import bz2
except ImportError:
    bz2 = None
try:
    import lzma
except ImportError:
    lzma = None

Array = npt.NDArray[Any]

_INFLATION = 100, 1 << 26  # a compressed file of n bytes may hold 100 * n + 2**26
_MAX_READS = 1_000_000  # an operation takes one to three reads, an array about fifty
_NUMBER_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def write_jl(path: str | Path, arrays: Sequence[Array]) -> None:
    """Write arrays as a file that ``joblib.load`` reads as a list (the original's ``save``).

    Raises:
        Gpt1Error: the file cannot be written; an earlier file of that name is then unchanged.
    """
    # joblib would record a memmap or a transposed array differently from a plain C-ordered array.
    plain = [np.asarray(array, order="C") for array in arrays]
    with atomic_write(path) as file:
        joblib.dump(plain, file)


def read_jl(path: str | Path) -> list[Array]:
    """Read a list of number arrays that joblib 0.10 or newer wrote, without running code in it.

    Files that were compressed by zlib, gzip, bz2, xz or lzma are read, and files of NumPy 1 and 2.
    Arrays that joblib wrote are returned in C order and in this machine's byte order. The memory
    used is bounded by the size of the file.

    Raises:
        InputError: the file is missing or damaged, is not a list of arrays, or names any function
            or class that number arrays do not need.
    """
    check_regular(path, "the parameters")
    with read_errors(path, "the parameters"), open(path, "rb") as file:
        content: io.BufferedReader | io.BytesIO = file
        try:
            content = _decompressed(file)
            return _ListUnpickler(content).load()
        except (pickle.UnpicklingError, EOFError, ValueError) as error:
            raise InputError(
                f"{path}: not a list of NumPy arrays as joblib writes it: {error!s:.200} "
                f"(byte {content.tell()}). Use a file that this program or the original saved."
            ) from error


def _require(module: ModuleType | None, name: str) -> Any:
    """Return a module of the standard library, which some builds of Python lack."""
    if module is None:
        raise ValueError(f"it is compressed, and this Python was built without {name}")
    return module


def _decompressed(file: io.BufferedReader) -> io.BufferedReader | io.BytesIO:
    """Return the decompressed content, in memory; the file itself if it is not compressed.

    Raises:
        ValueError: the compressed data are damaged, or larger than the limit when decompressed.
    """
    head = file.peek(6)
    decompressor: Any
    if head.startswith((b"\x78", b"\x1f\x8b")):
        decompressor = zlib.decompressobj(32 + zlib.MAX_WBITS)  # 32: detect zlib or gzip
    elif head.startswith(b"BZ"):
        decompressor = _require(bz2, "bz2").BZ2Decompressor()
    elif head.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        # Files that "xz -9" wrote need a quarter of this memory.
        decompressor = _require(lzma, "lzma").LZMADecompressor(memlimit=1 << 28)
    else:
        return file
    limit = _INFLATION[0] * os.fstat(file.fileno()).st_size + _INFLATION[1]
    content = io.BytesIO()
    while not decompressor.eof and content.tell() < limit and (packed := file.read(1 << 16)):
        try:
            content.write(decompressor.decompress(packed, limit - content.tell()))
        except Exception as error:  # each library has its own
            raise ValueError(f"its compressed data are damaged ({error})") from error
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("its compressed data are damaged, or inflate to more than is allowed")
    content.seek(0)
    return content


class _Array:
    """Stands for an array in a pickle, or for the array's class, until the state is read."""

    def __init__(self, *arguments: object) -> None:
        pass  # NumPy's arguments say nothing about the array


class _Dtype:
    """Stands for ``numpy.dtype``, and accepts types of numbers only."""

    def __init__(self, code: object, *flags: object) -> None:
        if type(code) is not str or code not in _NUMBER_TYPES:
            raise ValueError("it has an array of something else than numbers")
        self.dtype = np.dtype(code)


def _n_values(shape: object) -> int:
    # If one axis is 0, the array has no bytes, and the size of the file bounds no other axis. So
    # each axis has a bound of its own.
    sizes = shape if isinstance(shape, tuple) and len(shape) <= 32 else [-1]
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in sizes):
        raise ValueError("the shape of an array does not consist of sizes")
    return math.prod(sizes)


_STAND_INS = {
    "joblib.numpy_pickle.NumpyArrayWrapper": _Array,
    "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
}
_OPERATIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.SHORT_BINSTRING, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8),
    *(pickle.MARK, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.MEMOIZE),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.NEWOBJ, pickle.REDUCE),
)


class _ListUnpickler(pickle._Unpickler):
    """The standard library's unpickler, restricted to ``_OPERATIONS`` and ``_STAND_INS``.

    The public ``pickle.Unpickler``, written in C, executes every operation. The one used here,
    written in Python, has a table of operations, which can be restricted. Its name is private, but
    joblib is built on it, too.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BufferedReader | io.BytesIO) -> None:
        super().__init__(self)  # It reads by the methods below, which check the claimed sizes.
        self._file, self._reads = file, 0
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def _checked(self, size: int) -> int:
        self._reads += 1
        if size > self._size - self._file.tell() or self._reads > _MAX_READS:
            raise EOFError("it ends too early, or claims more than it can hold")
        return size

    def read(self, size: int) -> bytes:
        return self._file.read(self._checked(size))

    def readline(self) -> bytes:
        return self._file.readline(1000)  # bytes; the admitted names are shorter

    def load(self) -> list[Array]:
        try:
            arrays = super().load()
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            # An operation is not in the table, or its operands are missing or wrong.
            raise ValueError("its operations do not make a list of arrays") from error
        if not isinstance(arrays, list) or not all(isinstance(a, np.ndarray) for a in arrays):
            raise ValueError("it holds something else than a list of arrays")
        if self.stack or self._file.read(1):
            raise ValueError("there is more after the list's end")
        return arrays

    def find_class(self, module: str, name: str) -> type:
        full_name = f"{module}.{name}"
        if full_name not in _STAND_INS:
            raise ValueError(f"it asks for {full_name[:100]!r}, which is refused and was not run")
        return _STAND_INS[full_name]

    def load_frame(self) -> None:
        self.read(8)  # the length of a frame, which a reader may buffer; this one does not

    def load_setitems(self) -> None:
        items = self.pop_mark()
        # Hashing a tuple nested by a hostile file can take for ever: keys must be strings.
        if not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("it has a dict whose keys are not strings")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        """Set the byte order of a dtype, or replace an :class:`_Array` by the array."""
        state = self.stack.pop()
        match self.stack[-1], state:
            case _Dtype() as it, (int(), "<" | ">" | "|" as byte_order, None, None, None, *_):
                it.dtype = it.dtype.newbyteorder(byte_order)
            case _Array(), {"shape": shape, "order": "C" | "F" as order, "dtype": _Dtype() as it}:
                # An array that joblib wrote: the bytes follow, after padding since joblib 1.2.
                if state.get("numpy_array_alignment_bytes") is not None:
                    self.read(self.read(1)[0])
                data = np.empty(self._checked(_n_values(shape) * it.dtype.itemsize), np.uint8)
                if self._file.readinto(data.data) < data.size:
                    raise EOFError("it ends inside an array")
                array = data.view(it.dtype).reshape(shape, order=order)
                self.stack[-1] = array.astype(it.dtype.newbyteorder("="), order="C", copy=False)
            case _Array(), (int(), shape, _Dtype() as it, bool() as fortran, bytes() as values):
                # An array that NumPy pickled. It is not copied, because a file may use the same
                # bytes for any number of arrays.
                array = np.frombuffer(values, it.dtype)
                self.stack[-1] = array.reshape(shape, order="F" if fortran else "C")
            case _:
                raise ValueError("the state of an array or of a dtype is not understood")

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPERATIONS},
        pickle.FRAME[0]: load_frame,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }
