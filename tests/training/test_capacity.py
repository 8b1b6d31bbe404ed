"""The memory and disk space of a run: the formula, the documented figures, the refusals."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
import tiny
import torch
from processes import SIGKILL, Run, assert_same, sends_itself, update

from gpt1.commands import train
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.results.log_lines import UpdateLine
from gpt1.results.outputs import Outputs
from gpt1.runtime.errors import InputError
from gpt1.settings.training import Settings
from gpt1.training import capacity, checkpoint
from gpt1.training.capacity import Need
from gpt1.training.logs import JsonLines
from gpt1.training.loop import Trainer

ROOT = Path(__file__).parents[2]
GPT1 = ModelConfig(n_ctx=77)  # on ROCStories


class Usage(NamedTuple):
    """The result of ``shutil.disk_usage``."""

    total: int
    used: int
    free: int


def with_free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Let every file system have ``n_bytes`` of free space."""
    usage = Usage(10**15, 10**15 - n_bytes, n_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


# ------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("n_layer", [0, 1, 3])
def test_the_number_of_parameters_is_the_models(n_layer: int) -> None:
    config = ModelConfig(n_vocab=11, n_ctx=5, n_embd=6, n_head=2, n_layer=n_layer)
    model = DoubleHeadsModel(config)
    assert capacity.n_parameters(config) == sum(p.numel() for p in model.parameters())


def test_the_pages_figures_follow_from_the_formula() -> None:
    parameters = 4 * capacity.n_parameters(GPT1)
    state = 3 * parameters
    figures = {
        "Parameters": parameters,
        "Checkpoint": state,
        "Disk": 3 * state + parameters,
        "Memory": parameters + state,
    }
    page = (ROOT / "docs/finetuning.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \|.*\| ([\d.]+ [MG]B) \|$", page, re.M))
    assert rows == {name: rounded(size) for name, size in figures.items()}
    assert f"{rounded(figures['Disk'])} of disk space" in (ROOT / "README.md").read_text()


def rounded(n_bytes: int) -> str:
    """Return a number of bytes rounded to three digits."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("n_bytes", "up", "down"),
    [
        (0, "0.0 kB", "0.0 kB"),
        (999, "1.0 kB", "0.9 kB"),
        (1000, "1.0 kB", "1.0 kB"),
        (999_999, "1000.0 kB", "999.9 kB"),
        (1_394_445_324, "1.4 GB", "1.3 GB"),
        (10**20, "100000.0 PB", "100000.0 PB"),
    ],
)
def test_sizes_in_messages(n_bytes: int, up: str, down: str) -> None:
    assert capacity.shown(n_bytes) == up
    assert capacity.shown(n_bytes, math.floor) == down


# ------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("device", "copies"), [("cpu", 4), ("meta", 3)])
def test_the_memory_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, device: str, copies: int
) -> None:
    """On a CPU it holds gradients, too; otherwise only the arrays of a checkpoint."""
    needed = copies * 4 * capacity.n_parameters(GPT1)
    monkeypatch.setattr(capacity, "host_memory", lambda: needed)
    capacity.check_memory(GPT1, torch.device(device), "model/")
    monkeypatch.setattr(capacity, "host_memory", lambda: needed - 1)
    with pytest.raises(InputError) as caught:
        capacity.check_memory(GPT1, torch.device(device), "model/")
    assert str(caught.value) == (
        "--n_embd 768 --n_layer 12 (where not given, from model/): give smaller sizes, or train "
        "where there is more memory; 1.2e+08 parameters with their gradients and moments take "
        f"{capacity.shown(needed)}, and this machine has "
        f"{capacity.shown(needed - 1, math.floor)} of memory"
    )
    monkeypatch.setattr(capacity, "host_memory", lambda: None)
    capacity.check_memory(GPT1, torch.device(device), "model/")


def test_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties(NamedTuple):
        total_memory: int

    needed = 16 * capacity.n_parameters(GPT1)
    found = {torch.device("cuda", 1): Properties(needed)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found[device])
    monkeypatch.setattr(capacity, "host_memory", lambda: needed)
    capacity.check_memory(GPT1, torch.device("cuda", 1), "model/")
    found[torch.device("cuda", 1)] = Properties(needed - 1)
    with pytest.raises(InputError, match=r"device cuda:1 has 1\.8 GB of memory"):
        capacity.check_memory(GPT1, torch.device("cuda", 1), "model/")


def test_the_memory_of_this_machine() -> None:
    """It is the smallest of all limits; /proc/meminfo gives the same pages as sysconf."""
    found = capacity.host_memory()
    if sys.platform == "linux":
        total = re.search(r"^MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        assert total
        assert found is not None
        assert 0 < found <= 1024 * int(total[1])


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "100\n"}, [100]),
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/a/b\n", {"a/b/memory.max": "200\n", "a/memory.max": "100\n"}, [200, 100]),
        ("0::/a\n", {"a/memory.max": "200\n", "../memory.max": "100\n"}, [200]),
        ("0::/not/mounted\n", {"memory.max": "100\n"}, [100]),
        (
            "9:name=systemd:/\n4:cpu,memory:/a\n3:cpuset:/b\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "100\n", "memory/memory.limit_in_bytes": "300\n"},
            [100, 300],
        ),
        ("0::/../..\n", {"memory.max": "100\n"}, [100]),
        (None, {"memory.max": "100\n"}, []),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path, groups: str | None, limits: dict[str, str], expected: list[int]
) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(capacity._cgroup_limits(tmp_path)) == expected


def test_a_model_too_large_is_refused_before_anything_is_written(
    task: tiny.Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(capacity, "host_memory", lambda: 10**5)
    run = Run(task, tmp_path / "run")
    assert train.main(run.flags()) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"gpt1 train: error: --n_embd {tiny.N_EMBD} --n_layer {tiny.N_LAYER} ")
    assert f"from {task.model_dir}/" in stderr
    assert stderr.count("\n") == 1
    assert written(run.directory) == []


# ------------------------------------------------------------------------------- disks


def written(directory: Path) -> list[str]:
    """Return the names of all files except locks."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.name for path in found if not path.name.endswith(".lock"))


def outputs_in(directory: Path, **files: int) -> Outputs:
    """The outputs of a run with ``--submit``, some of which exist, with their sizes.

    Args:
        directory: the directory of all outputs.
        files: ``best_params``, ``updates``, ``submission``, or ``c3`` for the checkpoint of the
            third update.
    """
    places = {f"{kind}_dir": str(directory / kind) for kind in ("log", "save", "submission")}
    outputs = Outputs(Settings(submit=True, **places))  # type: ignore[arg-type]
    outputs.check()
    for name, size in files.items():
        path: Path = getattr(outputs, name, outputs.directory)
        if path == outputs.directory:
            path /= f"checkpoint-{int(name[1:]):08d}.safetensors"
        path.write_bytes(bytes(size))
    return outputs


P = 1000  # parameters, so that 4000 bytes are one copy of them


@pytest.mark.parametrize(
    ("n_checkpoints", "resumed", "files", "copies", "saved"),
    [
        (0, False, {}, 1, 0),
        (1, False, {}, 4, 0),
        (2, False, {}, 7, 0),
        (3, False, {}, 10, 0),
        (9, False, {}, 10, 0),
        # Files of an earlier run are replaced; its checkpoints are removed before all else.
        (9, False, {"best_params": 3900, "c3": 100, "c6": 10}, 10, 4010),
        # The first parameters are written while the old ones still exist.
        (1, False, {"best_params": 10**6, "c3": 100}, 1, 100),
        # A resumed run has its best parameters, and writes one checkpoint more than it keeps.
        (0, True, {"best_params": 4000, "c3": 12000, "c6": 12000}, 0, 0),
        (1, True, {"best_params": 4000, "c3": 12000}, 3, 0),
        (9, True, {"best_params": 4000, "c3": 12000}, 6, 0),
        (9, True, {"best_params": 4000, "c3": 12000, "c6": 12000}, 3, 0),
    ],
)
def test_what_is_saved(
    tmp_path: Path,
    n_checkpoints: int,
    resumed: bool,
    files: dict[str, int],
    copies: int,
    saved: int,
) -> None:
    """The need is a number of copies of the parameters, less the replaced files."""
    outputs = outputs_in(tmp_path, **files)
    need, *_ = needs_of(outputs, n_checkpoints=n_checkpoints, resumed=resumed)
    assert need == ("--save_dir", outputs.directory, 4 * P * copies - saved)


def needs_of(outputs: Outputs, **changes: Any) -> list[Need]:
    usual = {
        "n_parameters": P,
        "n_checkpoints": 9,
        "n_updates": 12,
        "n_predicted": {"ROCStories": 20},
        "resumed": False,
    }
    return capacity.disk_needs(outputs, **{**usual, **changes})


def test_what_is_copied_beside_the_parameters(tmp_path: Path) -> None:
    """Files that are there already are replaced, one after another."""
    outputs = outputs_in(tmp_path)
    files = (tmp_path / "vocabulary", tmp_path / "merges")
    for path, size in zip((*files, outputs.vocabulary[0]), (700, 50, 600), strict=True):
        path.write_bytes(bytes(size))
    without, _, _ = needs_of(outputs)
    need, _, _ = needs_of(outputs, vocabulary=files)
    assert need.n_bytes - without.n_bytes == 100 + 50


def test_what_is_logged_and_submitted(tmp_path: Path) -> None:
    """There are two submissions: the run's own, and the copy at the original's path."""
    outputs = outputs_in(tmp_path, updates=500)
    size = len("index\tprediction\n") + 10 * len("0\t0\n") + 10 * len("10\t0\n")
    for resumed, logged in ((False, 12 * 80 - 500), (True, 12 * 80)):
        _, log, submission = needs_of(outputs, resumed=resumed)
        assert log == ("--log_dir", tmp_path / "log", logged)
        place = tmp_path / "submission/rocstories"
        assert submission == ("--submission_dir", place, 2 * size)
    outputs.submission.write_bytes(bytes(size - 1))
    outputs.last_submissions["ROCStories"].write_bytes(bytes(size + 1))
    assert needs_of(outputs)[2].n_bytes == 1


def test_a_line_in_the_log_of_updates_has_no_fewer_bytes(tmp_path: Path) -> None:
    """This holds even with the shortest numbers."""
    path = tmp_path / "updates.jsonl"
    shortest = UpdateLine(
        n_updates=1, clf_cost=0.0, lm_cost=None, lr=0.0, grad_norm=0.0, time=time.time()
    )
    log = JsonLines(path)
    log.write(**asdict(shortest))
    log.close()
    assert len(path.read_bytes()) > capacity.UPDATE_LINE


def test_directories_on_one_disk_share_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    needs = [
        Need("--log_dir", tmp_path / "a", 10**9),
        Need("--save_dir", tmp_path / "b", 3 * 10**9),
        Need("--submission_dir", tmp_path / "b", -(10**9)),
    ]
    with_free(monkeypatch, 3 * 10**9)
    capacity.check_disks(needs)
    with_free(monkeypatch, 3 * 10**9 - 1)
    with pytest.raises(InputError) as caught:
        capacity.check_disks(needs)
    assert str(caught.value) == (
        f"{tmp_path / 'b'}: free 0.1 kB on the disk of this directory, or name another directory "
        "with --save_dir; the run needs 3.0 GB there and 2.9 GB are free"
    )


def test_each_disk_that_is_too_small_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Path("/proc"), tmp_path]
    if not places[0].is_dir() or os.stat("/proc").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    needs = [Need("--log_dir", places[0], 10**9), Need("--save_dir", places[1], 10**9)]
    with_free(monkeypatch, 10**9)
    capacity.check_disks(needs)
    with_free(monkeypatch, 10**8)
    with pytest.raises(InputError) as caught:
        capacity.check_disks(needs)
    head, *lines = str(caught.value).split("\n  ")
    assert head == "2 problems:"
    assert [line.split(":")[0] for line in lines] == [str(place) for place in places]
    assert all("free 900.0 MB on the disk" in line for line in lines)


@pytest.mark.parametrize(("user", "is_enough"), [(0, True), (1000, False)])
def test_root_may_fill_what_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, is_enough: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total=100, used=40, free=50))
    needs = [Need("--save_dir", tmp_path, 60)]
    if is_enough:
        capacity.check_disks(needs)
    else:
        with pytest.raises(InputError):
            capacity.check_disks(needs)


def test_a_disk_that_does_not_say_what_is_free_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> Usage:
        raise OSError(38, "Function not implemented")

    needs = [Need("--save_dir", tmp_path, 10**18)]
    for disk_usage in (lambda path: Usage(0, 0, 0), fails):
        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        capacity.check_disks(needs)


@pytest.mark.parametrize(
    ("n_iter", "save_every", "done", "expected"),
    [
        (3, 0, 0, 3),
        (2, 0, 0, 2),
        (9, 0, 0, 3),
        (1, 3, 0, 2),
        (1, 2, 0, 2),
        (3, 0, 8, 1),
        (3, 3, 12, 0),
    ],
)
def test_the_run_counts_its_checkpoints(
    task: tiny.Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_iter: int,
    save_every: int,
    done: int,
    expected: int,
) -> None:
    """An epoch has four updates. At most three checkpoints count: no more exist at once."""
    seen: dict[str, Any] = {}

    def record(outputs: Outputs, **values: Any) -> list[Need]:
        seen.update(values)
        raise InputError("seen")

    monkeypatch.setattr(capacity, "disk_needs", record)
    init = Trainer.__init__

    def begin(trainer: Trainer, *args: Any, **options: Any) -> None:
        init(trainer, *args, **options)
        trainer.state.n_updates = done

    monkeypatch.setattr(Trainer, "__init__", begin)
    words = ["--n_iter", str(n_iter), "--save_every", str(save_every)]
    assert train.main(Run(task, tmp_path / "run").flags(*words)) == 2
    assert seen["n_checkpoints"] == expected
    assert seen["n_updates"] == 4 * n_iter - done
    assert seen["n_predicted"] == {"ROCStories": tiny.N_TEST, "ROCStories.dev": tiny.N_VALID}
    assert seen["resumed"] is False


# ------------------------------------------------------------------------------- whole runs

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for one run of the tiny task, but not for two."""
    with faults.small_disk(tmp_path / "disk", "500k") as place:
        yield place


def fill(disk: Path, *, free: int) -> Path:
    """Put a file onto a disk that leaves ``free`` bytes."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    return filler


@on_linux
def test_a_run_that_fits_is_not_refused_and_one_that_does_not_is(
    whole: dict[str, Any], task: tiny.Tiny, tmp_path: Path, disk: Path
) -> None:
    run = Run(task, tmp_path / "run")
    save = ("--save_dir", str(disk / "save"))
    filler = fill(disk, free=10**5)
    refused = run.do(*save)
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.message().startswith(f"error: {disk / 'save/rocstories'}: free ")
    assert "another directory with --save_dir" in refused.message()
    assert written(run.directory) + written(disk) == ["filler"]

    filler.unlink()
    kill = update(6, sends_itself(SIGKILL))
    assert run.do(*save, changes=[kill]).status == -SIGKILL
    # Two checkpoints exist; a third one must fit, and no more.
    state = checkpoint.checkpoints(disk / "save/rocstories")[-1].stat().st_size
    filler = fill(disk, free=state // 2)
    refused = run.do(*save, "--resume")
    assert refused.status == 2
    assert refused.stderr.startswith("--resume: going on after update 4 of 12\ngpt1 train: error: ")
    filler.unlink()
    fill(disk, free=state + 3 * 4096)
    assert run.do(*save, "--resume").status == 0
    shutil.copytree(disk / "save", run.directory / "save")
    assert_same(run, whole)


@on_linux
def test_what_a_run_replaces_counts_as_free(
    whole: dict[str, Any], task: tiny.Tiny, tmp_path: Path, disk: Path
) -> None:
    """A second run of the same name only has the space that the first one left."""
    run = Run(task, tmp_path / "run")
    save = ("--save_dir", str(disk / "save"))
    assert run.do(*save).status == 0
    state = checkpoint.checkpoints(disk / "save/rocstories")[-1].stat().st_size
    fill(disk, free=state + 3 * 4096)
    assert run.do(*save).status == 0
    other = run.do(*save, "--desc", "other")
    assert other.status == 2
    assert f"{disk / 'save/other'}: free " in other.message()
    shutil.copytree(disk / "save", run.directory / "save")
    assert_same(run, whole)


def test_one_of_two_processes_refuses(
    whole: dict[str, Any], task: tiny.Tiny, tmp_path: Path
) -> None:
    run = Run(task, tmp_path / "run")
    first, second = run.do_pair(changes=[_has_no_room])
    assert (first.status, second.status) == (2, 2)
    assert "with --save_dir" in first.message()
    assert second.messages() == []


def _has_no_room() -> None:
    shutil.disk_usage = lambda path: Usage(1, 1, 0)  # type: ignore[assignment,misc]
