"""The training loop alone, on a job that has neither texts nor a Transformer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt1.opt import OpenAIAdam
from gpt1.results.log_lines import UpdateLine
from gpt1.results.outputs import Outputs
from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.training import Settings
from gpt1.training.checkpoint import Checkpoints, TrainState
from gpt1.training.logs import History, Keeper, Logs
from gpt1.training.loop import Evaluation, Listener, Progress, Trainer

ALONE = Ranks(0, 1, torch.device("cpu"))


class Counting:
    """A job with known figures: update n has costs n + 0.25 and n + 0.5, and norm n + 0.75."""

    def __init__(
        self, n_updates: int = 7, per_epoch: int = 7, warn_from: int = 99, scores: Any = ()
    ) -> None:
        self.n_updates, self.updates_per_epoch = n_updates, per_epoch
        self.warn_from, self.scores = warn_from, list(scores)
        self.done: list[int] = []

    def work(self) -> Iterator[int]:
        yield from range(1, self.n_updates + 1)

    def prepare(self, work: int, ranks: Ranks) -> int:
        return -work

    def gradients(self, replica: Replica[Any], prepared: int, update: int) -> Tensor:
        assert prepared == -update
        self.done.append(update)
        replica.model.weight.grad = torch.tensor([[update + 0.75]])
        return torch.tensor([update + 0.25, update + 0.5])

    def warning(self, update: UpdateLine) -> str | None:
        return f"update {update.n_updates}" if update.n_updates >= self.warn_from else None

    def evaluation_due(self, update: int) -> bool:
        return bool(self.scores) and update % self.updates_per_epoch == 0

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        progress(1, 1)
        score = self.scores.pop(0)
        return Evaluation(n_epochs=0, n_updates=state.n_updates, figures={"x": score}, score=score)

    def identity(self) -> Mapping[str, Any]:
        return {"job": "counting"}

    def describe(self, work: int) -> str:
        return f"number {work}"


class Place:
    """The files of a run, and its warnings."""

    def __init__(self, directory: Path) -> None:
        places = {f"{kind}_dir": str(directory / kind) for kind in ("log", "save", "submission")}
        self.outputs = Outputs(Settings(**places))  # type: ignore[arg-type]
        self.outputs.directory.mkdir(parents=True)
        self.outputs.log.parent.mkdir()
        self.shown: list[str] = []

    def logs(self) -> Logs:
        return Logs(self.outputs, {"desc": "run"}, self.shown.append)

    def updates(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.outputs.updates.read_text().splitlines()]

    def trainer(
        self, job: Counting, *listeners: Listener, delay: int = 0, save_every: int = 0
    ) -> Trainer:
        model: Any = nn.Linear(1, 1, bias=False)
        optimizer = OpenAIAdam(
            model.parameters(), 0.1, "warmup_constant", warmup=0.1, t_total=job.n_updates
        )
        trainer = Trainer(
            job,
            TrainState(model=model, optimizer=optimizer, best_score=0.0),
            ALONE,
            checkpoints=Checkpoints(self.outputs.directory, ALONE, self.shown.append),
            listeners=listeners,
            stop=StopRequests(),
            save_every=save_every,
        )
        trainer._delay = delay  # as on a GPU, from which figures are read later
        return trainer


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def line(n: int) -> dict[str, Any]:
    costs = {"clf_cost": n + 0.25, "lm_cost": n + 0.5}
    return {"n_updates": n, **costs, "grad_norm": n + 0.75}


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


@pytest.mark.parametrize("delay", [0, 1, 3, 50])
def test_figures_wait_at_most_the_delay_and_come_in_order(place: Place, delay: int) -> None:
    known: list[int] = []

    class Counter(History):
        def stepped(self, n_updates: int) -> None:
            assert n_updates - len(self.updates) <= delay + 1
            known.append(len(self.updates))

    counter = Counter()
    place.trainer(Counting(), place.logs(), counter, delay=delay).train(resumed=False)
    assert without(place.updates(), "time", "lr") == [line(n) for n in range(1, 8)]
    assert [update.n_updates for update in counter.updates] == list(range(1, 8))
    assert (known == list(range(7))) == (delay == 0)  # otherwise some figures were read later


def test_the_keys_of_the_log_and_their_order(place: Place) -> None:
    place.trainer(Counting(1, 1), place.logs()).train(resumed=False)
    (row,) = place.updates()
    assert list(row) == ["n_updates", "clf_cost", "lm_cost", "lr", "grad_norm", "time"]


def test_the_time_is_that_of_the_update(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    trainer = place.trainer(Counting(2, 2), history, delay=50)
    clock = iter([10.0, 11.0, 99.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    trainer.train(resumed=False)
    assert [update.time for update in history.updates] == [10.0, 11.0]


def event(n: int) -> dict[str, Any]:
    return {"n_updates": n, "event": "diverging", "message": f"update {n}"}


@pytest.mark.parametrize("delay", [0, 3, 50])
def test_a_warning_is_shown_once_and_is_an_event_after_its_update(place: Place, delay: int) -> None:
    place.trainer(Counting(warn_from=3), place.logs(), delay=delay).train(resumed=False)
    assert place.shown == ["warning: update 3"]
    expected = [line(1), line(2), line(3), event(3), *map(line, range(4, 8))]
    assert without(place.updates(), "time", "lr") == expected


@pytest.mark.parametrize(("keep", "again"), [(2, [3]), (3, []), (5, [])])
def test_a_resumed_run_warns_again_only_if_the_event_was_cut(
    place: Place, keep: int, again: list[int]
) -> None:
    rows = [line(1), line(2), line(3), event(3), line(4), line(5)]
    written = "".join(json.dumps({**row, "lr": 0.1, "time": 1.0}) + "\n" for row in rows)
    place.outputs.updates.write_text(written)
    trainer = place.trainer(Counting(6, 6, warn_from=3), place.logs())
    trainer.state.n_updates = keep
    trainer.train(resumed=True)
    assert place.shown == [f"warning: update {n}" for n in again]
    assert without(place.updates(), "time", "lr") == [*rows, line(6)]


def test_what_is_kept_is_the_start_and_every_strictly_better_evaluation(place: Place) -> None:
    kept: list[int] = []
    job = Counting(8, 2, scores=[50.0, 50.0, 75.0, 25.0])
    keeper = Keeper(lambda: kept.append(len(job.done)))
    history = History()
    trainer = place.trainer(job, keeper, history)
    trainer.train(resumed=False)
    assert kept == [0, 2, 6]
    assert [found.score for found in history.evaluations] == [50.0, 50.0, 75.0, 25.0]
    assert trainer.state.best_score == 75.0


def test_a_restored_run_makes_only_the_updates_that_are_left(place: Place) -> None:
    first = place.trainer(Counting(6, 3), save_every=2)
    assert list(first.updates_saved()) == [2, 3, 4, 6]
    first.train(resumed=False)
    (place.outputs.directory / "checkpoint-00000006.safetensors").unlink()
    job = Counting(6, 3)
    second = place.trainer(job, save_every=2)
    assert second.restore()
    assert list(second.updates_saved()) == [6]
    second.train(resumed=True)
    assert job.done == [5, 6]
    weights = [trainer.state.model.weight for trainer in (first, second)]
    assert torch.equal(*weights)


class Infinite(Counting):
    """A job whose fourth update has an infinite cost."""

    def gradients(self, replica: Replica[Any], prepared: int, update: int) -> Tensor:
        costs = super().gradients(replica, prepared, update)
        return costs * torch.inf if update == 4 else costs


@pytest.mark.parametrize("delay", [0, 50])
def test_a_cost_that_is_not_finite_ends_the_run_and_names_the_work(
    place: Place, delay: int
) -> None:
    trainer = place.trainer(Infinite(6, 3), place.logs(), delay=delay)
    with pytest.raises(Gpt1Error, match=r"update 4: classification cost inf and .*number 4\."):
        trainer.train(resumed=False)
    saved = sorted(path.name for path in place.outputs.directory.glob("checkpoint-*"))
    assert saved == [f"checkpoint-{3:08}.safetensors"]
    assert without(place.updates(), "time", "lr") == [line(1), line(2), line(3)]
