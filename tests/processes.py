"""Runs of the tiny task in processes of their own, which tests stop, kill and starve.

To start Python and import torch takes seconds. A fork server does it once, and each run is a fork
of it: a real process with a real exit status, ready in milliseconds. What a run is to suffer is
put into it by changes: functions that are called in the run's process before the program.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import tiny
from waiting import DEADLINE, wait_until

from gpt1.commands import train
from gpt1.runtime import launcher
from gpt1.training import checkpoint

SIGTERM, SIGINT, SIGKILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
FLAGS = ["--device", "cpu", "--n_gpu", "2", "--n_batch", "4", "--submit", "--lr", "1e-2", "--quiet"]
FLAGS += ["--save_every", "3"]  # 4 updates per epoch, 12 in all: checkpoints 3 4 6 8 9 12
PROGRAM = "gpt1 train"

Change = Callable[[], object]
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "gpt1.train",
    "gpt1.training.pretraining_runs",
    "gpt1.training.runs",
    "torch._dynamo",
    "ftfy",
    "spacy.lang.en",
]
_PRELOADED += ["joblib", "safetensors.torch"]


def start_fork_server() -> None:
    """Start the fork server unless it runs, with one thread, since bits depend on the threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it printed.

    Attributes:
        status: the exit status, negative if a signal ended the process.
    """

    status: int
    stdout: str
    stderr: str
    program: str = PROGRAM

    def messages(self) -> list[str]:
        """The lines by which the program says that something is wrong."""
        assert "Traceback" not in self.stderr, self.stderr
        start = f"{self.program}: "
        return [line for line in self.stderr.splitlines() if line.startswith(start)]

    def message(self) -> str:
        """Return the single message of the program, without the program's name."""
        (message,) = self.messages()
        return message.removeprefix(f"{self.program}: ")


class Running:
    """A running process.

    Its output goes through pipes, so that a limit on files or a full disk does not prevent it.
    """

    def __init__(self, body: Callable[[], int], changes: Sequence[Change], place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        number = len(list(place.iterdir()))
        names = [place / f"{number}.{stream}" for stream in ("stdout", "stderr")]
        for name in names:
            os.mkfifo(name)
        self._pipes = [os.open(name, os.O_RDONLY | os.O_NONBLOCK) for name in names]
        self._texts = ["", ""]
        self._process: BaseProcess = _CONTEXT.Process(
            target=_main, args=(body, list(changes), [str(name) for name in names])
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Done:
        """Wait for the end of the process; if it hangs, kill it and fail the test."""
        end = time.monotonic() + DEADLINE
        while self._process.exitcode is None and time.monotonic() < end:
            self._process.join(0.05)
            self.stderr()
        if self._process.exitcode is None:
            self.send(SIGKILL)
            self._process.join()
            raise AssertionError(f"it hung; printed: {self.stderr()}")
        return Done(self._process.exitcode, self._text(0), self.stderr())

    def stderr(self) -> str:
        """Return what the process has printed to stderr so far."""
        return self._text(1)

    def _text(self, index: int) -> str:
        try:
            while data := os.read(self._pipes[index], 1 << 16):
                self._texts[index] += data.decode()
        except BlockingIOError:  # nothing yet
            pass
        return self._texts[index]


def _main(body: Callable[[], int], changes: list[Change], pipes: list[str]) -> None:
    # The shell that started the tests may have made them ignore SIGINT.
    signal.signal(SIGINT, signal.default_int_handler)
    for number, pipe in enumerate(pipes, start=1):
        os.dup2(os.open(pipe, os.O_WRONLY), number)
    for change in changes:
        change()
    sys.exit(body())


@dataclass(frozen=True)
class Run:
    """A run of the tiny task whose directories no other run uses."""

    task: tiny.Tiny
    directory: Path
    desc: str = "rocstories"

    @property
    def saved(self) -> Path:
        return self.directory / "save" / self.desc

    @property
    def best(self) -> Path:
        return self.saved / "best_params.jl"

    @property
    def log(self) -> Path:
        return self.directory / "log" / f"{self.desc}.jsonl"

    @property
    def updates(self) -> Path:
        return self.directory / "log" / f"{self.desc}.updates.jsonl"

    @property
    def submission(self) -> Path:
        return self.directory / "submission" / self.desc / "ROCStories.tsv"

    def flags(self, *words: str) -> list[str]:
        kinds = ("log", "save", "submission")
        places = [word for kind in kinds for word in (f"--{kind}_dir", str(self.directory / kind))]
        return [*self.task.flags, *places, *FLAGS, "--desc", self.desc, *words]

    def start(self, *words: str, changes: Sequence[Change] = ()) -> Running:
        """Start the program on this task, after ``changes``."""
        return self.start_body(partial(train.main, self.flags(*words)), changes)

    def start_body(self, body: Callable[[], int], changes: Sequence[Change] = ()) -> Running:
        """Start a function that can be pickled and returns an exit status."""
        return Running(body, changes, self.directory / "printed")

    def do(self, *words: str, changes: Sequence[Change] = ()) -> Done:
        """Start the program and wait for its end."""
        return self.start(*words, changes=changes).wait()

    def start_pair(
        self, *words: str, changes: Sequence[Change] = (), second: Sequence[Change] = ()
    ) -> list[Running]:
        """Start two processes of one run; only the second one has the changes ``second``."""
        variables = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        started = []
        for rank, more in (("0", []), ("1", second)):
            own = partial(set_variables, variables | {"RANK": rank, "LOCAL_RANK": rank})
            started.append(self.start(*words, changes=[own, *changes, *more]))
        return started

    def do_pair(
        self, *words: str, changes: Sequence[Change] = (), second: Sequence[Change] = ()
    ) -> list[Done]:
        """Start two processes as :meth:`start_pair` does, and wait for both."""
        started = self.start_pair(*words, changes=changes, second=second)
        return [running.wait() for running in started]

    def checkpoints(self) -> list[int]:
        """Return the numbers of the updates after which there is a checkpoint."""
        return [int(path.stem.split("-")[1]) for path in checkpoint.checkpoints(self.saved)]

    def results(self) -> dict[str, Any]:
        """Return the content of the run's files, without times, to compare it bit for bit."""
        newest = checkpoint.checkpoints(self.saved)[-1]
        tensors = checkpoint.load(newest)[0].tensors
        return {
            "best parameters": self.best.read_bytes(),
            "submission": self.submission.read_text(),
            "evaluations": lines(self.log)[1:],
            "updates": lines(self.updates),
            "state": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        }

    def leftovers(self) -> list[str]:
        """Return temporary files, without locks and printed output."""
        found = (path.name for path in self.directory.rglob(".*"))
        return sorted(name for name in found if not name.endswith(".lock"))


def free_port() -> str:
    """Return a port of this machine on which no program listens.

    It lies below the range from which systems give out ports by themselves, 32768 and more on
    Linux: from there another program could be given the same port before this one uses it.
    """
    for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no free port was found on this machine")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log without their times."""
    rows = [json.loads(line, parse_constant=_no_number) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def _no_number(text: str) -> float:
    raise ValueError(f"{text} in a log: no JSON")


def assert_same(run: Run, expected: Mapping[str, Any]) -> None:
    """Check that the results of a run are the expected ones, bit for bit."""
    for name, value in run.results().items():
        assert value == expected[name], name


def continuation(done: Done) -> list[str]:
    """Return the arguments of the command that a stopped run prints for continuing it."""
    _, _, command = done.message().partition("to go on: ")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "gpt1.train"]
    return words[3:]


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie, which has ended, is not."""
    return state(pid) not in ("Z", "")


def state(pid: int | str) -> str:
    """Return Linux's letter for the state of a process; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# ------------------------------------------------------------------------------- changes


def before(target: str, action: Change, *, call: int = 1, matching: str = "") -> Change:
    """Return a change that calls ``action`` before a call of a function.

    Args:
        target: ``module:function`` or ``module:Class.method``.
        action: what to do; can be pickled.
        call: at which call, counted from 1.
        matching: count only calls whose arguments, as text, contain this.
    """
    return partial(_before, target, action, call, matching)


def _before(target: str, action: Change, call: int, matching: str) -> None:
    module, _, names = target.partition(":")
    *path, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def changed(*args: Any, **kwargs: Any) -> Any:
        counts = not matching or matching in repr(args)
        if counts and next(calls) == call:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def update(number: int, action: Change) -> Change:
    """Return a change that acts at the beginning of an update, counted from 1 per process."""
    return before("gpt1.training.fine_tuning:tower_gradients", action, call=number)


def sends_itself(*numbers: int, pause: float = 0.0) -> Change:
    """Return an action: a process sends signals to itself, with a pause after each."""
    return partial(_send, numbers, pause)


def _send(numbers: Sequence[int], pause: float) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(pause)


def sends_parent(number: int) -> Change:
    """Return an action: the first of several processes sends a signal to their parent.

    The first process then waits until a SIGTERM has come back: otherwise it would depend on
    the machine's speed how far the process is at that time.
    """
    return partial(_send_parent, number)


def _send_parent(number: int) -> None:
    if os.environ["RANK"] == "0":
        with sigterm_comes():
            os.kill(os.getppid(), number)


@contextmanager
def sigterm_comes() -> Iterator[None]:
    """At the end of the block wait for a SIGTERM, which is then handled as usual."""
    came: list[int] = []
    before = signal.getsignal(SIGTERM)
    assert callable(before)

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(SIGTERM, handle)
    yield
    wait_until(lambda: bool(came), "SIGTERM")
    signal.signal(SIGTERM, before)


def only_rank(rank: str, action: Change) -> Change:
    """Return an action that one of several processes does, and the others do not."""
    return partial(_only_rank, rank, action)


def _only_rank(rank: str, action: Change) -> None:
    if os.environ["RANK"] == rank:
        action()


def waits_for(path: Path) -> Change:
    """Return an action: make the file ``path`` + ``.waits``, then wait until ``path`` exists."""
    return partial(_wait_for, path)


def _wait_for(path: Path) -> None:
    path.with_name(path.name + ".waits").touch()
    wait_until(path.exists, path.name)


def limits_files(n_bytes: int) -> Change:
    """Return an action: from now on no file can grow beyond ``n_bytes``."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def fills_disk(directory: Path) -> Change:
    """Fill the file system of a directory to the last byte."""
    return partial(_fill_disk, directory)


def _fill_disk(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def spawning_becomes_forking() -> None:
    """Return a change that makes ``start_processes`` fork, which is faster than spawning."""
    launcher.START_METHOD = "fork"


def slow_but(cases: Iterable[str], *kept: str) -> list[Any]:
    """Return the cases of a test for ``parametrize``; those that are not ``kept`` are slow."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def copied(run: Run, directory: Path) -> Run:
    """Copy the files of a run to another directory."""
    shutil.copytree(run.directory, directory, ignore=shutil.ignore_patterns("printed"))
    return Run(run.task, directory, run.desc)


def set_variables(variables: Mapping[str, str]) -> None:
    """Return a change that sets environment variables."""
    os.environ.update(variables)


def set_constant(module: str, name: str, value: object) -> None:
    """Return a change that sets a constant of a module."""
    setattr(importlib.import_module(module), name, value)
