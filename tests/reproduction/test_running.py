"""The runs of a reproduction: made once, by any number of processes, and resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
import tiny
import torch
from processes import SIGINT, SIGKILL, SIGTERM, Change, Done, Running, sends_itself, update
from reproduction_runs import outcome, plan_of
from waiting import wait_until

import gpt1
from gpt1.commands import reproduce
from gpt1.datasets.story_cloze import TEST_CSV, read_cloze
from gpt1.reports.statistics import wilson_interval
from gpt1.reproduction import running
from gpt1.reproduction.jobs import start_jobs
from gpt1.reproduction.outcomes import Outcome, Place, shown_left, time_left
from gpt1.reproduction.plan import PlannedRun, make_plan
from gpt1.reproduction.running import Functions, Work, make_runs
from gpt1.results.submissions import read_submission
from gpt1.runtime import launcher
from gpt1.runtime.errors import Gpt1Error, InputError, Stopped
from gpt1.runtime.locks import RunLock
from gpt1.settings.reproduction import REPRODUCE, ReproductionSettings

FLAGS = ["--device", "cpu", "--n_gpu", "2", "--n_batch", "4", "--lr", "1e-2", "--n_iter", "2"]
FLAGS += ["--save_every", "3"]  # 4 updates per epoch, 8 in all: checkpoints 3 4 6 8


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(Path("results"))


def flags_of(task: tiny.Tiny, *words: str) -> list[str]:
    return [*task.flags, *FLAGS, "--out", "results", *words]


def plan(task: tiny.Tiny, *words: str) -> list[PlannedRun]:
    """Return the runs that a command line plans."""
    values = REPRODUCE.parse(flags_of(task, *words))
    return list(make_plan(ReproductionSettings.of(values)).runs)


def done(name: str, task: tiny.Tiny, *words: str) -> Outcome:
    """Return the result of the run whose name begins with ``name``."""
    (run,) = (run for run in plan(task, *words) if run.name.startswith(name))
    return next(each for each in Place(Path("results")).outcomes() if each.name == run.name)


def test_runs_are_made_once_and_reported(
    task: tiny.Tiny, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are those of the submissions; a result that is missing is made again."""
    words = ["--what", "full,no_pretraining", "--seeds", "1"]
    assert reproduce.main(flags_of(task, *words)) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 runs are left\n" in err
    first, second = plan(task, *words)
    assert f"{second.name} begins; 1 of 2 runs is left, about " in err
    labels = np.array(read_cloze(task.data_dir / TEST_CSV).labels)
    own = read_submission(f"results/submission/{first.name}/ROCStories.tsv")
    n_right, n = int((np.array(own) == labels).sum()), len(labels)
    made = done("rocstories-full", task, *words)
    assert [each.split for each in made.scores] == ["ROCStories", "ROCStories.dev"]
    assert made.scores[0].score == pytest.approx(100 * n_right / n)
    ends = [100 * end for end in wilson_interval(n_right, n)]
    assert [made.scores[0].low, made.scores[0].high] == pytest.approx(ends)
    assert made.scores[0].n == n
    assert (made.seed, made.resumed, made.facts["n_layer"]) == (1, False, tiny.N_LAYER)
    assert Path("results/results.md") in map(Path, out.split())
    assert f"| {100 * n_right / n:.1f} |" in Path("results/results.md").read_text()
    assert not list(Path("results/save").iterdir()), "best parameters are kept with --keep_models"

    stamp = place.result(second.name).stat().st_mtime_ns
    before = json.loads(place.result(first.name).read_text())
    place.result(first.name).unlink()
    assert reproduce.main(flags_of(task, *words, "--keep_models")) == 0
    err = capsys.readouterr().err
    assert f"{second.name} begins" not in err
    assert place.result(second.name).stat().st_mtime_ns == stamp
    after = json.loads(place.result(first.name).read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    model = gpt1.load_pretrained(f"results/save/{first.name}")
    assert model.module.config.n_layer == tiny.N_LAYER


# ------------------------------------------------------------------- single runs, without training


def made(run: PlannedRun, work: Work, start: float) -> Outcome:
    """Stand in for fine-tuning: every run has the same score."""
    return outcome("rocstories", run.what, run.seed, 50.0, name=run.name)


@pytest.fixture
def work(place: Place, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Work without training; what it says is in ``said``."""
    monkeypatch.setattr(running, "_fine_tune", made)
    functions = Functions(fine_tune=gpt1.fine_tune, zeroshot=gpt1.fine_tune)  # type: ignore[arg-type]
    said: list[str] = []
    return Work(place=place, functions=functions, say=said.append, finished=lambda: None)


def test_a_claimed_run_is_left_to_the_other_process(task: tiny.Tiny, work: Work) -> None:
    runs = plan(task, "--what", "full", "--seeds", "3")
    work.place.runs.mkdir(parents=True)
    with RunLock() as lock:
        lock.take([work.place.lock(runs[1].name)], "other")
        assert make_runs(runs, work) == [runs[1]]
        assert [work.place.is_done(run) for run in runs] == [True, False, True]
    assert make_runs(runs, work) == []
    assert work.place.is_done(runs[1])


def test_a_run_whose_process_died_is_made_at_the_end(
    task: tiny.Tiny, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(task, "--what", "full", "--seeds", "3")
    work.place.runs.mkdir(parents=True)
    lock, order = RunLock(), []

    def dies(run: PlannedRun, of: Work, start: float) -> Outcome:
        order.append(run.seed)
        lock.close()
        return made(run, of, start)

    monkeypatch.setattr(running, "_fine_tune", dies)
    with lock:
        lock.take([work.place.lock(runs[0].name)], "other")
        assert make_runs(runs, work) == []
    assert order == [2, 3, 1]


def test_a_run_that_fails_does_not_end_the_others(
    task: tiny.Tiny, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(task, "--what", "full", "--seeds", "3")

    def fails(run: PlannedRun, of: Work, start: float) -> Outcome:
        if run.seed == 2:
            raise InputError("train.tsv, line 7: wrong")
        return made(run, of, start)

    monkeypatch.setattr(running, "_fine_tune", fails)
    with pytest.raises(Gpt1Error, match=f"^{runs[1].name}: train.tsv, line 7: wrong$"):
        make_runs(runs, work)
    assert [work.place.is_done(run) for run in runs] == [True, False, True]


def test_too_little_memory_ends_one_run_alone(
    task: tiny.Tiny, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(task, "--what", "full", "--seeds", "2")

    def fails(run: PlannedRun, of: Work, start: float) -> Outcome:
        if run.seed == 1:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return made(run, of, start)

    monkeypatch.setattr(running, "_fine_tune", fails)
    with pytest.raises(Gpt1Error, match=f"^{runs[0].name}: too little memory .* --recompute or"):
        make_runs(runs, work)
    assert [work.place.is_done(run) for run in runs] == [False, True]


def test_a_process_without_a_run_of_its_own_ends_well(
    task: tiny.Tiny, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process makes the only run, and none is finished."""
    words = ["--what", "full", "--seeds", "1"]
    (run,) = plan(task, *words)
    place.runs.mkdir(parents=True)
    with RunLock() as lock:
        lock.take([place.lock(run.name)], "other")
        assert reproduce.main(flags_of(task, *words)) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "gpt1 reproduce: 1 of 1 run is left"
    assert err.splitlines()[-1] == "gpt1 reproduce: other processes are still making 1 run"


def test_a_killed_job_is_a_failure_with_a_message(
    task: tiny.Tiny, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "START_METHOD", "fork")
    with pytest.raises(Gpt1Error, match="one of the 2 processes was ended by SIGKILL") as error:
        start_jobs(_dies, [["--jobs"], ["dies"]])
    assert error.value.exit_status == 1


def test_jobs_share_the_threads(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "START_METHOD", "fork")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", _writes_number)
    assert start_jobs(_ends_well, [["a"], ["b"], ["c"]]) == 0
    assert Path("threads").read_text() == "222"


def test_a_signal_while_a_job_starts_is_passed_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the process was forked and before it is known as a child."""
    context = multiprocessing.get_context("fork")
    popen = context.Process._Popen

    def interrupted(process: Any) -> Any:
        made = popen(process)
        wait_until(Path("waits").exists, "the job")
        signal.raise_signal(signal.SIGTERM)
        return made

    monkeypatch.setattr(context.Process, "_Popen", staticmethod(interrupted))
    monkeypatch.setattr(launcher, "START_METHOD", "fork")
    with pytest.raises(Stopped):
        start_jobs(_waits, [["one"]])
    assert not Path("lived").exists()


def _dies(words: Sequence[str]) -> int:
    if words == ["dies"]:
        os.kill(os.getpid(), SIGKILL)
    return 0


def _ends_well(words: Sequence[str]) -> int:
    return 0


def _waits(words: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path("waits").touch()
    time.sleep(5)
    Path("lived").touch()
    return 0


def _writes_number(number: int) -> None:
    with open("threads", "a") as file:
        file.write(str(number))


def test_the_time_that_is_left_is_estimated_from_similar_runs(
    task: tiny.Tiny, place: Place
) -> None:
    """Of the same experiment if there are any, and of runs that were not interrupted."""
    runs = plan(task, "--what", "full,no_lm", "--seeds", "3")
    named = {(run.what, run.seed): run.name for run in runs}
    assert time_left(runs, []) == (0.0, 6)

    def finished(what: str, seed: int, seconds: float, **fields: Any) -> Outcome:
        name = named[what, seed]
        return outcome("rocstories", what, seed, 50.0, name=name, seconds=seconds, **fields)

    found = [finished("full", 1, 100.0), finished("full", 2, 2.0, resumed=True)]
    assert time_left(runs, found) == (4 * 100.0, 0)
    found.append(finished("no_lm", 1, 40.0))
    assert time_left(runs, found) == (100.0 + 2 * 40.0, 0)
    for each in found:
        place.write(each)
    assert shown_left(runs, place) == "3 of 6 runs are left, about 3 min one after another"


def test_zeroshot_scores(place: Place, task: tiny.Tiny) -> None:
    """Those of the test split come first, and a split without labels has none."""
    for number in (3, 12):
        shutil.copytree(task.model_dir, f"save/books/model-{number:08d}")
    runs = plan_of(
        data_dir=str(task.data_dir), checkpoints="save/books", what="zeroshot", tasks="rocstories"
    ).runs
    calls: list[dict[str, Any]] = []
    zeros, labels = np.zeros(24, int), np.array([1, 1, 1, *[0] * 18, *[1] * 3])

    def zeroshot(dataset: str, **flags: Any) -> Any:
        calls.append({"dataset": dataset, **flags})
        splits = {  # The validation split comes first here.
            "ROCStories.dev": SimpleNamespace(predictions=zeros[:8], labels=labels[:8]),
            "ROCStories": SimpleNamespace(predictions=zeros, labels=labels),
            "hidden": SimpleNamespace(predictions=zeros, labels=None),
        }
        return SimpleNamespace(splits=splits)

    work = Work(
        place=place,
        functions=Functions(fine_tune=gpt1.fine_tune, zeroshot=zeroshot),
        say=lambda text: None,
        finished=lambda: None,
        verbose=True,
    )
    assert make_runs(runs, work) == []
    assert [call["verbose"] for call in calls] == [True, True]
    assert [call["model_dir"] for call in calls] == [
        "save/books/model-00000003",
        "save/books/model-00000012",
    ]
    first = place.outcomes()[0]
    found = [(each.split, each.score, each.n) for each in first.scores]
    assert found == [("ROCStories", 75.0, 24), ("ROCStories.dev", 62.5, 8)]
    ends = [100 * end for end in wilson_interval(18, 24)]
    assert [first.scores[0].low, first.scores[0].high] == pytest.approx(ends)
    assert (first.n_updates, first.what) == (3, "zeroshot")
    assert first.series == runs[0].series


# ------------------------------------------------------------------------------- real processes


def start(task: tiny.Tiny, words: Sequence[str], changes: Sequence[Change] = ()) -> Running:
    body = partial(in_directory, Path.cwd(), partial(reproduce.main, flags_of(task, *words)))
    return Running(body, changes, Path("printed").absolute())


def in_directory(directory: Path, body: Callable[[], int]) -> int:
    os.chdir(directory)
    return body()


def ended(running: Running) -> Done:
    done = running.wait()
    return Done(done.status, done.stdout, done.stderr, "gpt1 reproduce")


WORDS = ("--what", "full", "--seeds", "2")


def scores(place: Place) -> dict[str, Any]:
    return {
        each.name: (each.scores, each.train_score, each.best_epoch) for each in place.outcomes()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_a_killed_reproduction_goes_on_with_the_same_numbers(
    task: tiny.Tiny, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed in the second update after a checkpoint of the second run."""
    assert ended(start(task, WORDS)).status == 0
    expected = scores(place)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    assert ended(start(task, WORDS, [update(8 + 5, sends_itself(SIGKILL))])).status == -SIGKILL
    first, second = plan(task, *WORDS)
    assert [place.is_done(run) for run in (first, second)] == [True, False]
    done = ended(start(task, WORDS))
    assert done.status == 0
    assert f"{first.name} begins" not in done.stderr
    assert scores(place) == expected
    assert [each.resumed for each in place.outcomes()] == [False, True]


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_stopped_reproduction_names_the_command_that_continues_it(
    task: tiny.Tiny, place: Place, number: int
) -> None:
    done = ended(start(task, WORDS, [update(5, sends_itself(number))]))
    assert done.status == 128 + number
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"gpt1 reproduce: stopped by {number.name}: ")
    command = message.partition("to go on: ")[2].split()
    assert command == ["python", "-m", "gpt1", "reproduce", *flags_of(task, *WORDS)]
    assert ended(start(task, WORDS)).status == 0
    assert [each.resumed for each in place.outcomes()] == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_two_processes_share_the_runs(task: tiny.Tiny, place: Place, tmp_path: Path) -> None:
    """While the first process is in the first run, the second makes the other run."""
    go = tmp_path / "go"
    one = start(task, WORDS, [update(2, processes.waits_for(go))])
    wait_until(go.with_name("go.waits").exists, "the first run")
    other = ended(start(task, WORDS))
    first, second = plan(task, *WORDS)
    assert other.status == 0
    assert f"{first.name} begins" not in other.stderr
    assert f"{second.name} begins" in other.stderr
    assert "other processes are still making 1 run\n" in other.stderr
    go.touch()
    end = ended(one)
    assert end.status == 0
    assert f"{second.name} begins" not in end.stderr
    assert [place.is_done(run) for run in (first, second)] == [True, True]
    assert "| 2 |" in Path("results/results.md").read_text(), "both seeds"


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_two_jobs_make_each_run_once(task: tiny.Tiny, place: Place) -> None:
    forking = [processes.spawning_becomes_forking]
    done = ended(start(task, [*WORDS, "--jobs", "2"], forking))
    assert done.status == 0
    for run in plan(task, *WORDS):
        assert place.is_done(run)
        assert done.stderr.count(f"{run.name} begins") == 1
    assert done.stdout.count("results.md") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_jobs_end_with_the_program(task: tiny.Tiny, place: Place, tmp_path: Path) -> None:
    go = tmp_path / "go"
    forking = [processes.spawning_becomes_forking, update(2, processes.waits_for(go))]
    one = start(task, [*WORDS, "--jobs", "2"], forking)
    wait_until(go.with_name("go.waits").exists, "the first run")
    one.send(SIGTERM)
    go.touch()
    done = ended(one)
    assert done.status == 128 + SIGTERM
    assert "to go on: python -m gpt1 reproduce" in done.stderr
    assert ended(start(task, WORDS)).status == 0
