"""SIGTERM and SIGINT at any moment: the state is saved, and the resumed run has the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import tiny
from processes import (
    SIGINT,
    SIGKILL,
    SIGTERM,
    Change,
    Run,
    assert_same,
    before,
    continuation,
    only_rank,
    sends_itself,
    slow_but,
    update,
)
from waiting import DEADLINE, wait_until

from gpt1.runtime.errors import Stopped, report_errors
from gpt1.runtime.stopping import StopRequests

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="its signals and /proc are used"),
    pytest.mark.usefixtures("fork_server"),
]

ROOT = Path(__file__).parents[2]
CHOICES = "gpt1.model.transformer:DoubleHeadsModel.clf_logits"


# ------------------------------------------------------------------------------- any moment

BEFORE = "before training began"
SAVED = "after update {} of 12, all saved"
TRAINED = "training is over and saved, the submission is not written"
# Where the signal comes, what the message says, and the newest checkpoint then.
MOMENTS: dict[str, tuple[partial[Change], str, int | None]] = {
    "reading stories": (partial(before, "gpt1.datasets.story_cloze:rocstories"), BEFORE, None),
    "encoding": (
        partial(before, "gpt1.text_utils.encoder:TextEncoder.encode", call=2),
        BEFORE,
        None,
    ),
    "first parameters": (
        partial(before, "gpt1.runtime.files:os.replace", matching="best_params.jl"),
        BEFORE,
        None,
    ),
    "first update": (partial(update, 1), SAVED.format(1), 1),
    "in an epoch": (partial(update, 6), SAVED.format(6), 6),
    "last update of an epoch": (partial(update, 8), SAVED.format(8), 8),
    "evaluation": (
        partial(before, "gpt1.training.fine_tuning:predict_logits", call=3),
        SAVED.format(8),
        8,
    ),
    "in the evaluation": (partial(before, CHOICES, call=4), SAVED.format(8), 8),
    "best parameters": (
        partial(before, "gpt1.runtime.files:os.replace", matching="best_params.jl", call=2),
        SAVED.format(5),
        5,
    ),
    "checkpoint": (
        partial(before, "gpt1.runtime.files:os.replace", matching="checkpoint-00000006"),
        SAVED.format(7),
        7,
    ),
    "last checkpoint": (
        partial(before, "gpt1.runtime.files:os.replace", matching="checkpoint-00000012"),
        SAVED.format(12),
        12,
    ),
    "predicting the test set": (
        partial(before, "gpt1.training.fine_tuning:predict_logits", call=7),
        TRAINED,
        12,
    ),
    "submission": (
        partial(before, "gpt1.runtime.files:os.replace", matching="ROCStories.tsv"),
        TRAINED,
        12,
    ),
}


@pytest.mark.parametrize("moment", slow_but(MOMENTS, "in an epoch", "evaluation", "submission"))
def test_a_stopped_run_says_how_to_go_on_and_ends_with_the_same_bits(
    whole: dict[str, Any], run: Run, moment: str
) -> None:
    change, progress, newest = MOMENTS[moment]
    number = SIGINT if len(moment) % 2 else SIGTERM  # each at every second moment
    done = run.do(changes=[change(sends_itself(number))])
    assert done.status == 128 + number, done.stderr
    assert done.message().startswith(f"stopped by {number.name}: {progress}; to go on: ")
    assert run.checkpoints()[-1:] == ([] if newest is None else [newest])
    assert not run.leftovers()
    command = continuation(done)
    assert command == run.flags("--resume")
    assert run.do("--resume").status == 0
    assert_same(run, whole)


# Python imports this at its start. The signal comes when a module is looked for.
SITECUSTOMIZE = """
import os, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(("number", "module"), [(SIGTERM, "torch._C"), (SIGINT, "numpy.linalg")])
def test_a_real_command_is_stopped_while_it_imports(
    task: tiny.Tiny, tmp_path: Path, number: signal.Signals, module: str
) -> None:
    """Start the program as a shell does, without fork."""
    run = Run(task, tmp_path / "run")
    code = SITECUSTOMIZE.format(module=module, number=int(number))
    (tmp_path / "sitecustomize.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "gpt1.train", *run.flags()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 128 + number, done.stderr
    noted, message = done.stderr.strip().splitlines()
    assert noted.startswith(f"{number.name}: finishing the work under way, then saving and ending;")
    assert message.startswith(f"gpt1 train: stopped by {number.name}: {BEFORE}; to go on: ")
    assert not run.directory.exists()


def test_an_analysis_that_is_stopped_has_all_results_before_it(
    whole: dict[str, Any], run: Run
) -> None:
    change = before("gpt1.reports.analysis:analyse", sends_itself(SIGTERM))
    done = run.do("--analysis", changes=[change])
    assert done.status == 128 + SIGTERM
    assert "stopped by SIGTERM: all results are written" in done.message()
    assert_same(run, whole)


@pytest.mark.slow
def test_a_resumed_run_that_is_stopped_before_it_goes_on_loses_nothing(
    whole: dict[str, Any], run: Run
) -> None:
    run.do(changes=[update(6, sends_itself(SIGTERM))])
    kept = run.checkpoints()
    for target in (
        "gpt1.datasets.story_cloze:rocstories",
        "gpt1.training.checkpoint:load",
        "gpt1.training.logs:_lines_until",
    ):
        done = run.do("--resume", changes=[before(target, sends_itself(SIGTERM))])
        assert done.status == 128 + SIGTERM
        assert f"stopped by SIGTERM: {BEFORE}" in done.message()
        assert continuation(done).count("--resume") == 1
        assert run.checkpoints() == kept
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def test_a_run_without_epochs_can_be_stopped_too(run: Run) -> None:
    change = before("gpt1.training.loop:Trainer._make_updates", sends_itself(SIGTERM))
    done = run.do("--n_iter", "0", changes=[change])
    assert done.status == 128 + SIGTERM
    assert "stopped by SIGTERM: after update 0 of 0, all saved" in done.message()
    resumed = run.do("--n_iter", "0", "--resume")
    assert resumed.status == 0
    assert "--resume: going on after update 0 of 0" in resumed.stderr
    assert run.submission.exists()
    assert run.best.exists()


# ------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize("moment", ["last update of an epoch", "in the evaluation"])
def test_an_evaluation_that_was_due_is_done_once(run: Run, moment: str) -> None:
    """The checkpoint is from the end of an epoch, without the evaluation of that epoch."""
    change, _, _ = MOMENTS[moment]
    stopped = run.do(changes=[change(sends_itself(SIGTERM))])
    assert [line.split()[:2] for line in stopped.stdout.splitlines()] == [["1", "4"]]
    assert [row["n_updates"] for row in processes.lines(run.log)[1:]] == [4]
    resumed = run.do("--resume")
    assert [line.split()[:2] for line in resumed.stdout.splitlines()] == [["2", "8"], ["3", "12"]]
    assert [row["n_updates"] for row in processes.lines(run.log)[1:]] == [4, 8, 12]


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_twice_is_done_once(whole: dict[str, Any], run: Run) -> None:
    for words in ([], ["--resume"], ["--resume"]):
        call = 1 if words else 3
        change = before(
            "gpt1.training.fine_tuning:predict_logits", sends_itself(SIGTERM), call=call
        )
        assert run.do(*words, changes=[change]).status == 128 + SIGTERM
        assert run.checkpoints()[-1] == 8
    assert run.do("--resume").status == 0
    assert_same(run, whole)


@pytest.mark.slow
def test_an_evaluation_killed_after_its_line_is_logged_once(
    whole: dict[str, Any], run: Run
) -> None:
    """The log already has the line of the evaluation, but the checkpoint does not count it."""
    run.do(changes=[update(8, sends_itself(SIGTERM))])
    change = before("gpt1.training.loop:Trainer._save", sends_itself(SIGKILL))
    assert run.do("--resume", changes=[change]).status == -SIGKILL
    assert [row["n_updates"] for row in processes.lines(run.log)[1:]] == [4, 8]
    assert run.do("--resume").status == 0
    assert_same(run, whole)


# ------------------------------------------------------------------------------- twice


@pytest.mark.parametrize("numbers", [(SIGTERM, SIGTERM), (SIGTERM, SIGINT)])
def test_a_second_signal_ends_at_once(
    whole: dict[str, Any], run: Run, numbers: tuple[signal.Signals, ...]
) -> None:
    done = run.do(changes=[update(6, sends_itself(*numbers, pause=1.2))])
    assert done.status == -numbers[1]
    assert f"{numbers[0].name}: finishing the update under way (about " in done.stderr
    assert (
        "a second one ends at once and loses all updates since the last checkpoint" in done.stderr
    )
    assert done.messages() == []
    assert run.checkpoints() == [3, 4]
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def test_a_signal_that_comes_twice_at_once_is_one_request(run: Run) -> None:
    """``timeout`` signals its child and then the child's process group, so two signals arrive."""
    longer = partial(processes.set_constant, "gpt1.runtime.stopping", "ECHO", DEADLINE)
    done = run.do(changes=[longer, update(6, sends_itself(SIGTERM, SIGTERM, SIGINT))])
    assert done.status == 128 + SIGTERM
    assert SAVED.format(6) in done.message()
    assert run.checkpoints()[-1] == 6


def test_what_is_ignored_stays_ignored(run: Run) -> None:
    """A shell starts background programs so that they ignore Ctrl-C."""
    done = run.do(changes=[ignores_sigint, update(6, sends_itself(SIGINT))])
    assert (done.status, done.stderr) == (0, "")


def ignores_sigint() -> None:
    signal.signal(SIGINT, signal.SIG_IGN)


def test_a_command_in_the_background_ignores_sigint_and_is_saved_by_sigterm(
    task: tiny.Tiny, tmp_path: Path
) -> None:
    """Start the program as a shell without job control does, without fork."""
    run = Run(task, tmp_path / "run")
    words = run.flags("--n_iter", str(10**6))  # it does not end by itself while we look at it
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "gpt1.train"]
    started = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def n_updates() -> int:
        assert started.poll() is None, started.communicate()
        return run.updates.read_bytes().count(b"\n") if run.updates.exists() else 0

    try:
        wait_until(lambda: n_updates() > 0, "the first update")
        started.send_signal(SIGINT)
        later = n_updates() + 20  # a run that listened would end within one update
        wait_until(lambda: n_updates() >= later, "updates after SIGINT")
        started.send_signal(SIGTERM)
        _, stderr = started.communicate(timeout=DEADLINE)
    finally:
        started.kill()
        started.wait()
    n = processes.lines(run.updates)[-1]["n_updates"]
    assert started.returncode == 128 + SIGTERM, stderr
    assert "SIGINT" not in stderr
    assert f"stopped by SIGTERM: after update {n} of {4 * 10**6}, all saved" in stderr
    assert run.checkpoints()[-1] == n


# ------------------------------------------------------------------------------- two processes


PAIR_MOMENTS: dict[str, tuple[partial[Change], str, int | None]] = {
    "reading stories": (partial(before, "gpt1.datasets.story_cloze:rocstories"), BEFORE, None),
    "in an epoch": (partial(update, 6), SAVED.format(6), 6),
    "last update of an epoch": (partial(update, 8), SAVED.format(8), 8),
    "evaluation": (
        partial(before, "gpt1.training.fine_tuning:predict_logits", call=3),
        SAVED.format(9),
        9,
    ),
    "last evaluation": (
        partial(before, "gpt1.training.fine_tuning:predict_logits", call=6),
        SAVED.format(12),
        12,
    ),
    "predicting the test set": (
        partial(before, "gpt1.training.fine_tuning:predict_logits", call=7),
        TRAINED,
        12,
    ),
}


@pytest.mark.parametrize("moment", slow_but(PAIR_MOMENTS, "in an epoch", "evaluation"))
def test_both_processes_stop_together(whole_pair: dict[str, Any], run: Run, moment: str) -> None:
    change, progress, newest = PAIR_MOMENTS[moment]
    # With a cache one process reads first, and the signal would come to it alone.
    both_read = ["--cache_dir", "none"] if moment == "reading stories" else []
    first, second = run.do_pair(*both_read, changes=[change(sends_itself(SIGTERM))])
    assert (first.status, second.status) == (128 + SIGTERM, 128 + SIGTERM)
    assert first.message().startswith(f"stopped by SIGTERM: {progress}; to go on: ")
    assert second.messages() == []
    assert run.checkpoints()[-1:] == ([] if newest is None else [newest])
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_to_one_process_stops_both(
    whole_pair: dict[str, Any], run: Run, rank: str
) -> None:
    first, second = run.do_pair(changes=[update(6, only_rank(rank, sends_itself(SIGTERM)))])
    assert (first.status, second.status) == (128 + SIGTERM, 128 + SIGTERM)
    assert SAVED.format(6) in first.message()
    assert [done.status for done in run.do_pair("--resume")] == [0, 0]
    assert_same(run, whole_pair)


# ------------------------------------------------------------------------------- the handler


def test_a_request_counts_at_once_except_where_it_is_held() -> None:
    with StopRequests() as stop:
        stop.where = "between two things"
        with stop.held():
            os.kill(os.getpid(), SIGTERM)
            assert stop.signal == SIGTERM
            with pytest.raises(Stopped, match="between two things"), stop.obeyed():
                pytest.fail("the request came before")
            with pytest.raises(Stopped):
                stop.check()
    with StopRequests(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), SIGINT)
    assert caught.value.exit_status == 130


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (SIGTERM, SIGINT)]
    with StopRequests():
        assert [signal.getsignal(number) for number in (SIGTERM, SIGINT)] != before
    assert [signal.getsignal(number) for number in (SIGTERM, SIGINT)] == before


def test_a_handler_that_interrupts_a_write_to_stderr_writes_too() -> None:
    """Python refuses a print inside a print, with a traceback."""
    code = """
import io, os, signal, sys
from gpt1.runtime.stopping import StopRequests
class Interrupted(io.RawIOBase):
    def writable(self):
        return True
    def write(self, data):
        os.kill(os.getpid(), signal.SIGTERM)
        return os.write(2, data)
sys.stderr = io.TextIOWrapper(io.BufferedWriter(Interrupted()), line_buffering=True)
with StopRequests() as stop, stop.held():
    print("bar", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    noted, bar = done.stderr.splitlines()[1:]
    assert noted.startswith("SIGTERM: finishing the work under way, then saving and ending; ")
    assert bar == "bar"


def test_nothing_catches_a_stop_but_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        try:
            raise Stopped(signal.SIGTERM, "here; to go on: there")
        except Exception:
            return 0

    assert report_errors("gpt1 train", body) == 143
    assert capsys.readouterr().err == "gpt1 train: stopped by SIGTERM: here; to go on: there\n"


def test_only_the_main_thread_listens() -> None:
    import threading

    found: list[bool] = []

    def listen() -> None:
        with StopRequests() as stop:
            found.append(stop.signal is None)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(("world", "printed"), [("1", "end of the program\nat exit\n"),
                                                ("2", "end of the program\n")])  # fmt: skip
def test_a_rank_ends_without_pythons_shutdown(world: str, printed: str) -> None:
    """During the shutdown, a thread of gloo that needs Python's lock would abort the process."""
    code = """
import atexit
from gpt1.runtime.stopping import end_process
atexit.register(print, "at exit")
print("end of the program")
end_process(3)
"""
    environment = os.environ | {"WORLD_SIZE": world}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, printed, "")
