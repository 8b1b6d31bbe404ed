"""A run's state on disk: enough to go on to the same bits, and nothing that runs when read.

A checkpoint is one safetensors file. Its tensors are the model's and the optimizer's; its
header holds settings and counters as JSON, and a SHA-256 of everything. Random states need no
place in it: the order of the data and the dropout of every tower follow from the seed and the
number of updates done (:func:`gpt1.distributed.tower_seed`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1.errors import InputError
from gpt1.files import atomic_write

FORMAT = "gpt1 checkpoint 1"
KEPT = 2
_REMEDY = "delete it to go on from the one before"
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")


@dataclass(kw_only=True)
class RunState:
    """All that changes while a run trains; everything else follows from its settings.

    Attributes:
        n_updates: updates done, which gives the epoch, the place in it, and all seeds.
        best_score: best validation accuracy so far, in percent.
        tensors: the model's and the optimizer's tensors by name.
        optimizer: the rest of the optimizer's state: plain data.
    """

    n_updates: int
    best_score: float
    tensors: dict[str, Tensor]
    optimizer: list[dict[str, Any]]


def capture(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, n_updates: int, best_score: float
) -> RunState:
    """The state of a run now; its tensors are the live ones, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        for key, tensor in entries.items():
            tensors[f"optimizer.{index}.{key}"] = tensor
    return RunState(
        n_updates=n_updates,
        best_score=best_score,
        tensors=tensors,
        optimizer=state["param_groups"],
    )


def restore(state: RunState, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state back into a model and an optimizer made with the same settings."""
    own = model.state_dict()
    model.load_state_dict({name: state.tensors[f"model.{name}"] for name in own})
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, index, *key = name.split(".")
        if kind == "optimizer":
            entries.setdefault(int(index), {})[".".join(key)] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": state.optimizer})


def save(directory: Path, state: RunState, meaning: Mapping[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all, then drop all but the last two.

    Args:
        directory: the run's directory.
        state: what :func:`capture` gave.
        meaning: the settings that a resumed run must share.

    Returns:
        The file written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = directory / f"checkpoint-{state.n_updates:08d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    header = json.dumps(
        {
            "n_updates": state.n_updates,
            "best_score": state.best_score,
            "optimizer": state.optimizer,
            "meaning": dict(meaning),
        }
    )
    metadata = {"format": FORMAT, "state": header, "sha256": _digest(header, tensors)}
    with atomic_write(path) as file:
        try:
            save_file(tensors, file.name, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error  # a full disk: atomic_write says so
    for old in checkpoints(directory)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def clear(directory: Path) -> None:
    """Remove all checkpoints: those of an earlier run must not pass for the new one's."""
    for path in checkpoints(directory):
        path.unlink(missing_ok=True)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name))


def load(path: Path) -> tuple[RunState, dict[str, Any]]:
    """Read a checkpoint: its state, and the settings it was made under.

    Raises:
        InputError: the file is damaged or no checkpoint of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint: {error}; {_REMEDY}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this program ({FORMAT!r} is expected)")
    header = metadata.get("state", "")
    if metadata.get("sha256") != _digest(header, tensors):
        raise InputError(f"{path}: damaged: its SHA-256 is another; {_REMEDY}")
    values = json.loads(header)
    state = RunState(
        n_updates=values["n_updates"],
        best_score=values["best_score"],
        tensors=tensors,
        optimizer=values["optimizer"],
    )
    return state, values["meaning"]


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
