"""A run's state on disk: enough to go on to the same bits, and nothing that runs when read.

A checkpoint is one safetensors file. Its tensors are the model's and the optimizer's; its
header holds settings and counters as JSON, and a SHA-256 of everything. Random states need no
place in it: the order of the data and the dropout of every tower follow from the seed and the
number of updates done (:func:`gpt1.runtime.seeds.tower_seed`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import unreadable
from gpt1.weights.tensors import read_safetensors, saved_by_name

FORMAT = "gpt1 checkpoint 1"
KEPT = 2
DAMAGED = ".damaged"  # the end of the name of one that could not be read
_REMEDY = "use the one before it"
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")


class DamagedError(InputError):
    """A checkpoint cannot be used, whatever the settings."""


@dataclass(kw_only=True)
class RunState:
    """All that changes while a run trains; everything else follows from its settings.

    Attributes:
        n_updates: updates done, which gives the epoch, the place in it, and all seeds.
        best_score: best validation accuracy so far, in percent.
        evaluated: whether the evaluation that was due after these updates, if any, is done.
        environment: what the bits of the numbers depend on besides the settings, as
            :func:`gpt1.runtime.device.environment` gives it; empty if that is not known.
        tensors: the model's and the optimizer's tensors by name.
        optimizer: the rest of the optimizer's state: plain data.
        source: where it was read from, for messages.
    """

    n_updates: int
    best_score: float
    evaluated: bool = True
    environment: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor]
    optimizer: list[dict[str, Any]]
    source: str = "the state of this run"


def capture(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    n_updates: int,
    best_score: float,
    *,
    evaluated: bool = True,
    environment: Mapping[str, Any] | None = None,
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
        evaluated=evaluated,
        environment=dict(environment or {}),
        tensors=tensors,
        optimizer=state["param_groups"],
    )


def restore(state: RunState, model: torch.nn.Module, optimizer: OpenAIAdam) -> None:
    """Put a state back into a model and an optimizer made with the same settings.

    Raises:
        DamagedError: it is not a state of such a run; both are then untouched.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = [{**group, "t": state.n_updates} for group in own]
    if state.optimizer != groups or any(state.n_updates > group["t_total"] for group in groups):
        raise DamagedError(
            f"{state.source}: its optimizer's settings do not fit this run after "
            f"{state.n_updates} updates; {_REMEDY}"
        )
    _check_tensors(state, model, optimizer)
    entries: dict[int, dict[str, Tensor]] = {}
    for name in state.tensors.keys() - {f"model.{name}" for name in model.state_dict()}:
        _, index, key = name.split(".")
        entries.setdefault(int(index), {})[key] = state.tensors[name]
    model.load_state_dict({name: state.tensors[f"model.{name}"] for name in model.state_dict()})
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _check_tensors(state: RunState, model: torch.nn.Module, optimizer: OpenAIAdam) -> None:
    """See that a state has the tensors of this run, all of them and no other."""
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for index, parameter in enumerate(parameters if state.n_updates else ()):
        expected |= {f"optimizer.{index}.{key}": parameter for key in ("m", "v")}
    odd = sorted(expected.keys() ^ state.tensors.keys())
    if odd:
        problem = "is missing" if odd[0] in expected else "is not this model's"
        raise DamagedError(f"{state.source}: its tensor {odd[0]!r:.80} {problem}; {_REMEDY}")
    for name, tensor in state.tensors.items():
        found, right = ((list(t.shape), t.dtype) for t in (tensor, expected[name]))
        if found != right:
            raise DamagedError(
                f"{state.source}: its tensor {name} has shape {found[0]} and type {found[1]}, "
                f"expected {right[0]} and {right[1]}; {_REMEDY}"
            )


def save(directory: Path, state: RunState, meaning: Mapping[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all, then drop all but the last two.

    Args:
        directory: the run's directory.
        state: what :func:`capture` gave.
        meaning: the settings that a resumed run must share.

    Returns:
        The file written.
    """
    from safetensors.torch import save_file

    path = directory / f"checkpoint-{state.n_updates:08d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    header = json.dumps(
        {
            "n_updates": state.n_updates,
            "best_score": state.best_score,
            "evaluated": state.evaluated,
            "environment": state.environment,
            "optimizer": state.optimizer,
            "meaning": dict(meaning),
        }
    )
    metadata = {"format": FORMAT, "state": header, "sha256": _digest(header, tensors)}
    with saved_by_name(path) as name:
        save_file(tensors, name, metadata)
    for old in checkpoints(directory)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def clear(directory: Path) -> None:
    """Remove all checkpoints: those of an earlier run must not pass for the new one's."""
    for path in (*checkpoints(directory), *directory.glob(f"checkpoint-*{DAMAGED}")):
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint a name under which it neither counts nor gets lost."""
    return path.replace(path.with_name(path.name + DAMAGED))


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; none if there is no such directory.

    Raises:
        Gpt1Error: the directory cannot be listed. It may well hold checkpoints, so that the run
            must not start anew.
    """
    try:
        names = os.listdir(directory)  # a pattern for pathlib would find nothing on an error
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _machine_error(directory, error) from error
    return sorted(directory / name for name in names if _NAME.fullmatch(name))


def load(path: Path) -> tuple[RunState, dict[str, Any]]:
    """Read a checkpoint: its state, and the settings it was made under.

    Whether the state is one of a certain model is for :func:`restore` to say.

    Raises:
        DamagedError: the file is damaged or no checkpoint of this format.
        Gpt1Error: the machine could not read the file (a failing disk, a missing permission, too
            many open files, too little memory); what the file holds is not known then.
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
    values = _header_values(path, header)
    meaning = values.pop("meaning")
    return RunState(**values, tensors=tensors, source=str(path)), meaning


def _machine_error(path: Path, error: OSError | MemoryError) -> Gpt1Error:
    """The error for a checkpoint, or for their directory, that could not be read."""
    message = unreadable(path, "the saved state", error, remedy="put it back or make it readable")
    return Gpt1Error(f"{message} It was left as it is; go on with --resume when it can be read.")


# The values in a checkpoint's header, and how a message calls them.
_HEADER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_updates": (lambda x: type(x) is int and 0 <= x < 10**8, "a number of updates"),
    "best_score": (lambda x: type(x) in (int, float) and 0 <= x <= 100, "a percentage"),
    "evaluated": (lambda x: isinstance(x, bool), "true or false"),
    "environment": (lambda x: isinstance(x, dict), "an object"),
    "optimizer": (lambda x: isinstance(x, list), "a list of parameter groups"),
    "meaning": (lambda x: isinstance(x, dict), "an object of settings"),
}


def _header_values(path: Path, header: str) -> dict[str, Any]:
    """The values of ``_HEADER``: the digest shows who wrote them only if nobody forged it."""
    try:
        values = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: its state is not JSON: {error!s:.200}; {_REMEDY}") from error
    if not isinstance(values, dict):
        raise DamagedError(f"{path}: its state is not a JSON object; {_REMEDY}")
    values.setdefault("environment", {})  # earlier versions did not write it
    for name, (is_right, expected) in _HEADER.items():
        if not is_right(values.get(name)):
            raise DamagedError(f"{path}: its {name} is not {expected}; {_REMEDY}")
    return {name: values[name] for name in _HEADER}


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
