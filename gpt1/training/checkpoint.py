"""Checkpoints: the state of a run on disk, from which a resumed run gives the same numbers.

A checkpoint is one safetensors file, so that reading it runs no code. Its tensors are those of the
model and the optimizer. Its header holds settings and counters as JSON, and a SHA-256 of the whole
content. A checkpoint has no random states: the order of the data and the dropout of every tower
follow from the seed and the number of updates done (:func:`gpt1.runtime.seeds.tower_seed`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt1.model import DoubleHeadsModel
from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.device import environment
from gpt1.runtime.errors import Gpt1Error, InputError, join_problems
from gpt1.runtime.files import unreadable
from gpt1.runtime.ranks import Ranks
from gpt1.weights.locate import RUN_LIST
from gpt1.weights.tensors import read_safetensors, saved_by_name

FORMAT = "gpt1 checkpoint 2"
KEPT = 2
DAMAGED = ".damaged"  # the suffix of a checkpoint that could not be read
_REMEDY = "use the one before it"
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")


class DamagedError(InputError):
    """A checkpoint cannot be read, because the file is damaged or has another format."""


@dataclass(kw_only=True)
class RunState:
    """The content of a checkpoint: all that changes while a run trains.

    Everything else follows from the settings of the run.

    Attributes:
        n_updates: number of updates done, which determines the epoch, the place in the epoch and
            all seeds.
        best_score: best validation score so far, in percent.
        evaluated: whether the evaluation that was due after these updates, if any, is done.
        environment: what :func:`gpt1.runtime.device.environment` returns, on which the last bits of
            the numbers depend besides the settings; empty if it is not known.
        tensors: the tensors of the model and the optimizer, by name.
        optimizer: the rest of the optimizer's state, as values that JSON can hold.
    """

    n_updates: int
    best_score: float
    evaluated: bool = True
    environment: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor]
    optimizer: list[dict[str, Any]]


def capture(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    n_updates: int,
    best_score: float,
    *,
    evaluated: bool = True,
    environment: Mapping[str, Any] | None = None,
) -> RunState:
    """Return the current state of a run; its tensors are those of the model, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        for key, tensor in entries.items():
            tensors[f"optimizer.{index}.{key}"] = tensor
    return RunState(
        n_updates=n_updates,
        best_score=best_score,
        evaluated=evaluated,
        environment=dict(environment or {}),
        tensors=tensors,
        optimizer=state["param_groups"],
    )


def restore(state: RunState, model: torch.nn.Module, optimizer: OpenAIAdam) -> None:
    """Copy a state into a model and an optimizer that were made with the same settings."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name in state.tensors.keys() - {f"model.{name}" for name in model.state_dict()}:
        _, index, key = name.split(".")
        entries.setdefault(int(index), {})[key] = state.tensors[name]
    model.load_state_dict({name: state.tensors[f"model.{name}"] for name in model.state_dict()})
    optimizer.load_state_dict({"state": entries, "param_groups": state.optimizer})


def save(directory: Path, state: RunState, identity: Mapping[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all; then remove all but the newest two.

    Args:
        directory: the run's directory.
        state: a state from :func:`capture`.
        identity: the settings, model and data that a resumed run must share.

    Returns:
        The path of the checkpoint.
    """
    path = directory / f"checkpoint-{state.n_updates:08d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    header = json.dumps(
        {
            "n_updates": state.n_updates,
            "best_score": state.best_score,
            "evaluated": state.evaluated,
            "environment": state.environment,
            "optimizer": state.optimizer,
            "identity": dict(identity),
        }
    )
    metadata = {"format": FORMAT, "state": header, "sha256": _digest(header, tensors)}
    with saved_by_name(path) as name:
        save_file(tensors, name, metadata)
    for old in checkpoints(directory)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def clear(directory: Path) -> None:
    """Remove all checkpoints of earlier runs, so that none is taken for one of the new run."""
    for path in (*checkpoints(directory), *directory.glob(f"checkpoint-*{DAMAGED}")):
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is kept but no longer read; return its new path."""
    return path.replace(path.with_name(path.name + DAMAGED))


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; none if the directory does not exist.

    Raises:
        Gpt1Error: the directory cannot be listed. It may hold checkpoints, so that the run must
            not start anew.
    """
    try:
        names = os.listdir(directory)  # a pattern for pathlib would find nothing on an error
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _machine_error(directory, error) from error
    return sorted(directory / name for name in names if _NAME.fullmatch(name))


def load(path: Path) -> tuple[RunState, dict[str, Any]]:
    """Read a checkpoint: the state, and the ``identity`` that was given to :func:`save`.

    Raises:
        DamagedError: the file is damaged, or is not a checkpoint of this format.
        Gpt1Error: the machine could not read the file (a failing disk, a missing permission, too
            many open files, too little memory); the file may be undamaged.
    """
    try:
        metadata, tensors = read_safetensors(path)
    except ValueError as error:
        raise DamagedError(
            f"{path}: not a readable checkpoint: {str(error)!r:.200}; {_REMEDY}"
        ) from error
    except (OSError, MemoryError) as error:
        raise _machine_error(path, error) from error
    if metadata.get("format") != FORMAT:
        raise DamagedError(
            f"{path}: not a checkpoint of this program ({FORMAT!r} is expected); {_REMEDY}"
        )
    header = metadata.get("state", "")
    if metadata.get("sha256") != _digest(header, tensors):
        raise DamagedError(f"{path}: damaged: its SHA-256 is another; {_REMEDY}")
    values = json.loads(header)
    identity = values.pop("identity")
    return RunState(**values, tensors=tensors), identity


def _machine_error(path: Path, error: OSError | MemoryError) -> Gpt1Error:
    """Return the error for a checkpoint, or a directory of checkpoints, that cannot be read."""
    message = unreadable(path, "the saved state", error, remedy="put it back or make it readable")
    return Gpt1Error(f"{message} It was left as it is; go on with --resume when it can be read.")


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(kw_only=True)
class TrainState:
    """All that changes while a run trains.

    Attributes:
        model: the model, on the device of this rank.
        optimizer: the optimizer of the model's parameters.
        n_updates: number of updates done.
        best_score: the best score of an evaluation so far, in percent.
        evaluated: whether the evaluation that was due after the last update, if any, is done.
    """

    model: DoubleHeadsModel
    optimizer: OpenAIAdam
    best_score: float
    n_updates: int = 0
    evaluated: bool = True


class Checkpoints:
    """The checkpoints of a run, of which the newest two are kept.

    Args:
        directory: the directory of the checkpoints.
        ranks: the processes of the run, of which the main one writes.
        say: shows a message to the user; called on the main rank alone.
    """

    def __init__(self, directory: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.directory, self.ranks, self._say = directory, ranks, say

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None if there is none."""
        return next(reversed(checkpoints(self.directory)), None)

    def clear(self) -> None:
        """Remove all checkpoints of earlier runs, so that none is taken for one of the new run."""
        clear(self.directory)

    def save(self, state: TrainState, identity: Mapping[str, Any]) -> None:
        """Write the state of a run; on the main rank alone."""
        captured = capture(
            state.model,
            state.optimizer,
            state.n_updates,
            state.best_score,
            evaluated=state.evaluated,
            environment=environment(self.ranks.device, self.ranks.world),
        )
        save(self.directory, captured, identity)

    def restore(self, state: TrainState, identity: Mapping[str, Any], n_updates: int) -> bool:
        """Restore the newest checkpoint that can be read; return False if the run has none.

        Args:
            state: is set to the content of the checkpoint.
            identity: the settings, model and data that the checkpoint must share with this run.
            n_updates: number of updates of the whole run, for the message.

        Raises:
            InputError: the checkpoint is of a run with another identity, or no checkpoint can be
                read.
        """
        files = self.ranks.on_main_rank(partial(checkpoints, self.directory))
        for path in reversed(files):
            try:
                found, own = self.ranks.on_main_rank(partial(load, path))
            except DamagedError as error:
                aside = self.ranks.on_main_rank(partial(set_aside, path))
                self._tell(f"--resume: {error} (it is now {aside.name})")
                continue
            self.ranks.on_all_ranks(partial(_check_identity, own, identity, path))
            restore(found, state.model, state.optimizer)
            state.n_updates, state.best_score = found.n_updates, found.best_score
            state.evaluated = found.evaluated
            self._tell(f"--resume: going on after update {state.n_updates} of {n_updates}")
            self._warn_of_changes(found.environment)
            return True
        if files:
            none_left = InputError(
                f"--resume: no checkpoint in {self.directory}/ can be read (they are kept as "
                f"*{DAMAGED}); start anew without --resume"
            )
            none_left.reported_elsewhere = not self.ranks.is_main
            raise none_left
        self._tell(f"--resume: no checkpoint in {self.directory}/; starting anew")
        return False

    def _warn_of_changes(self, before: Mapping[str, Any]) -> None:
        """Warn of differences between this environment and that of a checkpoint, if it is known."""
        changes = [
            f"{name} was {before[name]!s:.100} and is now {value}"
            for name, value in environment(self.ranks.device, self.ranks.world).items()
            if before.get(name, value) != value
        ]
        if changes:
            self._tell(
                "--resume: warning: the run may end with other numbers than without the "
                f"interruption, since {', '.join(changes)}"
            )

    def _tell(self, message: str) -> None:
        if self.ranks.is_main:
            self._say(message)


def _check_identity(found: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint was written by a run with these settings, model and data.

    Raises:
        InputError: one of them differs; the message names it.
    """
    problems = [
        f"--resume: {name} was {found.get(name)!r:.100} in {path} and is now {own[name]!r}; "
        f"{_remedy(name, found.get(name), own[name], path)}"
        for name in own
        if own[name] != found.get(name)
    ]
    if problems:
        raise InputError(join_problems(problems))


def _remedy(name: str, before: Any, now: Any, path: Path) -> str:
    """What to do about a setting that another value than before was given for."""
    best = path.with_name(RUN_LIST)
    is_longer = name == "n_iter" and isinstance(before, int) and now > before
    if is_longer and best.exists():
        return (
            f"the run's learning rate was planned for {before}; to train its result further, "
            f"start another run with --init_params {best} --desc NEW"
        )
    return "give the same settings, or another --desc to start anew"
