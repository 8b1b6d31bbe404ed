"""Only one run per name at a time; a dead process holds no lock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import (
    SIGKILL,
    Run,
    Running,
    assert_same,
    before,
    sends_itself,
    slow_but,
    update,
    waits_for,
)
from waiting import DEADLINE, wait_until

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.locks import RunLock

fcntl = pytest.importorskip("fcntl", reason="the system has no such locks")
pytestmark = pytest.mark.usefixtures("fork_server")


# ------------------------------------------------------------------------------- whole runs


def paused(run: Run, go: Path) -> Running:
    """Start a run that waits in its second update until the file ``go`` exists."""
    first = run.start(changes=[update(2, waits_for(go))])
    wait_until(go.with_name(go.name + ".waits").exists, "the first run's second update")
    return first


def test_a_second_run_of_a_name_is_refused_and_the_first_goes_on(
    whole: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = paused(run, go)
    files = {path: path.read_bytes() for path in run.directory.rglob("*.jsonl")}
    for words in ([], ["--resume"]):
        second = run.do(*words)
        assert (second.status, second.stdout) == (2, "")
        message = second.message()
        assert message.startswith("error: --desc rocstories: another run of this name is writing")
        assert f"process {first.pid} on " in message
        assert "give another --desc" in message
    assert {path: path.read_bytes() for path in run.directory.rglob("*.jsonl")} == files
    go.touch()
    assert first.wait().status == 0
    assert_same(run, whole)


def test_sharing_one_directory_is_enough_to_be_refused(run: Run, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = paused(run, go)
    for kind in ("log", "save"):
        other = Run(run.task, tmp_path / f"shares {kind}")
        second = other.do(f"--{kind}_dir", str(run.directory / kind))
        assert second.status == 2
        assert f"is writing to {run.directory / kind}" in second.message()
    go.touch()
    assert first.wait().status == 0


def test_other_names_and_other_directories_are_free(
    whole: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = paused(run, go)
    for other in (
        Run(run.task, run.directory, desc="other"),
        Run(run.task, tmp_path / "elsewhere"),
    ):
        assert other.do().status == 0
        assert_same(other, whole)
    go.touch()
    assert first.wait().status == 0
    assert_same(run, whole)


def test_a_killed_run_blocks_nobody(whole: dict[str, Any], run: Run, tmp_path: Path) -> None:
    first = paused(run, tmp_path / "go")
    first.send(SIGKILL)
    assert first.wait().status == -SIGKILL
    assert f"process {first.pid} " in (run.saved / ".lock").read_text()  # a note, not the lock
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def starts_a_child_that_stays(note: Path) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(["sleep", str(DEADLINE)], **quiet)
    note.write_text(str(child.pid))


def test_what_a_killed_run_has_started_blocks_nobody(run: Run, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    starts = update(2, partial(starts_a_child_that_stays, note))
    assert run.do(changes=[starts, update(3, sends_itself(SIGKILL))]).status == -SIGKILL
    child = int(note.read_text())
    try:
        assert run.do("--resume").status == 0
        assert processes.is_alive(child)
    finally:
        os.kill(child, SIGKILL)


def test_only_the_main_process_of_several_takes_the_lock(run: Run, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waits = before("gpt1.training.loop:Trainer.train", waits_for(go))
    started = run.start_pair(changes=[waits])
    wait_until(go.with_name("go.waits").exists, "the pair's training")
    refused = run.do_pair()
    go.touch()
    assert [done.status for done in refused] == [2, 2]
    assert "another run of this name" in refused[0].message()
    assert refused[1].messages() == []
    assert [running.wait().status for running in started] == [0, 0]


# ------------------------------------------------------------------------------- the lock


def test_a_lock_is_free_when_its_block_has_ended(tmp_path: Path) -> None:
    paths = [tmp_path / "a.lock", tmp_path / "b.lock"]
    for _ in range(2):
        with RunLock() as lock:
            lock.take(paths, "mine")
            with RunLock() as other, pytest.raises(InputError, match="--desc mine: another run"):
                other.take(paths[1:], "mine")


def test_a_refused_lock_leaves_none_behind(tmp_path: Path) -> None:
    paths = [tmp_path / "a.lock", tmp_path / "b.lock"]
    with RunLock() as first, RunLock() as third:
        first.take(paths[1:], "mine")
        with RunLock() as second, pytest.raises(InputError):
            second.take(paths, "mine")
        third.take(paths[:1], "mine")


@pytest.mark.parametrize("content", [b"", b"process 1 on elsewhere\n", b"\xff\xfe\0" * 1000])
def test_what_stands_in_a_lock_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.lock"
    path.write_bytes(content)
    with RunLock() as lock:
        lock.take([path], "mine")
        path.write_bytes(content)
        with RunLock() as other, pytest.raises(InputError) as caught:
            other.take([path], "mine")
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_place_without_a_file_for_the_lock_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.lock").mkdir()
    with RunLock() as lock, pytest.raises(Gpt1Error, match=r"a\.lock: cannot be made"):
        lock.take([tmp_path / "a.lock"], "mine")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, "none here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock() as one, RunLock() as two:
        for lock in (one, two):
            lock.take([tmp_path / "a.lock"], "mine")


def test_a_full_disk_does_not_keep_a_lock_from_being_taken(tmp_path: Path) -> None:
    """On a full disk the note cannot be written, but the file is locked."""
    code = """
import resource, sys
from pathlib import Path
from gpt1.runtime.errors import InputError
from gpt1.runtime.locks import RunLock
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with RunLock() as one:
    one.take([Path(sys.argv[1])], "mine")
    try:
        RunLock().take([Path(sys.argv[1])], "mine")
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.lock")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(just started)" in done.stdout


# ------------------------------------------------------------------------------- leftovers

WRITTEN = {  # what is written, which time of it, and what its name then is
    "checkpoint": ("checkpoint-00000006", 1),
    "best parameters": ("best_params.jl", 2),
    "log": ("rocstories.jsonl", 1),
    "log of updates": ("rocstories.updates.jsonl", 1),
    "submission": ("ROCStories.tsv", 1),
    "copy of the submission": ("ROCStories.tsv", 2),
    "record": ("ROCStories.run.json", 1),
    "copy of the record": ("ROCStories.run.json", 2),
    "probabilities": ("ROCStories.probs.tsv", 1),
}


@pytest.mark.parametrize("kind", slow_but(WRITTEN, "checkpoint"))
def test_what_a_kill_leaves_half_written_is_gone_after_the_next_run(
    whole: dict[str, Any], run: Run, kind: str
) -> None:
    name, call = WRITTEN[kind]
    kill = before("gpt1.runtime.files:os.replace", sends_itself(SIGKILL), call=call, matching=name)
    assert run.do("--probs", changes=[kill]).status == -SIGKILL
    assert [file[: len(name) + 1] for file in run.leftovers()] == [f".{name}"]
    assert run.do("--probs", "--resume").status == 0
    assert run.leftovers() == []
    assert_same(run, whole)


def test_what_another_run_is_writing_stays(whole: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """Runs of different names write the same copy of the last submission, maybe at once."""
    go = tmp_path / "go"
    waits = before(
        "gpt1.runtime.files:os.replace", waits_for(go), matching="ROCStories.tsv", call=2
    )
    first = run.start(changes=[waits])
    wait_until(go.with_name("go.waits").exists, "the first run's copy")
    assert len(run.leftovers()) == 1
    assert Run(run.task, run.directory, desc="other").do("--n_iter", "1").status == 0
    assert len(run.leftovers()) == 1
    go.touch()
    assert first.wait().status == 0
    assert run.leftovers() == []
    assert_same(run, whole)
