"""Pretraining in real processes: stopped, killed and starved runs lose nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import small_corpus
import torch
from processes import SIGKILL, SIGTERM, Change, Done, Running, before, sends_itself

import gpt1
from gpt1.commands import pretrain
from gpt1.training import checkpoint
from gpt1.weights import locate

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's signals, limits and /proc"),
    pytest.mark.usefixtures("fork_server"),
]

FLAGS = "--size tiny --n_ctx 8 --n_embd 16 --n_head 4 --n_batch 3 --n_gpu 2 --warmup_updates 5"
FLAGS += " --device cpu --lr 1e-2 --n_updates 20 --save_every 4 --eval_every 6 --quiet"


@dataclass(frozen=True)
class Run:
    """A pretraining run whose directories no other run uses."""

    corpus: Path
    directory: Path

    @property
    def saved(self) -> Path:
        return self.directory / "save" / "pretraining"

    @property
    def out(self) -> Path:
        return self.directory / "model"

    @property
    def log(self) -> Path:
        return self.directory / "log" / "pretraining.jsonl"

    def flags(self, *words: str) -> list[str]:
        places = {"corpus": self.corpus, "out": self.out}
        places |= {f"{kind}_dir": self.directory / kind for kind in ("log", "save")}
        named = [word for name, path in places.items() for word in (f"--{name}", str(path))]
        return [*named, *FLAGS.split(), *words]

    def start(self, *words: str, changes: Sequence[Change] = ()) -> Running:
        body = partial(pretrain.main, self.flags(*words))
        return Running(body, changes, self.directory / "printed")

    def do(self, *words: str, changes: Sequence[Change] = ()) -> Done:
        return ended(self.start(*words, changes=changes))

    def results(self) -> dict[str, Any]:
        """Return the content of the run's files, without times and speeds."""
        newest = checkpoint.checkpoints(self.saved)[-1]
        tensors = checkpoint.load(newest)[0].tensors
        evaluations = processes.lines(self.log)[1:]
        for row in evaluations:
            del row["tokens_per_second"]
        return {
            "evaluations": evaluations,
            "updates": processes.lines(self.log.with_name("pretraining.updates.jsonl")),
            "state": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
            "model": {path.name: path.read_bytes() for path in sorted(self.out.iterdir())},
        }


def ended(running: Running) -> Done:
    return replace(running.wait(), program="gpt1 pretrain")


def update(number: int, action: Change) -> Change:
    """Return a change that acts at the beginning of an update, counted from 1 per process."""
    return before("gpt1.training.pretraining:window_gradients", action, call=number)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus.write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", 80, 10)


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Run:
    return Run(corpus, tmp_path)


@pytest.fixture(scope="module")
def whole(
    fork_server: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of an undisturbed run, with dropout and more than one epoch."""
    run = Run(corpus, tmp_path_factory.mktemp("whole"))
    done = run.do()
    assert (done.status, done.stderr) == (0, "")
    return run.results()


def assert_same(run: Run, expected: dict[str, Any]) -> None:
    for name, value in run.results().items():
        assert value == expected[name], name


def test_a_stopped_run_names_the_command_that_continues_it(whole: dict[str, Any], run: Run) -> None:
    done = run.do(changes=[update(10, sends_itself(SIGTERM))])
    assert done.status == 143
    message = done.message()
    assert message.startswith("stopped by SIGTERM: after update 10 of 20, all saved; to go on: ")
    words = shlex.split(message.partition("to go on: ")[2])
    assert words == ["python", "-m", "gpt1", "pretrain", *run.flags("--resume")]
    assert run.do("--resume").status == 0
    assert_same(run, whole)


@pytest.mark.parametrize("number", [2, 11, 19])
def test_a_killed_run_goes_on_with_the_same_bits(
    whole: dict[str, Any], run: Run, number: int
) -> None:
    done = run.do(changes=[update(number, sends_itself(SIGKILL))])
    assert done.status == -SIGKILL
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def test_a_model_of_which_a_part_is_written_is_not_taken_for_one(
    whole: dict[str, Any], run: Run
) -> None:
    kill = before(
        "gpt1.weights.released:atomic_write", sends_itself(SIGKILL), call=2, matching="params_5"
    )
    assert run.do(changes=[kill]).status == -SIGKILL
    assert (run.out / "params_0.npy").exists()
    assert not locate.is_released(run.out)
    assert run.do("--resume").status == 0
    assert_same(run, whole)
    assert gpt1.load_pretrained(run.out).module.config.n_ctx == 8


def poisons(value: float) -> None:
    """Put a value into the gradient of update 6."""
    from gpt1.training import pretraining

    original, calls = pretraining.window_gradients, iter(range(1, 1000))

    def poisoned(replica: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        costs: torch.Tensor = original(replica, *args, **kwargs)
        if next(calls) == 6:
            replica.model.we.grad[0, 0] = value
        return costs

    pretraining.window_gradients = poisoned


def test_a_diverged_run_stops_before_the_update(whole: dict[str, Any], run: Run) -> None:
    done = run.do(changes=[partial(poisons, float("nan"))])
    assert done.status == 1
    message = done.message()
    assert message.startswith("error: update 6: gradient norm nan; the run has diverged")
    assert f"the last good state is {run.saved}/checkpoint-00000005.safetensors" in message
    assert f"the windows of 8 tokens of {run.corpus}/ that start at its tokens " in message
    assert run.do("--resume").status == 0
    assert_same(run, whole)


def test_a_full_disk_ends_the_run_with_a_message(run: Run) -> None:
    full = update(3, processes.limits_files(4000))
    done = run.do(changes=[full])
    assert done.status == 1
    assert "cannot be written" in done.message()


def test_two_runs_of_one_name(run: Run, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = run.start(changes=[update(2, processes.waits_for(go))])
    processes.wait_until(go.with_name("go.waits").exists, "the first run")
    second = Run(run.corpus, run.directory)
    words = ["--out", str(tmp_path / "other")]
    done = second.do(*words)
    go.touch()
    assert ended(first).status == 0
    assert done.status == 2
    assert "--desc pretraining: another run of this name is writing" in done.message()


def test_a_resumed_run_must_be_the_same_run(run: Run) -> None:
    assert run.do(changes=[update(10, sends_itself(SIGTERM))]).status == 143
    done = run.do("--resume", "--seed", "7", "--warmup_updates", "6")
    assert done.status == 2
    assert "--resume: seed was 42" in done.stderr
    assert "--resume: warmup_updates was 5" in done.stderr


def test_two_processes_give_the_numbers_of_one(whole: dict[str, Any], run: Run) -> None:
    """Each computes one of the two towers; a rounding of the sum of gradients may differ."""
    variables = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": processes.free_port(),
    }
    started = [
        run.start(
            changes=[partial(processes.set_variables, {**variables, "RANK": r, "LOCAL_RANK": r})]
        )
        for r in ("0", "1")
    ]
    assert [(done.status, done.stderr) for done in map(ended, started)] == [(0, "")] * 2
    found = run.results()
    for name in ("updates", "evaluations"):
        for ours, theirs in zip(found[name], whole[name], strict=True):
            assert ours.pop("clf_cost", None) == theirs.get("clf_cost")
            assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-3)
