"""Kill runs at random moments, resume them, and check that their results are the same bits.

A run on the demo is killed by SIGKILL at random moments and resumed until it ends. This is repeated
with new runs until there were as many kills as requested. The results of each run are compared bit
for bit with those of an undisturbed run. Then single faults are tried, and each prints one line.

    python scripts/stress.py --kills 50
    python scripts/stress.py --kills 50 --processes 2    # under torchrun, or one of its workers
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt1.runtime.errors import Gpt1Error, InputError, report_errors
from gpt1.runtime.files import atomic_write

END_WITHIN = 60.0  # seconds in which all processes of a run must be gone after one was killed
HANGS_AFTER = 600.0
MARK = "GPT1_STRESS_ATTEMPT"  # an environment variable that marks the processes of an attempt
# Runs the program with a gradient that is not a number in one update.
POISONED = """
import sys
from gpt1.commands import train
from gpt1.training import fine_tuning
original, number = fine_tuning.tower_gradients, int(sys.argv[1])
def poisoned(replica, *args, **kwargs):
    costs = original(replica, *args, **kwargs)
    global number
    number -= 1
    if number == 0:
        replica.model.we.grad.view(-1)[0] = float("nan")
    return costs
fine_tuning.tower_gradients = poisoned
sys.exit(train.main(sys.argv[2:]))
"""


class LostError(Exception):
    """A run lost results, or did something else than ``docs/reliability.md`` says."""


@dataclass(frozen=True)
class Task:
    """The training run that is disturbed.

    Attributes:
        flags: flags of ``gpt1.train``, without the directories of results.
        processes: number of processes of the run; torchrun starts more than one.
        directory: the directory of all files.
    """

    flags: list[str]
    processes: int
    directory: Path

    def command(self, words: Sequence[str], *, restarts: int = 0) -> list[str]:
        """Return the command line of a run.

        Args:
            words: the module or the file to run, and its arguments.
            restarts: how often torchrun restarts the processes.
        """
        if self.processes == 1:
            return [sys.executable, *words]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--monitor-interval=0.1"]
        launcher += [f"--nproc_per_node={self.processes}", f"--max-restarts={restarts}"]
        return [sys.executable, *launcher, *words]


@dataclass
class Run:
    """A run with directories of results that no other run uses, in one attempt or several.

    Attributes:
        repeated: for each resumed attempt, the number of updates that it made again.
        seconds: total time of all attempts.
        longest_end: the longest time, in seconds, from the end of an attempt's first process to the
            end of its last one.
    """

    task: Task
    name: str
    repeated: list[int] = field(default_factory=list)
    seconds: float = 0.0
    longest_end: float = 0.0

    @property
    def directory(self) -> Path:
        return self.task.directory / self.name

    @property
    def saved(self) -> Path:
        return self.directory / "save" / "rocstories"

    def flags(self, *words: str) -> list[str]:
        kinds = ("log", "save", "submission")
        places = [word for kind in kinds for word in (f"--{kind}_dir", str(self.directory / kind))]
        return [*self.task.flags, *places, *words]

    def start(
        self,
        *words: str,
        script: Sequence[str] = ("-m", "gpt1.train"),
        restarts: int = 0,
        prepare: Callable[[], None] | None = None,
    ) -> Attempt:
        """Start an attempt, which resumes the run if there is a checkpoint."""
        self.directory.mkdir(exist_ok=True)
        command = self.task.command([*script, *self.flags("--resume", *words)], restarts=restarts)
        return Attempt(self, command, prepare)

    def finish(self) -> None:
        """Resume the run and wait for its end.

        Raises:
            LostError: the run fails.
        """
        self.start().succeed()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of the run, oldest first."""
        return sorted(self.saved.glob("checkpoint-*.safetensors"))

    def n_updates(self) -> int:
        """Return the number of updates in the log."""
        try:
            return len((self.directory / "log/rocstories.updates.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def results(self) -> dict[str, Any]:
        """Return the content of all files that the run has written, by name, without times.

        Only the last checkpoint is included: which earlier one is kept depends on when the run was
        killed.
        """
        from gpt1.training.checkpoint import checkpoints, load  # imports torch

        found: dict[str, Any] = {}
        last = {checkpoints(directory)[-1] for directory in self.directory.glob("save/*")}
        for path in sorted(self.directory.rglob("*")):
            if not path.is_file() or path.name.endswith((".lock", ".printed")):
                continue
            name = str(path.relative_to(self.directory))
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                found[name] = [_without_time(row) for row in rows if "n_updates" in row]
            elif path.suffix == ".safetensors":
                if path not in last:
                    continue
                state = load(path)[0]
                tensors = {key: value.numpy().tobytes() for key, value in state.tensors.items()}
                found[name] = tensors, state.best_score, state.evaluated
            elif path.name.endswith(".run.json"):  # It has a run_id, which differs between runs.
                found[name] = self._run_of(path.with_name("ROCStories.tsv"))
            else:
                found[name] = path.read_bytes()
        return found

    def _run_of(self, submission: Path) -> str:
        """Return a line that names the run of a submission, according to its record and the log."""
        from gpt1.reports.analysis import identify_run
        from gpt1.results.log_lines import read_run_log

        try:
            log = read_run_log(self.directory / "log/rocstories.jsonl")
            return identify_run(submission, log)
        except InputError as error:
            return str(error)

    def compare(self, expected: dict[str, Any]) -> None:
        """Check that the results of the run are the expected ones.

        Raises:
            LostError: a file differs; the message names it.
        """
        own = self.results()
        odd = [name for name in {**own, **expected} if own.get(name) != expected.get(name)]
        if odd:
            raise LostError(f"{self.name}: {', '.join(odd)} differ from the undisturbed run's")


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "time"}


@dataclass(frozen=True)
class Done:
    """The exit status of an attempt, and what it printed."""

    status: int
    printed: str

    def expect(self, name: str, *said: str, failed: bool = False) -> None:
        """Check how the attempt ended.

        Args:
            name: the name of the run, for the message.
            said: texts that must be in what the program printed, or in its message if it failed.
            failed: whether it must have failed.

        Raises:
            LostError: it ended in another way; the message has the end of what it printed.
        """
        is_right = (self.status != 0) == failed
        printed = self.message() if is_right and failed else self.printed
        if not is_right or any(text not in printed for text in said):
            raise LostError(f"{name}: status {self.status}: {self.printed[-500:]}")

    def message(self) -> str:
        """Return the message of the program, without torchrun's report.

        Raises:
            LostError: the program printed several lines, or none, or a traceback.
        """
        lines = [line for line in self.printed.splitlines() if line.startswith("gpt1 train: ")]
        if len(lines) != 1 or "gpt1/commands/train.py" in self.printed:
            raise LostError(f"one message was expected: {self.printed[-2000:]}")
        return lines[0]


class Attempt:
    """The processes of a running attempt."""

    def __init__(
        self, run: Run, command: Sequence[str], prepare: Callable[[], None] | None
    ) -> None:
        self.run, self._begin, self._done_before = run, time.monotonic(), run.n_updates()
        self._path = run.directory / f"{len(list(run.directory.glob('*.printed')))}.printed"
        environment = {"OMP_NUM_THREADS": "1", **os.environ, MARK: str(self._path)}
        with open(self._path, "wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, preexec_fn=prepare
            )

    def lives_after(self, seconds: float) -> bool:
        """Wait so many seconds or until the attempt ends; return whether it still runs."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def wait(self) -> Done:
        """Wait for the end of all processes of the attempt.

        Raises:
            LostError: a process is left.
        """
        try:
            status = self.process.wait(HANGS_AFTER)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise LostError(f"{self.run.name}: hung for {HANGS_AFTER:g} s") from None
        begin = time.monotonic()
        while self.pids():
            if time.monotonic() - begin > END_WITHIN:
                self.kill_all()
                raise LostError(f"{self.run.name}: a process was left after {END_WITHIN:g} s")
            time.sleep(0.02)
        self.run.longest_end = max(self.run.longest_end, time.monotonic() - begin)
        self.run.seconds += time.monotonic() - self._begin
        printed = self._path.read_text(errors="replace")
        went_on = re.search(r"--resume: going on after update (\d+)", printed)
        if went_on or "--resume: no checkpoint" in printed:
            self.run.repeated.append(self._done_before - int(went_on[1] if went_on else 0))
        return Done(status, printed)

    def succeed(self) -> None:
        """Wait for the end of the attempt.

        Raises:
            LostError: the exit status is not 0, or a process is left.
        """
        self.wait().expect(self.run.name)

    def pids(self) -> list[int]:
        """Return the ids of the attempt's processes that are alive."""
        mark, found = f"{MARK}={self._path}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_own = mark in (path / "environ").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # The process has just ended, or belongs to another user.
                continue
            if is_own and state != "Z":
                found.append(int(path.name))
        return found

    def kill_one(self, rng: random.Random) -> str | None:
        """Kill a process of the attempt at random; describe it, or return None if all ended."""
        pids = sorted(self.pids())
        if not pids:
            return None
        pid = rng.choice(pids)
        _send(pid, signal.SIGKILL)
        if self.run.task.processes == 1:
            return "the process"
        return "torchrun" if pid == self.process.pid else "a worker"

    def kill_all(self) -> None:
        for pid in self.pids():
            _send(pid, signal.SIGKILL)


def _send(pid: int, request: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, request)


# ------------------------------------------------------------------------------- kills


@dataclass
class Kills:
    """The kills so far, and their consequences; see :class:`Run` for the figures.

    Attributes:
        n_runs: number of runs.
        victims: number of kills per kind of process.
        lost: messages of the runs that lost something.
    """

    n_runs: int = 0
    victims: Counter[str] = field(default_factory=Counter)
    repeated: list[int] = field(default_factory=list)
    seconds: float = 0.0
    longest_end: float = 0.0
    lost: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """The number of kills."""
        return self.victims.total()


def kill_at_random(
    task: Task, n_kills: int, expected: dict[str, Any], duration: float, rng: random.Random
) -> Kills:
    """Kill and resume runs until there were ``n_kills`` kills; then finish the last run.

    Args:
        task: the training run.
        n_kills: number of kills.
        expected: results of an undisturbed run.
        duration: seconds of an undisturbed run, within which each attempt is killed.
        rng: draws the moments and the processes to kill.
    """
    kills = Kills()
    with tqdm(total=n_kills, desc="kills", disable=not sys.stderr.isatty()) as bar:
        while kills.n < n_kills:
            kills.n_runs += 1
            run = Run(task, f"killed-{kills.n_runs}")
            try:
                for victim in _victims(run, n_kills - kills.n, duration, rng):
                    kills.victims[victim] += 1
                    bar.update()
                run.compare(expected)
            except LostError as error:
                kills.lost.append(str(error))
            kills.repeated += run.repeated
            kills.seconds += run.seconds
            kills.longest_end = max(kills.longest_end, run.longest_end)
    return kills


def _victims(run: Run, n_kills: int, duration: float, rng: random.Random) -> Iterator[str]:
    """Start and kill attempts of a run until it ends; yield what kind of process was killed."""
    while n_kills:
        attempt = run.start()
        if not attempt.lives_after(rng.uniform(0, duration)):
            return attempt.succeed()
        victim = attempt.kill_one(rng)
        attempt.wait()
        if victim is not None:
            n_kills -= 1
            yield victim
    run.finish()


# ------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Faults:
    """The single faults; each is a method that returns its outcome or raises LostError."""

    task: Task
    expected: dict[str, Any]
    duration: float
    n_updates: int
    rng: random.Random

    def truncated(self) -> str:
        """the newest checkpoint is cut short"""
        run = self._half_done("truncated")
        newest = run.checkpoints()[-1]
        size = newest.stat().st_size
        os.truncate(newest, self.rng.randrange(size))
        done = run.start().wait()
        done.expect(run.name, f"{newest}: ")
        # A damaged checkpoint is kept under this name, and not read.
        newest.with_name(newest.name + ".damaged").unlink(missing_ok=True)
        run.compare(self.expected)
        return "reported, the one before was used, the same bits"

    def filelimit(self) -> str:
        """no file may grow beyond half a checkpoint (RLIMIT_FSIZE)"""
        run = self._half_done("filelimit")
        kept = [path.name for path in run.checkpoints()]
        limit = run.checkpoints()[-1].stat().st_size // 2
        prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        done = run.start(prepare=prepare).wait()
        done.expect(run.name, "cannot be written: ", "File too large", failed=True)
        if [path.name for path in run.checkpoints()] != kept:
            raise LostError("filelimit: a checkpoint is gone")
        return self._finished(run, f"status {done.status}, one message, the checkpoints stayed")

    def nan(self) -> str:
        """a gradient is NaN in one update"""
        run = Run(self.task, "nan")
        run.directory.mkdir()
        (run.directory / "poisoned.printed").write_text(POISONED)
        update = self.rng.randrange(1, self.n_updates + 1)
        script = [str(run.directory / "poisoned.printed"), str(update)]
        done = run.start(script=script).wait()
        done.expect(run.name, f"error: update {update}: gradient norm nan", failed=True)
        if run.n_updates() != update - 1:
            raise LostError(f"nan: update {run.n_updates()} is in the log")
        return self._finished(run, f"status {done.status}, stopped before update {update}")

    def sigterm(self) -> str:
        """SIGTERM at a random moment"""
        return self._asked_to_end(signal.SIGTERM)

    def sigint(self) -> str:
        """SIGINT at a random moment"""
        return self._asked_to_end(signal.SIGINT)

    def writer(self) -> str:
        """a second run of the same name"""
        run = Run(self.task, "writer")
        first = run.start()
        self._wait_for_updates(run, first, 1)
        second = run.start().wait()
        second.expect(run.name, "another run of this name is writing", failed=True)
        first.wait()
        run.compare(self.expected)
        return f"refused with status {second.status}, the first ended with the same bits"

    def worker(self) -> str:
        """a process of several is killed under torchrun --max-restarts=1"""
        if self.task.processes == 1:
            return "not tried: needs --processes 2"
        run = Run(self.task, "worker")
        attempt = run.start(restarts=1)
        self._wait_for_updates(run, attempt, self.rng.randrange(1, self.n_updates // 2 + 2))
        workers = sorted(set(attempt.pids()) - {attempt.process.pid})
        _send(self.rng.choice(workers), signal.SIGKILL)
        done = attempt.wait()
        done.expect(run.name, "--resume: ")
        run.compare(self.expected)
        return "went on by itself to the same bits"

    def _asked_to_end(self, request: signal.Signals) -> str:
        run = Run(self.task, request.name.lower())
        attempt = run.start()
        self._wait_for_updates(run, attempt, self.rng.randrange(1, self.n_updates // 2 + 2))
        attempt.process.send_signal(request)
        done = attempt.wait()
        done.expect(run.name, f"stopped by {request.name}: after update", failed=True)
        before = sum(run.repeated)
        outcome = self._finished(run, f"status {done.status}, state saved")
        if sum(run.repeated) != before:
            raise LostError(f"{request.name}: {run.repeated[-1]} updates were done again")
        return f"{outcome}, no update done twice"

    def _half_done(self, name: str) -> Run:
        """Return a run that was killed when it had at least two checkpoints."""
        run = Run(self.task, name)
        attempt = run.start()
        while len(run.checkpoints()) < 2:
            if not attempt.lives_after(0.01):
                raise LostError(f"{name}: ended too early: {attempt.wait().printed[-500:]}")
        attempt.kill_all()
        attempt.wait()
        return run

    def _wait_for_updates(self, run: Run, attempt: Attempt, n_updates: int) -> None:
        while run.n_updates() < n_updates:
            if not attempt.lives_after(0.01):
                raise LostError(f"{run.name}: ended too early: {attempt.wait().printed[-500:]}")

    def _finished(self, run: Run, outcome: str) -> str:
        run.finish()
        run.compare(self.expected)
        return f"{outcome}, then the same bits"


FAULTS = ("truncated", "filelimit", "nan", "sigterm", "sigint", "writer", "worker")


# ------------------------------------------------------------------------------- the program


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/stress.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kills", type=int, default=50, metavar="N", help="kills in all, at least [50]")
    add("--processes", type=int, default=1, metavar="N", help="processes of a run [1]")
    add(
        "--faults",
        default="all",
        metavar="NAMES",
        help=f"all, none, or some of {','.join(FAULTS)} [all]",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the random moments [0]")
    add("--data_dir", default="data/demo", metavar="DIR", help="stories [data/demo]")
    add("--model_dir", default="model/demo", metavar="DIR", help="model [model/demo]")
    add("--n_iter", type=int, default=1, metavar="N", help="epochs of a run [1]")
    add("--save_every", type=int, default=5, metavar="N", help="updates between checkpoints [5]")
    add("--json", metavar="FILE", help="write what was found here, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 1 if a result was lost."""
    return report_errors("scripts/stress.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for name, least in (("kills", 0), ("processes", 1), ("n_iter", 1), ("save_every", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: must be at least {least}")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell makes a command with "&" ignore SIGINT. The runs would inherit that, but one of
        # the faults sends them SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    names = {"all": FAULTS, "none": ()}.get(args.faults, tuple(args.faults.split(",")))
    if unknown := set(names) - set(FAULTS):
        parser.error(f"--faults {min(unknown)}: must be all, none, or of {','.join(FAULTS)}")
    flags = ["--data_dir", args.data_dir, "--model_dir", args.model_dir, "--device", "cpu"]
    flags += ["--n_iter", str(args.n_iter), "--save_every", str(args.save_every), "--submit"]
    flags += ["--probs", "--lr", "2e-3", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="gpt1-stress-") as place:
        task = Task(flags, args.processes, Path(place))
        found = _try_everything(task, args.kills, names, random.Random(args.seed))
    if args.json:
        with atomic_write(args.json, "w") as file:
            json.dump({"command": vars(args), **found}, file, indent=1)
    return 1 if found["lost"] else 0


def _try_everything(
    task: Task, n_kills: int, names: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    """Make all kills and faults, print their outcomes, and return the figures."""
    whole = Run(task, "undisturbed")
    try:
        whole.finish()
    except LostError as error:
        raise Gpt1Error(f"the task itself fails: {error}") from error
    expected, n_updates = whole.results(), whole.n_updates()
    print(
        f"undisturbed: {n_updates} updates in {whole.seconds:.1f} s, "
        f"{task.processes} process{'es' if task.processes > 1 else ''}",
        flush=True,
    )
    kills = kill_at_random(task, n_kills, expected, whole.seconds, rng)
    _print_kills(kills, whole.seconds)
    lost = len(kills.lost)
    outcomes = {}
    faults = Faults(task, expected, whole.seconds, n_updates, rng)
    for name in names:
        fault = getattr(faults, name)
        try:
            outcomes[name] = fault()
        except LostError as error:
            outcomes[name] = f"LOST: {error}"
            lost += 1
        print(f"{fault.__doc__}: {outcomes[name]}", flush=True)
    print(f"results lost: {lost}")
    return {
        "updates": n_updates,
        "seconds": whole.seconds,
        "kills": kills.n,
        "runs": kills.n_runs,
        "victims": dict(kills.victims),
        "repeated": kills.repeated,
        "kills_seconds": kills.seconds,
        "longest_end": kills.longest_end,
        "faults": outcomes,
        "lost": lost,
    }


def _print_kills(kills: Kills, undisturbed: float) -> None:
    if not kills.n:
        return
    victims = ", ".join(f"{n} of {name}" for name, n in sorted(kills.victims.items()))
    more = kills.seconds - kills.n_runs * undisturbed
    print(f"{kills.n} kills at random moments in {kills.n_runs} runs: {victims}")
    print(
        f"  updates done again: {sum(kills.repeated)}, at most {max(kills.repeated, default=0)} "
        f"after a kill; {kills.seconds:.0f} s in all, {more:.0f} s more than undisturbed"
    )
    print(f"  the last process was gone {kills.longest_end:.1f} s after the first")
    equal = kills.n_runs - len(kills.lost)
    print(f"  {equal} of {kills.n_runs} runs ended bit for bit as the undisturbed one", flush=True)
    for text in kills.lost:
        print(f"  LOST: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
