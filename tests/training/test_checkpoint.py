"""Checkpoints: reading gives the same bits, the last two are kept, damage is always noticed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from torch import nn

from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.training import checkpoint
from gpt1.training.checkpoint import DamagedError, RunState

IDENTITY = {"seed": 3, "lr": 6.25e-5, "afn": "gelu", "vector_l2": False, "model": {"n_ctx": 77}}


class Run:
    """A small model and the optimizer of a run, whose gradients are a function of t."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        self.optimizer = OpenAIAdam(
            self.model.parameters(),
            lr=0.01,
            schedule="warmup_cosine",
            warmup=0.1,
            t_total=40,
            l2=0.01,
            max_grad_norm=1.0,
        )

    def update(self, first: int, last: int) -> None:
        for t in range(first, last + 1):
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(t))
            self.model(x).square().mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self, n_updates: int, best_score: float = 50.0) -> RunState:
        return checkpoint.capture(self.model, self.optimizer, n_updates, best_score)


def small_state(n_updates: int = 1) -> RunState:
    tensors = {"model.w": torch.arange(6.0).reshape(2, 3), "optimizer.0.m": torch.zeros(3)}
    return RunState(n_updates=n_updates, best_score=1.5, tensors=tensors, optimizer=[{"t": 1}])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------------------- round trip


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = Run()
    whole.update(1, 20)

    first = Run()
    first.update(1, 9)
    path = checkpoint.save(tmp_path, first.state(9, 61.5), IDENTITY)
    first.update(10, 12)  # the file must not follow

    second = Run()
    second.update(1, 3)  # traces of another life must go
    state, identity = checkpoint.load(path)
    assert (state.n_updates, state.best_score) == (9, 61.5)
    assert identity == IDENTITY
    checkpoint.restore(state, second.model, second.optimizer)
    second.update(10, 20)
    for own, expected in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, expected)
    assert second.optimizer.current_lr() == whole.optimizer.current_lr()


def test_a_state_before_the_first_update_can_be_kept_too(tmp_path: Path) -> None:
    state, _ = checkpoint.load(checkpoint.save(tmp_path, Run().state(0), IDENTITY))
    fresh, expected = Run(), Run()
    checkpoint.restore(state, fresh.model, fresh.optimizer)
    fresh.update(1, 2)
    expected.update(1, 2)
    assert torch.equal(fresh.model[0].weight, expected.model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_of_any_type_and_shape_come_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {
        "scalar": torch.tensor(3, dtype=dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "transposed": torch.arange(6).reshape(2, 3).to(dtype).T,
    }
    state = RunState(n_updates=0, best_score=0.0, tensors=tensors, optimizer=[])
    back, _ = checkpoint.load(checkpoint.save(tmp_path, state, {}))
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == dtype
        assert torch.equal(back.tensors[name], tensor)


def test_where_it_was_written_comes_back(tmp_path: Path) -> None:
    run, environment = Run(), {"the number of threads": 2, "torch's version": "2.6"}
    state = checkpoint.capture(run.model, run.optimizer, 0, 0.0, environment=environment)
    path = checkpoint.save(tmp_path, state, IDENTITY)
    assert checkpoint.load(path)[0].environment == environment


# ------------------------------------------------------------------------------- which are kept


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / "best_params.jl").touch()
    (tmp_path / "checkpoint-notes.txt").touch()
    for n in (9, 10, 99, 100):
        checkpoint.save(tmp_path, small_state(n), IDENTITY)
    kept = ["checkpoint-00000099.safetensors", "checkpoint-00000100.safetensors"]
    assert names(tmp_path) == ["best_params.jl", *kept, "checkpoint-notes.txt"]
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == kept


def test_a_directory_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.checkpoints(tmp_path) == []
    assert checkpoint.checkpoints(tmp_path / "missing") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from gpt1.training import checkpoint
from gpt1.runtime.errors import report_errors

tensors = {"model.w": torch.zeros(100_000)}
state = checkpoint.RunState(n_updates=2, best_score=0.0, tensors=tensors, optimizer=[])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.exit(report_errors("test", lambda: checkpoint.save(Path(sys.argv[1]), state, {}) and 0))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_full_disk_is_one_message_and_leaves_the_old_ones(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, small_state(1), IDENTITY)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert names(tmp_path) == [path.name]
    assert checkpoint.load(path)[0].n_updates == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("test: error: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


# ------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = checkpoint.save(tmp_path_factory.mktemp("whole"), small_state(), IDENTITY)
    return path.read_bytes()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, whole: bytes) -> None:
    """It is tried for each bit of the header's length and the numbers, and some hundred others."""
    rng = random.Random(0)
    bits = {*range(64), *range(8 * len(whole) - 8 * 36, 8 * len(whole))}
    bits |= {rng.randrange(8 * len(whole)) for _ in range(500)}
    for bit in sorted(bits):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        refusal(tmp_path / "file", bytes(data))


def test_a_file_cut_short_or_grown_is_noticed(tmp_path: Path, whole: bytes) -> None:
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        refusal(tmp_path / "file", whole[:length])
    refusal(tmp_path / "file", whole + b"\0")


def test_damage_is_told_from_another_kind_of_file(tmp_path: Path, whole: bytes) -> None:
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    assert "SHA-256" in refusal(tmp_path / "file", bytes(damaged))
    assert "not a readable checkpoint" in refusal(tmp_path / "file", b"of another kind altogether")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "gpt1 checkpoint 0"}])
def test_another_programs_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "file"
    save_file({"model.w": torch.zeros(2)}, path, metadata)
    assert checkpoint.FORMAT in refusal(path, path.read_bytes())


@pytest.mark.parametrize("change", ["name", "header", "dtype"])
def test_the_digest_covers_more_than_the_numbers(tmp_path: Path, whole: bytes, change: str) -> None:
    new = {
        "name": whole.replace(b"model.w", b"model.v"),
        "header": whole.replace(b"1.5", b"9.5"),
        "dtype": whole.replace(b"F32", b"I32"),
    }[change]
    assert new != whole
    assert "SHA-256" in refusal(tmp_path / "file", new)


def test_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path)


# ------------------------------------------------------------------------------- the machine


@contextmanager
def missing(path: Path) -> Iterator[None]:
    path.unlink()
    yield


@contextmanager
def on_a_failing_disk(path: Path) -> Iterator[None]:
    path.unlink()
    path.symlink_to(faults.FAILING_FILE)
    yield


@contextmanager
def too_large_for_the_memory(path: Path) -> Iterator[None]:
    """Replace a file's numbers by a gigabyte of zeros, which takes no space on the disk."""
    n = 1 << 30
    header = {"w": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + n)
    with faults.little_memory(n // 2):
        yield


TROUBLES = [
    (missing, "No such file or directory", "put it back"),
    (faults.closed, "Permission denied", "make it readable"),
    (on_a_failing_disk, "Input/output error", "disk"),
    (lambda path: faults.no_more_open_files(), "Too many open files", "ulimit -n"),
    (too_large_for_the_memory, "it does not fit into memory", "ulimit -v"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc")
@pytest.mark.parametrize(("trouble", "cause", "remedy"), TROUBLES)
def test_a_machine_in_trouble_is_no_damage(
    tmp_path: Path,
    trouble: Callable[[Path], AbstractContextManager[None]],
    cause: str,
    remedy: str,
) -> None:
    path = checkpoint.save(tmp_path, small_state(), IDENTITY)
    checkpoint.load(path)  # what is imported late is imported now
    with trouble(path), pytest.raises(Gpt1Error) as caught:
        checkpoint.load(path)
    assert not isinstance(caught.value, InputError)
    assert caught.value.exit_status == 1
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert cause in message
    assert remedy in message
    assert message.endswith("It was left as it is; go on with --resume when it can be read.")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")
def test_a_directory_that_cannot_be_listed_does_not_pass_for_an_empty_one(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, small_state(), IDENTITY)
    with faults.no_more_open_files(), pytest.raises(Gpt1Error, match="Too many open files"):
        checkpoint.checkpoints(tmp_path)
    with faults.closed(tmp_path), pytest.raises(Gpt1Error, match="Permission denied"):
        checkpoint.checkpoints(tmp_path)
    assert checkpoint.checkpoints(tmp_path) == [path]


def test_nothing_in_the_file_can_run(whole: bytes) -> None:
    """It holds numbers after a JSON header, and is not a pickle or a zip file of pickles."""
    length = int.from_bytes(whole[:8], "little")
    header: dict[str, Any] = json.loads(whole[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"format", "state", "sha256"}
    assert json.loads(metadata["state"])["identity"] == IDENTITY
    sizes = [entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()]
    assert 8 + length + sum(sizes) == len(whole)
    assert sum(sizes) == 4 * (6 + 3)
