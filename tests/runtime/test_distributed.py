"""Towers and processes: each tower is computed once; any number of processes gives the same run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from processes import free_port
from torch import Tensor
from waiting import DEADLINE

import gpt1
from gpt1.commands import train
from gpt1.runtime import launcher, ranks
from gpt1.runtime.device import check_precision, choose_device, environment, set_matmul_precision
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.launcher import processes_to_start
from gpt1.runtime.ranks import Ranks, joined
from gpt1.runtime.seeds import tower_seed
from gpt1.training import checkpoint

CPU = torch.device("cpu")
TORCHRUN_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove torchrun's variables, and let each process that a test starts use one thread."""
    for name in TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# ------------------------------------------------------------------------------- who does what


@pytest.mark.parametrize(("n_gpu", "world"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3)])
def test_each_tower_has_one_process(n_gpu: int, world: int) -> None:
    shares = [Ranks(rank, world, CPU).own_towers(n_gpu) for rank in range(world)]
    assert [tower for share in shares for tower in share] == list(range(n_gpu))
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("n", [0, 1, 2, 7, 374, 1871])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_the_parts_of_all_processes_cover_everything_in_order(n: int, world: int) -> None:
    parts = [list(range(n))[Ranks(rank, world, CPU).own_part(n)] for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_first_process_is_the_main_one() -> None:
    assert [Ranks(rank, 3, CPU).is_main for rank in range(3)] == [True, False, False]


def test_alone_there_is_nothing_to_exchange() -> None:
    alone, tensor, array = Ranks(0, 1, CPU), torch.ones(2), np.ones(2)
    assert alone.mean(tensor) is tensor
    alone.broadcast([tensor])
    assert tensor.tolist() == [1, 1]
    assert alone.gather(array) is array


@pytest.mark.parametrize(
    ("rank", "messages", "raised", "elsewhere"),
    [
        (0, (None, "there"), "there", True),
        (1, (None, "there"), "there", False),
        (0, ("here", "there"), "here", False),
        (1, ("both", "both"), "both", True),
    ],
)
def test_an_error_in_any_process_is_raised_in_all_and_reported_once(
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    messages: tuple[str | None, ...],
    raised: str,
    elsewhere: bool,
) -> None:
    """Of two ranks, the one that raised an error reports it, or the first if both errors are equal.

    Args:
        monkeypatch: replaces the communication.
        rank: the rank of this process.
        messages: the message of each rank's error, or None.
        raised: the message of the error that this rank raises.
        elsewhere: whether another rank reports it.
    """
    errors = [message and Gpt1Error(message) for message in messages]

    def body() -> None:
        if errors[rank]:
            raise errors[rank]

    def gather(found: list[Any], own: Gpt1Error | None) -> None:
        assert own is errors[rank]
        found[:] = errors

    monkeypatch.setattr(ranks.dist, "all_gather_object", gather)
    with pytest.raises(Gpt1Error, match=raised) as caught:
        Ranks(rank, 2, CPU).on_all_ranks(body)
    assert caught.value.reported_elsewhere == elsewhere


def test_what_the_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = environment(CPU, 3)
    processor = found.pop("the processor")
    assert found == {
        "the device": "cpu",
        "the number of processes": 3,
        "torch's version": str(torch.__version__),
        "NumPy's version": np.__version__,
        "the processor's instruction set": "AVX9 with bfloat16",
        "the number of threads": 7,
    }
    assert json.loads(json.dumps(found)) == found  # as a checkpoint keeps it
    assert isinstance(processor, str)
    assert processor
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert f": {processor}\n" in Path("/proc/cpuinfo").read_text()
    monkeypatch.setattr(Path, "read_text", lambda path: "processor: 0\nFeatures: fp\n")
    assert environment(CPU, 3)["the processor"] == platform.machine()


def test_what_the_bits_depend_on_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    found = environment(torch.device("cuda", 1), 1)
    assert found["the device"] == "GPU of cuda:1"
    assert not any("thread" in name or "processor" in name for name in found)


# ------------------------------------------------------------------------------- seeds


def test_every_tower_of_every_update_has_a_seed_of_its_own() -> None:
    seeds = {
        tower_seed(seed, update, tower)
        for seed in (0, 1, 42)
        for update in range(140)
        for tower in range(5)
    }
    assert len(seeds) == 3 * 140 * 5
    for seed in (min(seeds), max(seeds)):
        torch.manual_seed(seed)  # takes them


def test_seeds_stay_what_they_are() -> None:
    """A run that is resumed with a later version must draw the same masks."""
    assert tower_seed(0, 0, 0) == 15793235383387715774
    assert tower_seed(42, 1, 0) == 15658369528003122356
    assert tower_seed(42, 138, 3) == 11802156561986299049


def test_seeds_leave_random_streams_alone() -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(5)
    torch.manual_seed(5)
    tower_seed(1, 2, 3)
    assert (np.random.rand(), torch.rand(1).item()) == expected


# ------------------------------------------------------------------------------- joining


def test_without_torchrun_there_is_one_process() -> None:
    with joined("cpu", 4) as group:
        assert group == Ranks(0, 1, CPU)


@pytest.mark.parametrize(("n_gpu", "world"), [(4, 3), (1, 2), (2, 4)])
def test_towers_must_be_shared_equally(
    monkeypatch: pytest.MonkeyPatch, n_gpu: int, world: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError) as caught, joined("cpu", n_gpu):
        pytest.fail("nothing may begin")
    assert f"--n_gpu {n_gpu}" in str(caught.value)
    assert f"{world} processes" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "cuda:99", "cpu:x", "meta", "mps", "xpu", "xla", "hpu", "vulkan", "privateuseone"],
)
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(InputError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert message.startswith(f"--device {name}: ")
    assert "\n" not in message


def test_the_default_device_is_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    assert choose_device(None, local_rank=3) == torch.device("cuda", 3)
    assert choose_device("cuda", local_rank=2) == torch.device("cuda", 2)
    assert choose_device("cuda:1", local_rank=2) == torch.device("cuda", 1)


def test_tf32_needs_cuda() -> None:
    with pytest.raises(InputError, match="--precision tf32"):
        check_precision("tf32", CPU)
    check_precision("fp32", CPU)
    set_matmul_precision("fp32")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("device", "n_gpu", "present", "expected"),
    [
        (None, 4, 8, 4),
        ("cuda", 4, 4, 4),
        ("cuda", 4, 3, 2),  # a divisor, so that all have as many towers
        (None, 6, 4, 3),
        (None, 5, 4, 1),
        (None, 4, 1, 1),
        ("cuda:0", 4, 8, 1),
        ("cpu", 4, 8, 1),
        (None, 4, 0, 1),
    ],
)
def test_as_many_processes_as_gpus_that_share_the_towers_equally(
    monkeypatch: pytest.MonkeyPatch, device: str | None, n_gpu: int, present: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    assert processes_to_start(device, n_gpu) == expected
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(device, n_gpu) == 1


# ------------------------------------------------------------------------------- real processes


def exchange(argv: Sequence[str]) -> int:
    """Use every method of communication on each rank, and write the results to a file."""
    with joined("cpu", 4) as group:
        mean = group.mean(torch.tensor([2.0, 10.0**group.rank]))
        parameter = torch.nn.Parameter(torch.full((3,), float(group.rank + 5)))
        group.broadcast([parameter])
        part = np.arange(5)[group.own_part(5)]
        found = {
            "rank": group.rank,
            "world": group.world,
            "towers": list(group.own_towers(4)),
            "mean": mean.tolist(),
            "broadcast": parameter.tolist(),
            "gathered": group.gather(part).tolist(),
        }
    (Path(argv[0]) / f"{group.rank}.json").write_text(json.dumps(found))
    return 0


def fail(argv: Sequence[str]) -> int:
    """End the second process with status 3; the first one would never end."""
    if os.environ["RANK"] == "1":
        return 3
    signal.pause()
    return 0


def test_started_processes_are_joined_in_a_group(tmp_path: Path) -> None:
    assert launcher.start_processes(exchange, [str(tmp_path)], 2) == 0
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "rank": rank,
            "world": 2,
            "towers": [2 * rank, 2 * rank + 1],
            "mean": [2, 5.5],
            "broadcast": [5, 5, 5],
            "gathered": [0, 1, 2, 3, 4],
        }
    assert not set(TORCHRUN_VARIABLES) & set(os.environ)


def test_the_status_of_a_process_that_fails_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.1)  # the other one would not end by itself
    assert launcher.start_processes(fail, [], 2) == 3


def test_a_signal_before_the_processes_are_started_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = launcher.spawn_processes

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*args, **kwargs)

    monkeypatch.setattr(launcher, "spawn_processes", signalled)
    assert launcher.start_processes(fail, [], 2) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("[/third_party/gloo/gloo/pair.cc:1] Connection closed by peer"), Gpt1Error),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), Gpt1Error),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_only_a_failed_collective_is_blamed_on_another_rank(
    error: Exception, raised: type[Exception]
) -> None:
    with pytest.raises(Exception, match=r".") as caught, ranks._reporting_lost_ranks():
        raise error
    assert type(caught.value) is raised


# ------------------------------------------------------------------------------- whole runs

NO_DROPOUT = [
    word for kind in ("embd", "attn", "resid", "clf") for word in (f"--{kind}_pdrop", "0")
]


@dataclass(frozen=True)
class Run:
    """The directory of a run's files."""

    directory: Path

    def flags(self) -> list[str]:
        kinds = ("log", "save", "submission")
        return [word for kind in kinds for word in (f"--{kind}_dir", str(self.directory / kind))]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]

    def tensors(self) -> dict[str, Tensor]:
        newest = checkpoint.checkpoints(self.directory / "save/rocstories")[-1]
        return checkpoint.load(newest)[0].tensors


def assert_same(own: Run, other: Run, tolerance: float) -> None:
    """Check that parameters, logged figures and submission are those of the other run.

    The true gradient of the classifier's bias is 0, so that only rounding errors change the bias.
    """
    ours, theirs = own.tensors(), other.tensors()
    names = [name for name in theirs if name.startswith("model.") and name != "model.clf.b"]
    assert len(names) == 2 + 12 * tiny.N_LAYER
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance, err_msg=name)
    for log in ("log/rocstories.jsonl", "log/rocstories.updates.jsonl"):
        ours_logged, theirs_logged = own.lines(log), other.lines(log)
        first = 1 if "n_gpu" in theirs_logged[0] else 0
        assert len(ours_logged) == len(theirs_logged) > first
        for own_line, other_line in zip(ours_logged[first:], theirs_logged[first:], strict=True):
            assert own_line.keys() == other_line.keys()
            for key in own_line.keys() - {"time"}:
                assert own_line[key] == pytest.approx(other_line[key], rel=0, abs=tolerance), key
    name = "submission/ROCStories.tsv"
    assert (own.directory / name).read_bytes() == (other.directory / name).read_bytes()


def test_two_processes_equal_one_with_two_towers(task: tiny.Tiny, tmp_path: Path) -> None:
    """Start the processes as on a machine with two GPUs, but on the CPU."""
    flags = [*task.flags, *NO_DROPOUT, "--n_gpu", "2", "--n_batch", "4", "--submit"]
    flags += ["--device", "cpu"]
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert train.main([*flags, *one.flags()]) == 0
    assert launcher.start_processes(train.main, [*flags, *two.flags()], 2) == 0
    assert two.lines("log/rocstories.jsonl")[0]["n_processes"] == 2
    assert_same(two, one, 1e-6)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_torchrun_equals_one_process_with_dropout_too(
    task: tiny.Tiny, tmp_path: Path, world: int
) -> None:
    """The dropout masks of a tower do not depend on the process that computes it."""
    flags = [*task.flags, "--n_gpu", "4", "--n_batch", "2", "--submit", "--device", "cpu"]
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert train.main([*flags, *one.flags()]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", "-m", "gpt1.train", *flags, *two.flags()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3  # one line per epoch, from one process only
    assert two.lines("log/rocstories.jsonl")[0]["n_processes"] == world
    assert_same(two, one, 1e-6)


def run_on_two_machines(directory: Path, flags: list[str]) -> list[int]:
    """Run two processes with separate directories; return their exit statuses."""
    port = free_port()
    processes = []
    for rank in ("0", "1"):
        machine = directory / rank
        machine.mkdir(parents=True, exist_ok=True)
        variables = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables |= {"PYTHONPATH": str(Path(gpt1.__file__).parents[1])}
        command = [sys.executable, "-m", "gpt1.train", *flags]
        environment = {**os.environ, **variables}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, cwd=machine, env=environment, **quiet))  # type: ignore[call-overload]
    try:
        return [process.wait(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_resuming_on_several_machines_is_the_same_run_or_none(
    task: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rank 0 has checkpoints on its disk; the other ranks must resume too."""
    flags = [*task.flags, "--n_gpu", "2", "--n_batch", "4", "--device", "cpu", "--lr", "1e-2"]
    whole, resumed = Run(tmp_path / "whole"), Run(tmp_path / "0")
    assert train.main([*flags, *whole.flags()]) == 0
    shutil.copytree(whole.directory, resumed.directory)
    checkpoint.checkpoints(resumed.directory / "save/rocstories")[-1].unlink()
    statuses = run_on_two_machines(tmp_path, [*flags, "--resume"])
    if statuses != [2, 2]:  # a message that asks for a shared directory would do
        assert statuses == [0, 0]
        ours, theirs = resumed.tensors(), whole.tensors()
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"model.clf.b"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)
