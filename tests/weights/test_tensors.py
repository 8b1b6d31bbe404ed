"""Files are read as the safetensors package reads them; a failing machine is not a damaged file."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from gpt1.runtime.errors import Gpt1Error
from gpt1.weights.tensors import read_safetensors, saved_by_name

TENSORS = {
    "scalar": torch.tensor(3.5),
    "no rows": torch.zeros(0, 4),
    "no columns": torch.zeros(3, 0, dtype=torch.int64),
    "truth": torch.tensor([True, False, True]),
    "grün": torch.arange(6.0).reshape(2, 3),
    "half": torch.arange(5).bfloat16(),
    "other half": torch.arange(5).half(),
    "double": torch.arange(24, dtype=torch.float64).reshape(1, 2, 3, 4),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "complex": torch.arange(3).to(torch.complex64),
}


def write(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a", {"key": "grün", "": ""})
    metadata, tensors = read_safetensors(tmp_path / "a")
    assert metadata == {"key": "grün", "": ""}
    assert_same(tensors, TENSORS)


@pytest.mark.parametrize("tensors", [{}, {"none": torch.zeros(0)}])
def test_a_file_without_numbers_is_read(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "a")
    assert read_safetensors(str(tmp_path / "a"))[0] == {}
    assert_same(read_safetensors(tmp_path / "a")[1], tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_no_tensor_lies_in_the_file(tmp_path: Path) -> None:
    """A mapped tensor would end the process when the file is cut or the disk fails."""
    save_file({"a": torch.zeros(1000)}, tmp_path / "a")
    _, tensors = read_safetensors(tmp_path / "a")
    assert str(tmp_path / "a") not in Path("/proc/self/maps").read_text()
    assert_same(tensors, {"a": torch.zeros(1000)})


def entry(name: str = "w", **changes: Any) -> dict[str, Any]:
    return {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


WRONG: dict[str, object] = {
    "not JSON": b"{",
    "not UTF-8": b'{"\xff": 1}',
    "nested": b"[" * 100_000,
    "a list": [],
    "a number": 3,
    "metadata that are no object": {"__metadata__": []},
    "metadata that are no texts": {"__metadata__": {"a": 1}},
    "an entry that is no object": {"w": [0, 8]},
    "no type": {"w": {"shape": [2], "data_offsets": [0, 8]}},
    "an unknown type": entry(dtype="F33"),
    "a type that is a list": entry(dtype=["F32"]),
    "a wrong shape": entry(shape=[3]),
    "a shape of texts": entry(shape=["2"]),
    "a shape of truths": entry(shape=[True, 2]),
    "a negative shape": entry(shape=[-1, -2]),
    "a shape with a fraction": entry(shape=[2.0]),
    "a gigantic shape": entry(shape=[2**70], data_offsets=[0, 2**72]),
    "a gap before": entry(data_offsets=[8, 16]),
    "a negative place": entry(data_offsets=[-8, 0]),
    "an end before the beginning": entry(data_offsets=[8, 0]),
    "three places": entry(data_offsets=[0, 8, 16]),
    "two in one place": {**entry(), **entry(name="v")},
    "more than there is": entry(shape=[4], data_offsets=[0, 16]),
    "less than there is": entry(shape=[1], data_offsets=[0, 4]),
    "overlapping ones": {**entry(), **entry(name="v", data_offsets=[4, 12])},
    "nothing": {},
}
# Where it is not 8: bytes after the header, so that their number is not what is wrong.
N_BYTES = {"a gap before": 16, "overlapping ones": 12}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_header_is_a_value_error(tmp_path: Path, what: str) -> None:
    data = bytes(N_BYTES.get(what, 8))
    path = write(tmp_path / "a", WRONG[what], data)
    with pytest.raises(ValueError, match=r"\bits?\b"):
        read_safetensors(path)
    with pytest.raises(safetensors.SafetensorError):  # The package accepts the file, too.
        load_file(write(tmp_path / "b", WRONG[what], data))


def test_more_axes_than_a_tensor_of_ours_has_are_a_value_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", entry(shape=[2, *[1] * 100]), bytes(8))
    with pytest.raises(ValueError, match="shape"):
        read_safetensors(path)


def test_gigantic_axes_beside_an_empty_one_are_a_value_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", entry(shape=[0, 2**40, 2**40], data_offsets=[0, 0]), b"")
    with pytest.raises(ValueError, match="shape"):
        read_safetensors(path)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 20])
def test_a_file_that_ends_too_early_is_a_value_error(tmp_path: Path, n: int) -> None:
    save_file(TENSORS, tmp_path / "a")
    os.truncate(tmp_path / "a", n)
    with pytest.raises(ValueError, match=r"ends too early|longer than"):
        read_safetensors(tmp_path / "a")


def test_changed_bytes_are_read_as_the_package_reads_them_or_not_at_all(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0), "bb": torch.arange(6).reshape(2, 3)}, tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    rng = random.Random(0)
    n_read = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2])):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789{}[]":, aIF\x00\xff')
        (tmp_path / "a").write_bytes(data)
        try:
            expected = load_file(tmp_path / "a")
        except (safetensors.SafetensorError, KeyError):  # KeyError: a type that torch lacks
            expected = None
        try:
            found = read_safetensors(tmp_path / "a")[1]
        except ValueError:
            assert expected is None
            continue
        if expected is not None:
            n_read += 1
            for name, tensor in expected.items():
                assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert n_read > 20  # otherwise nothing would be compared


def test_no_memory_is_set_aside_that_the_file_could_not_fill(tmp_path: Path) -> None:
    header = entry(shape=[1 << 40], data_offsets=[0, 1 << 42])
    with pytest.raises(ValueError, match="describes"):
        read_safetensors(write(tmp_path / "a", header, bytes(8)))


# ------------------------------------------------------------------------------- the machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc")


@linux
def test_a_failing_disk_is_an_input_output_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(faults.FAILING_FILE)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_safetensors(tmp_path / "a")
    assert caught.value.errno == errno.EIO


@linux
def test_too_many_open_files_are_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a")
    with faults.no_more_open_files(), pytest.raises(OSError, match="Too many") as caught:
        read_safetensors(tmp_path / "a")
    assert caught.value.errno == errno.EMFILE


@linux
def test_a_missing_permission_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a")
    with faults.closed(tmp_path / "a"), pytest.raises(PermissionError):
        read_safetensors(tmp_path / "a")


@linux
def test_too_little_memory_is_a_memory_error(tmp_path: Path) -> None:
    n = 1 << 30
    path = write(tmp_path / "a", entry(shape=[n // 4], data_offsets=[0, n]))
    os.truncate(path, path.stat().st_size + n)  # takes no space on the disk
    with faults.little_memory(n // 2), pytest.raises(MemoryError):
        read_safetensors(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_a_value_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Reading a pipe would wait for its other end."""
    make(tmp_path / "a")
    with pytest.raises(ValueError, match="not a file"):
        read_safetensors(tmp_path / "a")


@linux
def test_a_full_disk_is_one_message_for_the_package_too(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    tensors = {"a": torch.zeros(10_000)}
    with (
        faults.short_files(1_000),
        pytest.raises(Gpt1Error, match=r"a: cannot be written: .*File too large"),
        saved_by_name(path) as name,
    ):
        save_file(tensors, name)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
