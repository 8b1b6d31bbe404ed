"""Failures of real machines: a run loses nothing, and its message says what failed."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults
import numpy as np
import processes
import pytest
import tiny
import torch
from cloze import EncodedCloze, lay_out
from padded import padded
from processes import (
    SIGINT,
    SIGKILL,
    SIGTERM,
    Change,
    Done,
    Run,
    assert_same,
    before,
    only_rank,
    sends_itself,
    sends_parent,
    update,
)
from torch.distributed import HashStore
from torch.distributed.distributed_c10d import Store
from waiting import DEADLINE, wait_until

from gpt1.batches.encoded import EncodedSplit
from gpt1.commands import train
from gpt1.datasets import story_cloze as datasets
from gpt1.results.log_lines import read_updates
from gpt1.runtime import launcher, ranks
from gpt1.runtime.errors import report_errors
from gpt1.settings.training import Settings
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens
from gpt1.training import checkpoint, loop, prepare
from gpt1.training.fine_tuning import divergence_warning
from gpt1.weights import jl

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's signals, limits and /proc"),
    pytest.mark.usefixtures("fork_server"),
]

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------- not a number


def poisons(value: float, where: str) -> Change:
    """Return a change that puts a value into gradients or costs of update 6; note its stories."""
    return partial(_poison, value, where)


def _poison(value: float, where: str) -> None:
    from gpt1.training import fine_tuning

    original, calls = fine_tuning.tower_gradients, iter(range(1, 1000))
    pack_towers, packings = fine_tuning.tower_batches, iter(range(1, 1000))

    def packed(stories: EncodedSplit, *args: Any, **kwargs: Any) -> Any:
        if next(packings) == 6:
            np.save(os.environ["STORIES"], padded(stories, 0, 100).X[..., 0])
        return pack_towers(stories, *args, **kwargs)

    def poisoned(replica: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        costs = original(replica, *args, **kwargs)
        if next(calls) == 6:
            if where == "gradient":
                replica.model.we.grad[0, 0] = value
            else:
                costs[["clf", "lm"].index(where)] = value
        return costs

    fine_tuning.tower_gradients = poisoned
    fine_tuning.tower_batches = packed


def in_file_order(task: tiny.Tiny) -> np.ndarray:
    """The arrays of the stories in the validation CSV, in the order of its rows."""
    loaded = prepare.load_data(Settings(), task.sources(), verbose=False)
    encoder = TextEncoder(task.sources().encoder_path, task.sources().bpe_path)
    with open(task.data_dir / datasets.VALIDATION_CSV, newline="") as file:
        rows = list(csv.reader(file))[1:]
    texts = [" ".join(row[1:5]) for row in rows], [row[5] for row in rows], [row[6] for row in rows]
    encoded = EncodedCloze(*(encoder.encode(part, verbose=False) for part in texts), None)
    special = SpecialTokens.after(loaded.n_vocab)
    return lay_out(encoded, special, length=100).X[..., 0]


def stories_named(message: str) -> list[int]:
    """Return the numbers of stories that a message names."""
    found = re.search(r"The examples of the update are (/.+\.csv), story ([\d, ]+)\.", message)
    assert found is not None, message
    return [int(number) for number in found[2].split(", ")]


def assert_only_numbers(run: Run) -> None:
    """Check that no file of a run holds NaN or infinity."""
    processes.lines(run.log)
    processes.lines(run.updates)
    assert all(np.isfinite(array).all() for array in jl.read_jl(run.best))
    for path in checkpoint.checkpoints(run.saved):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(path)[0].tensors.values())


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        (float("nan"), "gradient", "gradient norm nan"),
        (float("nan"), "clf", "classification cost nan"),
        (float("-inf"), "lm", "language-model cost -inf"),
    ],
)
def test_what_is_not_a_number_stops_the_run_before_the_update(
    whole: dict[str, Any], run: Run, tmp_path: Path, value: float, where: str, what: str
) -> None:
    noted = partial(processes.set_variables, {"STORIES": str(tmp_path / "stories.npy")})
    done = run.do(changes=[noted, poisons(value, where)])
    assert done.status == 1
    message = done.message()
    assert message.startswith(f"error: update 6: {what}; ")
    assert f"the last good state is {run.saved}/checkpoint-00000005.safetensors" in message
    assert "lower --lr" in message
    numbers = stories_named(message)
    used = np.load(tmp_path / "stories.npy")
    np.testing.assert_array_equal(in_file_order(run.task)[[n - 1 for n in numbers]], used)

    assert [row["n_updates"] for row in processes.lines(run.updates)] == [1, 2, 3, 4, 5]
    assert run.checkpoints()[-1] == 5
    assert_only_numbers(run)
    if where == "gradient":
        assert run.do("--resume").status == 0  # now without the change
        assert_same(run, whole)


def test_a_run_that_diverges_by_itself(run: Run) -> None:
    done = run.do("--lr", "1e30")
    assert done.status == 1
    assert done.message().startswith("error: update 2: ")
    assert "nan" in done.message()
    assert len(set(stories_named(done.message()))) == 8
    assert run.checkpoints() == [1]
    assert_only_numbers(run)


def test_an_evaluation_that_is_not_a_number_is_neither_logged_nor_kept(run: Run) -> None:
    """The only update of an epoch has a finite loss, but the parameters are not finite after it."""
    done = run.do("--lr", "1e30", "--n_batch", "16", "--n_iter", "2")
    assert (done.status, done.stdout) == (1, "")
    assert done.message().startswith(
        "error: update 1: tr_cost nan and va_cost nan in the evaluation"
    )
    assert len(set(stories_named(done.message()))) == 32
    assert processes.lines(run.log)[1:] == []
    assert run.checkpoints() == []
    assert_only_numbers(run)


def test_parameters_that_overflow_are_not_kept(run: Run) -> None:
    """The gradient is finite, but the step is too large for float32."""
    done = run.do("--lr", "1e39", "--save_every", "1")
    assert done.status == 1
    assert done.message().startswith("error: update 1: its step has made a parameter infinite")
    assert run.checkpoints() == []
    assert_only_numbers(run)


# ------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("costs", "parts"),
    [
        ((0.693, 10.6), None),  # the cost of a uniform guess
        ((6.93, 31.8), None),  # just below both limits
        ((0.0, 0.0), None),  # without a language-model loss
        ((6.94, 10.6), ["classification cost is 6.94, above 10 times ln 2 = 6.931."]),
        ((0.693, 31.9), ["language-model cost is 31.9, above 3 times ln 40558 = 31.83."]),
        ((1717350.0, 4e6), ["is 1.717e+06, above 10 times", ", and the language-model cost is 4e"]),
    ],
)
def test_costs_far_above_a_guess_are_a_warning(
    costs: tuple[float, float], parts: list[str] | None
) -> None:
    warning = divergence_warning(7, *costs, n_classes=2, n_rows=40558)
    if parts is None:
        assert warning is None
        return
    assert warning is not None
    assert warning.startswith("update 7: the ")
    assert "lower --lr" in warning
    assert all(part in warning for part in parts)


def test_more_classes_may_cost_more() -> None:
    assert divergence_warning(1, 15.0, 0.0, n_classes=5, n_rows=9) is None
    warning = divergence_warning(1, 17.0, 0.0, n_classes=5, n_rows=9)
    assert warning is not None
    assert "10 times ln 5 = 16.09" in warning


def events(run: Run) -> list[dict[str, Any]]:
    return [row for row in processes.lines(run.updates) if "event" in row]


def delays_numbers() -> None:
    """Return a change that reads figures as late as on a GPU."""
    init = loop.Trainer.__init__

    def late(trainer: loop.Trainer, *args: Any, **options: Any) -> None:
        init(trainer, *args, **options)
        trainer._delay = loop.GPU_DELAY

    loop.Trainer.__init__ = late  # type: ignore[method-assign]


@pytest.mark.parametrize("changes", [[], [delays_numbers]], ids=["at once", "as on a GPU"])
def test_a_run_that_diverges_to_finite_numbers_warns_once(run: Run, changes: list[Change]) -> None:
    done = run.do("--lr", "1000", changes=changes)
    assert done.status == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: update 2: the classification cost is ")
    assert "3 times ln " in warning
    rows = processes.lines(run.updates)
    (event,) = events(run)
    assert event == {"n_updates": 2, "event": "diverging", "message": warning[len("warning: ") :]}
    assert rows.index(event) == 2  # after the two updates, before the others
    assert [line.n_updates for line in read_updates(run.updates)] == list(range(1, 13))


def test_a_resumed_run_does_not_warn_of_its_divergence_again(
    task: tiny.Tiny, run: Run, tmp_path: Path
) -> None:
    undisturbed = Run(task, tmp_path / "undisturbed")
    assert undisturbed.do("--lr", "1000").status == 0
    first = run.do("--lr", "1000", changes=[update(6, sends_itself(SIGTERM))])
    assert first.status == 143
    assert first.stderr.count("warning: ") == 1
    second = run.do("--lr", "1000", "--resume")
    assert second.status == 0
    assert "warning: " not in second.stderr
    assert_same(run, undisturbed.results())


def test_one_of_two_processes_warns_of_a_divergence(run: Run) -> None:
    first, second = run.do_pair("--lr", "1000")
    assert (first.status, second.status) == (0, 0)
    assert first.stderr.count("warning: ") == 1
    assert second.stderr == ""
    assert len(events(run)) == 1


def test_fresh_weights_are_no_divergence(run: Run) -> None:
    done = run.do("--n_transfer", "-1", "--n_iter", "1")
    assert (done.status, done.stderr) == (0, "")
    first = read_updates(run.updates)[0]
    assert first.lm_cost is not None
    # Logits of fresh weights differ by a few tenths, which moves a guess's cost by less than one.
    assert first.lm_cost < np.log(len(jl.read_jl(run.best)[0])) + 1


def test_one_of_two_processes_tells_of_a_divergence(
    whole_pair: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    noted = partial(processes.set_variables, {"STORIES": str(tmp_path / "stories.npy")})
    first, second = run.do_pair(changes=[noted, poisons(float("nan"), "gradient")])
    assert (first.status, second.status) == (1, 1)
    assert first.message().startswith("error: update 6: gradient norm nan")
    assert second.messages() == []
    assert run.checkpoints()[-1] == 5
    assert_only_numbers(run)
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


# ------------------------------------------------------------------------------- faults

WRITES = {  # when it is written, what the message names, and the newest checkpoint then
    "checkpoint": (
        partial(before, "gpt1.training.checkpoint:save", call=3),
        "checkpoint-00000006",
        4,
    ),
    "best parameters": (partial(before, "gpt1.weights.jl:write_jl", call=2), "best_params.jl", 3),
    "log": (
        partial(before, "gpt1.training.logs:JsonLines.write", call=12),
        "rocstories.updates.jsonl",
        8,
    ),
    "record": (partial(before, "gpt1.training.runs:_submit"), "ROCStories.run.json", 12),
    "submission": (
        partial(before, "gpt1.results.submissions:atomic_write", matching="ROCStories.tsv"),
        "ROCStories.tsv",
        12,
    ),
}


def assert_one_message_and_the_same_bits(
    done: Done, kind: str, reason: str, run: Run, whole: dict[str, Any]
) -> None:
    _, name, newest = WRITES[kind]
    assert done.status == 1
    what, _, why = done.message().partition(" cannot be written: ")
    assert name in what
    assert reason in why
    assert not run.leftovers()
    assert run.checkpoints()[-1] == newest
    assert run.do("--resume").status == 0
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITES)
def test_a_limit_on_the_size_of_files(whole: dict[str, Any], run: Run, kind: str) -> None:
    change, _, _ = WRITES[kind]
    done = run.do(changes=[change(processes.limits_files(100))])
    assert_one_message_and_the_same_bits(done, kind, "File too large", run, whole)


@pytest.fixture
def small_disk(task: tiny.Tiny, tmp_path: Path) -> Iterator[Run]:
    """A run on a file system of its own, with room for its files but not for many more."""
    with faults.small_disk(tmp_path / "disk", "2m") as place:
        yield Run(task, place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "submission"])
def test_a_full_disk(whole: dict[str, Any], small_disk: Run, kind: str) -> None:
    change, _, _ = WRITES[kind]
    run = small_disk
    done = run.do(changes=[change(processes.fills_disk(run.directory))])
    (run.directory / "filler").unlink()
    assert_one_message_and_the_same_bits(done, kind, "No space left on device", run, whole)


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_beginning(whole: dict[str, Any], small_disk: Run) -> None:
    done = small_disk.do(changes=[processes.fills_disk(small_disk.directory)])
    assert done.status == 2
    assert "another directory with --save_dir" in done.message()
    assert "and 0.0 kB are free" in done.message()
    (small_disk.directory / "filler").unlink()
    assert small_disk.do().status == 0
    assert_same(small_disk, whole)


def becomes_read_only(directory: Path) -> None:
    """Mount a directory read-only, since root may write whatever the permissions are."""
    if os.geteuid():
        directory.chmod(0o500)
        return
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)


@pytest.mark.slow
def test_a_directory_that_becomes_read_only(whole: dict[str, Any], run: Run) -> None:
    change, _, _ = WRITES["checkpoint"]
    done = run.do(changes=[change(partial(becomes_read_only, run.saved))])
    if os.geteuid():
        run.saved.chmod(0o700)
    elif subprocess.run(["umount", run.saved], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and may not mount here")
    reason = "Permission denied" if os.geteuid() else "Read-only file system"
    assert_one_message_and_the_same_bits(done, "checkpoint", reason, run, whole)


@pytest.mark.slow
def test_standard_output_on_a_full_disk(whole: dict[str, Any], run: Run) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    done = run.do(changes=[partial(prints_to, "/dev/full")])
    assert done.status == 1
    assert "standard output cannot be written: No space left on device" in done.message()
    assert run.checkpoints() == [3]
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def prints_to(path: str) -> None:
    os.dup2(os.open(path, os.O_WRONLY), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "log"])
def test_one_message_says_why_two_processes_end(run: Run, kind: str) -> None:
    change, name, _ = WRITES[kind]
    limit = change(only_rank("0", processes.limits_files(100)))
    first, second = run.do_pair(changes=[limit])
    assert (first.status, second.status) == (1, 1)
    assert name in first.message()
    if kind == "log":  # Only the first process knows of it.
        assert second.message().startswith("error: another process of this run has ended")
    else:
        assert second.messages() == []


def opens_no_more_files() -> None:
    """Return an action: from now on a process can open no file."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (faults.next_descriptor(), hard))


def contents(run: Run) -> dict[str, bytes]:
    """Return the content of all files of a run."""
    return {
        str(path): path.read_bytes()
        for path in sorted(run.directory.rglob("*"))
        if path.is_file() and "printed" not in path.parts and not path.name.endswith(".lock")
    }


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("gpt1.training.checkpoint:checkpoints", "save/rocstories"),
        ("gpt1.training.checkpoint:load", "checkpoint-00000006.safetensors"),
        ("gpt1.training.logs:_lines_until", "rocstories.jsonl"),
    ],
)
def test_too_many_open_files_on_resuming_lose_nothing(
    whole: dict[str, Any], run: Run, target: str, what: str
) -> None:
    """The newest checkpoint is neither renamed nor skipped, and no log begins anew."""
    run.do(changes=[update(6, sends_itself(SIGTERM))])
    before_it = contents(run)
    done = run.do("--resume", changes=[before(target, opens_no_more_files)])
    assert done.status == 1
    file, _, cause = done.message().partition(": the ")
    assert file.endswith(what)
    assert "cannot be read: Too many open files" in cause
    assert contents(run) == before_it
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def test_a_failing_disk_on_resuming_loses_nothing(whole: dict[str, Any], run: Run) -> None:
    run.do(changes=[update(6, sends_itself(SIGTERM))])
    newest = checkpoint.checkpoints(run.saved)[-1]
    aside = newest.rename(run.directory / "aside")
    newest.symlink_to(faults.FAILING_FILE)
    first, second = run.do_pair("--resume")
    assert (first.status, second.status) == (1, 1)
    assert f"{newest}: the saved state cannot be read: Input/output error" in first.message()
    assert second.messages() == []
    assert newest.is_symlink()
    aside.replace(newest)
    assert run.do("--resume").status == 0
    assert_same(run, whole)


# ------------------------------------------------------------------------------- other processes


@pytest.mark.slow
def test_one_of_two_processes_dies(whole_pair: dict[str, Any], run: Run) -> None:
    dies = update(6, only_rank("1", sends_itself(SIGKILL)))
    first, second = run.do_pair(changes=[dies])
    assert (first.status, second.status) == (1, -SIGKILL)
    assert first.message().startswith("error: another process of this run has ended or cannot be")
    assert "Start the run again with --resume" in first.message()
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


@pytest.mark.slow
def test_the_main_process_of_two_dies(whole_pair: dict[str, Any], run: Run) -> None:
    dies = before(
        "gpt1.runtime.files:os.replace", sends_itself(SIGKILL), matching="checkpoint-00000006"
    )
    first, second = run.do_pair(changes=[dies])
    assert (first.status, second.status) == (-SIGKILL, 1)
    assert "another process of this run has ended" in second.message()
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


def test_all_backward_passes_add_up_in_the_same_order(run: Run) -> None:
    """Otherwise the first update of a resumed run would not give an uninterrupted run's bits."""
    variables = {
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": processes.free_port(),
    }
    started = []
    for rank in map(str, range(4)):
        own = partial(processes.set_variables, variables | {"RANK": rank, "LOCAL_RANK": rank})
        started.append(run.start_body(_take_gradients_twice, changes=[own]))
    assert [running.wait().status for running in started] == [0] * 4


def _take_gradients_twice() -> int:
    with ranks.joined("cpu", 4) as group:
        sizes = (300, 200, 100)
        layers = [torch.nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes)]
        replica = ranks.Replica(torch.nn.Sequential(*layers), group)
        generator = torch.Generator().manual_seed(group.rank)
        x = torch.randn(8, sizes[0], generator=generator)
        gradients = []
        for _ in range(3):
            replica.model.zero_grad()
            replica.backward([lambda: replica.model(x).square().sum()])
            gradients.append(torch.cat([p.grad.flatten() for p in replica.model.parameters()]))
    return int(any(not torch.equal(gradient, gradients[0]) for gradient in gradients))


class Group:
    """A run of two processes that ``start_processes`` starts, as on a machine with two GPUs."""

    def __init__(self, run: Run, *changes: Change, words: tuple[str, ...] = ()) -> None:
        body = partial(_start_processes, run.flags(*words), run.directory)
        fork = processes.spawning_becomes_forking
        self.run, self.done = run, run.start_body(body, [os.setpgrp, fork, *changes]).wait()

    def assert_nobody_is_left(self) -> None:
        pids = [int(path.name) for path in (self.run.directory / "pids").iterdir()]
        assert len(pids) == 2
        wait_until(lambda: not any(map(processes.is_alive, pids)), "the workers' end")


def _start_processes(flags: list[str], directory: Path) -> int:
    (directory / "pids").mkdir(exist_ok=True)
    body = partial(_note_and_train, directory / "pids")
    return report_errors("gpt1 train", lambda: launcher.start_processes(body, flags, 2))


def _note_and_train(pids: Path, argv: list[str]) -> int:
    (pids / str(os.getpid())).touch()
    return train.main(argv)


def _interrupt_group() -> None:
    """Send SIGINT to the process group, as a terminal does on Ctrl-C."""
    if os.environ["RANK"] == "0":
        with processes.sigterm_comes():
            os.killpg(os.getpgrp(), SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "status"),
    [(sends_parent(SIGTERM), 143), (sends_parent(SIGINT), 130), (_interrupt_group, 130)],
    ids=["SIGTERM", "SIGINT", "Ctrl-C"],
)
def test_a_signal_to_the_parent_is_handed_on(
    whole_pair: dict[str, Any], run: Run, action: Change, status: int
) -> None:
    group = Group(run, update(6, action))
    assert group.done.status == status
    assert "stopped by SIGTERM: after update 6 of 12, all saved" in group.done.message()
    group.assert_nobody_is_left()
    assert run.checkpoints()[-1] == 6
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


@pytest.mark.slow
def test_a_parent_that_ignores_sigint_does_not_hand_it_on(
    whole_pair: dict[str, Any], run: Run
) -> None:
    ignores = partial(signal.signal, SIGINT, signal.SIG_IGN)
    interrupts = update(6, only_rank("0", _interrupt_parent))
    group = Group(run, ignores, interrupts)
    assert (group.done.status, group.done.stderr) == (0, "")
    assert_same(run, whole_pair)


def _interrupt_parent() -> None:
    os.kill(os.getppid(), SIGINT)


@pytest.mark.slow
def test_a_started_process_that_is_killed_is_named_and_ends_the_others(run: Run) -> None:
    group = Group(run, update(6, only_rank("1", sends_itself(SIGKILL))))
    assert group.done.status == 1
    consequence, cause = group.done.messages()
    assert "another process of this run has ended" in consequence
    assert "one of the 2 processes was ended by SIGKILL" in cause
    group.assert_nobody_is_left()


@pytest.mark.slow
def test_a_started_process_that_hangs_is_ended(run: Run) -> None:
    """A process stopped by SIGSTOP notices neither the death of the other one nor SIGTERM."""
    shorter = partial(processes.set_constant, "gpt1.runtime.launcher", "GRACE", 0.3)
    hangs = update(6, only_rank("0", sends_itself(signal.SIGSTOP)))
    dies = update(6, only_rank("1", partial(_die_when_another_hangs, run.directory / "pids")))
    group = Group(run, shorter, hangs, dies)
    assert group.done.status == 1
    assert "one of the 2 processes was ended by SIGKILL" in group.done.message()
    group.assert_nobody_is_left()


def _die_when_another_hangs(pids: Path) -> None:
    wait_until(
        lambda: any(processes.state(path.name) == "T" for path in pids.iterdir()),
        "the other process's stop",
    )
    os.kill(os.getpid(), SIGKILL)


@pytest.mark.slow
def test_started_processes_end_with_their_parent(whole_pair: dict[str, Any], run: Run) -> None:
    group = Group(run, update(6, sends_parent(SIGKILL)))
    assert group.done.status == -SIGKILL
    group.assert_nobody_is_left()
    assert run.checkpoints()[-1] in (6, 7)  # The second process may learn of it one update later.
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


@pytest.mark.slow
def test_processes_started_by_a_dead_parent_do_nothing(run: Run) -> None:
    """The parent died before they could ask to be told of its death."""
    group = Group(run, before("gpt1.runtime.launcher:end_with_parent", _kill_parent_and_wait))
    assert group.done.status == -SIGKILL
    assert list(run.directory.glob("pids/*")) == []
    assert not run.saved.exists()


def _kill_parent_and_wait() -> None:
    parent = os.getppid()
    os.kill(parent, SIGKILL)
    wait_until(lambda: os.getppid() != parent, "the parent's death")


# ------------------------------------------------------------------------------- torchrun

WORKER = """
import os, signal, sys, time
from pathlib import Path
pids, parent = Path(sys.argv[1]), os.getppid()
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
(pids / str(os.getpid())).touch()
{early}
import processes
from gpt1.commands import train
from gpt1.training import fine_tuning
original, calls = fine_tuning.tower_gradients, iter(range(1, 1000))
def changed(*args, **kwargs):
    if next(calls) == 6 and attempt == 0:
        {late}
    return original(*args, **kwargs)
fine_tuning.tower_gradients = changed
sys.exit(train.main(sys.argv[2:]))
"""
KILL_RANK_1 = 'os.environ["RANK"] == "1" and os.kill(os.getpid(), signal.SIGKILL)'
SIGNAL_PARENT = "processes.sends_parent(signal.{})()"


def torchrun(run: Run, *, early: str = "", late: str = "pass", restarts: int = 0) -> Done:
    """Run in two processes under torchrun, and check that none of them is left at the end.

    Args:
        early, late: Python code that each process runs before it imports torch, and in update 6.
        restarts: how often torchrun may restart the processes.
    """
    pids = run.directory / "pids"
    pids.mkdir(parents=True)
    (run.directory / "worker.py").write_text(WORKER.format(early=early, late=late))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    command += [str(run.directory / "worker.py"), str(pids), *run.flags()]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=DEADLINE
    )
    started = [int(path.name) for path in pids.iterdir()]
    assert len(started) == 2 * (1 + restarts)
    wait_until(lambda: not any(map(processes.is_alive, started)), "the workers' end")
    return Done(done.returncode, done.stdout, done.stderr)


def own_lines(done: Done) -> list[str]:
    """Return the lines of the program, without torchrun's report, which has a traceback."""
    return [line for line in done.stderr.splitlines() if line.startswith("gpt1 train: ")]


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_goes_on_by_itself(
    whole_pair: dict[str, Any], run: Run
) -> None:
    # The second time the main process is late: the other one must not find the first one's address.
    early = 'attempt and os.environ["RANK"] == "0" and time.sleep(1)'
    done = torchrun(run, early=early, late=KILL_RANK_1, restarts=1)
    assert done.status == 0, done.stderr
    (line,) = own_lines(done)
    assert "another process of this run has ended" in line
    assert "--resume: going on after update 4 of 12" in done.stderr
    assert_same(run, whole_pair)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_the_state(whole_pair: dict[str, Any], run: Run) -> None:
    done = torchrun(run, late=SIGNAL_PARENT.format("SIGTERM"))
    assert done.status != 0
    (line,) = own_lines(done)
    assert "stopped by SIGTERM: after update " in line
    assert "to go on: torchrun ... -m gpt1.train " in line
    assert run.checkpoints()[-1] in (6, 7)
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


@pytest.mark.slow
def test_nobody_outlives_torchrun(run: Run) -> None:
    done = torchrun(run, late=SIGNAL_PARENT.format("SIGKILL"))
    assert done.status == -SIGKILL
    assert run.checkpoints()[-1] in (6, 7)


@pytest.mark.slow
def test_a_process_that_starts_as_torchrun_dies_does_not_wait_for_it(run: Run) -> None:
    """It can no longer be told of torchrun's death, and torch would wait half an hour."""
    early = """
if os.environ["RANK"] == "0":
    while os.getppid() == parent and len(list(pids.iterdir())) < 2:  # both know their parent
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
while os.getppid() == parent:
    time.sleep(0.01)
"""
    done = torchrun(run, early=early)
    assert done.status == -SIGKILL
    assert not run.saved.exists()


def test_an_attempt_does_not_meet_the_dead_of_an_earlier_one() -> None:
    """torchrun keeps its store for all attempts; a new process must not read an old address."""
    store = HashStore()

    def attempt(late: int) -> list[Store]:
        def part(rank: int) -> Store:
            time.sleep(0.2 if rank == late else 0)
            return ranks._unused_part(store, rank, 3)

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(part, range(3)))

    for late in (1, 0):
        parts = attempt(late)
        assert not any(part.check(["here"]) for part in parts)
        parts[0].set("here", "")
        assert all(part.check(["here"]) for part in parts)


# ------------------------------------------------------------------------------- resuming


def test_the_number_of_layers_may_be_left_out_or_given(
    whole: dict[str, Any], finished: Run, tmp_path: Path
) -> None:
    run = processes.copied(finished, tmp_path / "run")
    checkpoint.checkpoints(run.saved)[-1].unlink()
    assert run.do("--resume", "--n_transfer", str(tiny.N_LAYER)).status == 0
    assert_same(run, whole)
    refused = run.do("--resume", "--n_transfer", "1")
    assert refused.status == 2
    assert "--resume: n_transfer was 2 in " in refused.message()


def test_another_number_of_processes_is_said_once(finished: Run, tmp_path: Path) -> None:
    run = processes.copied(finished, tmp_path / "run")
    checkpoint.checkpoints(run.saved)[-1].unlink()
    first, second = run.do_pair("--resume")
    assert (first.status, second.status) == (0, 0)
    said = [line for line in first.stderr.splitlines() if "warning" in line]
    assert [line.partition(", since ")[2] for line in said] == [
        "the number of processes was 1 and is now 2"
    ]
    assert second.stderr == ""


def test_flags_that_change_the_run_are_listed_together_and_once(
    finished: Run, tmp_path: Path
) -> None:
    run = processes.copied(finished, tmp_path / "run")
    words = ["--resume", "--seed", "1", "--lr", "0.5", "--precision", "bf16"]
    first, second = run.do_pair(*words)
    assert (first.status, second.status) == (2, 2)
    assert first.message() == "error: 3 problems:"
    listed = [line.split()[1] for line in first.stderr.splitlines()[1:]]
    assert sorted(listed) == ["lr", "precision", "seed"]
    assert second.stderr == ""


DAMAGED_LINES = [
    '{"n_updates": "2", "clf_cost": 0}',
    '{"n_updates": 1' + "0" * 5000 + "}",
    '{"n_updates": 1e400}',
    '{"n_updates": {"n_updates": [3]}}',
    '{"n_updates": null}',
    '{"n_updates": true}',
    "[" * 100_000,
    "null",
    "\x00\ufffd",
    "",
]


def test_a_log_that_was_damaged_by_hand_does_not_keep_a_run_from_going_on(
    whole: dict[str, Any], run: Run
) -> None:
    run.do(changes=[update(6, sends_itself(SIGKILL))])
    for path in (run.log, run.updates):
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([first, *DAMAGED_LINES, *rest, '{"n_updates": 5, "clf']))
    done = run.do("--resume")
    assert done.status == 0, done.stderr
    assert_same(run, whole)


# ------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("words", [["--deterministic"], ["--save_every", "1"]])
def test_what_changes_nothing(whole: dict[str, Any], run: Run, words: list[str]) -> None:
    assert run.do(*words).status == 0
    assert_same(run, whole)


def test_threads_that_share_an_encoder_get_what_one_gets(task: tiny.Tiny) -> None:
    """The encoder caches the ids of words, and threads share the cache."""
    sources = task.sources()
    with open(task.data_dir / datasets.VALIDATION_CSV, newline="") as file:
        texts = [" ".join(row[1:]) for row in csv.reader(file)] * 5
    expected = TextEncoder(sources.encoder_path, sources.bpe_path).encode(texts, verbose=False)
    shared = TextEncoder(sources.encoder_path, sources.bpe_path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: shared.encode(texts, verbose=False), range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert found == [expected] * 4


# ------------------------------------------------------------------------------- scripts/stress.py


@pytest.mark.slow
def test_the_stress_test_in_short(task: tiny.Tiny, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/stress.py"), *task.flags, "--kills", "2"]
    command += ["--n_iter", "6", "--save_every", "2", "--faults", "none", "--seed", "1"]
    command += ["--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] >= 2
    assert found["lost"] == 0
