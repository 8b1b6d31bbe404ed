"""Check that this machine has the memory and the disk space that a run needs at least.

The figures by which a run is refused are lower bounds: a run that is refused could not finish. A
run that is not refused may still run out of memory, because activations are not counted in them, or
out of disk space, because other programs may use it during the run. The memory of activations is
estimated, to decide whether they are kept or computed again (``--recompute``).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpt1.batches.encoded import EncodedSplit
from gpt1.model.transformer import ModelConfig
from gpt1.results.outputs import Outputs
from gpt1.results.submissions import table
from gpt1.runtime.errors import InputError, join_problems
from gpt1.training import checkpoint

FLOAT_BYTES = 4
IN_CHECKPOINT = 3  # copies: parameters and both moments
IN_TRAINING = 4  # copies: parameters, gradients and both moments
USABLE = 0.8
"""Share of the memory for training; the rest is for the program itself and for others."""
UPDATE_LINE = 80  # bytes, fewer than in any line of the log of updates
UNITS = ("kB", "MB", "GB", "TB", "PB")  # 1000, 1000**2, ... bytes


def n_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of a model, including the classifier.

    A block has matrices of [D, 3D], [D, D], [D, 4D] and [4D, D], their biases, and two layer norms
    with two vectors each.
    """
    D = config.n_embd
    return config.n_rows * D + config.n_layer * (12 * D**2 + 13 * D) + (D + 1) * config.n_classes


# Memory


def check_memory(config: ModelConfig, device: torch.device, source: str) -> None:
    """Check that the memory of the machine, and that of the GPU, can hold what training needs.

    The need is compared with the total memory, not with the memory that is free at the moment.

    Args:
        config: the model's sizes.
        device: the device that trains the model. If it is not the CPU, the machine's own memory
            must hold the copy from which a checkpoint is written.
        source: the origin of sizes that no flag gives, for the message.

    Raises:
        InputError: the machine or the GPU has too little memory.
    """
    copies = IN_TRAINING if device.type == "cpu" else IN_CHECKPOINT
    places = [("this machine", host_memory(), copies)]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        places.append((f"device {device}", total, IN_TRAINING))
    n = n_parameters(config)
    for place, there, copies in places:
        needed = FLOAT_BYTES * copies * n
        if there is not None and needed > there:
            raise InputError(
                f"--n_embd {config.n_embd} --n_layer {config.n_layer} (where not given, from "
                f"{source}): give smaller sizes, or train where there is more memory; {n:.1e} "
                f"parameters with their gradients and moments take {shown(needed)}, and {place} "
                f"has {shown(there, math.floor)} of memory"
            )


def host_memory() -> int | None:
    """Return how many bytes of memory this process may use; None if the system does not tell."""
    limits = list(_cgroup_limits(Path("/")))
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of this process's Linux control groups, in bytes.

    Containers and Slurm set such limits. The limit of a group holds for the groups below it, too.
    In a container, ``proc`` may give the group's path outside of the container, although the group
    is mounted at the top of ``sys``.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":  # version 2
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            place = top / group.lstrip("/")
            for directory in (place, *place.parents):
                if directory.is_relative_to(top):
                    with suppress(OSError, ValueError):  # There is no limit, or it is "max".
                        yield int((directory / name).read_text())


# Activations


class Tower(NamedTuple):
    """The size of the part of a batch that is computed at once, without padding.

    Attributes:
        n_tokens: N, the tokens of all its sequences.
        n_sequences: G, the number of sequences.
        length: T, the number of tokens of the longest sequence.
    """

    n_tokens: int
    n_sequences: int
    length: int


def largest_tower(split: EncodedSplit, n_batch: int) -> Tower:
    """Return sizes that no tower of ``n_batch`` examples of a split exceeds."""
    tokens = np.sort(split.lengths.sum(1))[-n_batch:]
    return Tower(int(tokens.sum()), n_batch * split.n_sequences, split.longest)


class Attention(Enum):
    """What attention keeps for the backward pass: matrices of [G, H, T, T], or nothing."""

    NOTHING = "nothing"  # fused attention
    MASK = "the dropout mask, a byte for each weight"  # causal attention on a CPU
    WEIGHTS = "weights and mask"


def training_memory(
    config: ModelConfig, tower: Tower, *, recompute: bool, precision: str, attention: Attention
) -> int:
    """Estimate the memory of training in bytes, without that of the program itself.

    Axes as in :mod:`gpt1.model.transformer`. In float32 the backward pass of a layer needs 20
    matrices of [N, D], and 3 of [G, H, T, T] if attention keeps its weights; in bfloat16 most of
    them take half. While a layer is computed, about half as much is used besides. These numbers of
    matrices were counted with ``torch.autograd.graph.saved_tensors_hooks``.

    Args:
        config: the model's sizes.
        tower: the largest part of a batch that is computed at once.
        recompute: whether only the inputs of the layers are kept, and one layer at a time.
        precision: a value of ``--precision``.
        attention: what attention keeps.
    """
    states = tower.n_tokens * config.n_embd
    weights = tower.n_sequences * config.n_head * tower.length**2
    matrices = {Attention.NOTHING: 0, Attention.MASK: 0.25, Attention.WEIGHTS: 3}[attention]
    if attention is Attention.WEIGHTS and precision == "bf16":
        matrices /= 2
    of_layer = (12.5 if precision == "bf16" else 20) * states + matrices * weights
    layers = config.n_layer * states + of_layer if recompute else config.n_layer * of_layer
    # The matrix ``we`` under dropout, its mask, its gradient, and the logits of 512 rows.
    head = 2.25 * config.n_rows * config.n_embd + 2 * 512 * config.n_rows
    numbers = IN_TRAINING * n_parameters(config) + layers + of_layer / 2 + head
    return round(FLOAT_BYTES * numbers)


def memory_of(device: torch.device, n_processes: int = 1) -> int | None:
    """Return the bytes of memory in which a process trains; None if the system does not tell.

    Args:
        device: the device that trains the model.
        n_processes: the processes of this run on this machine, which share its own memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    there = host_memory()
    return None if there is None else there // n_processes


# Disks


class Need(NamedTuple):
    """The disk space that a run needs in a directory, in addition to files that it replaces.

    Attributes:
        flag: the flag that names another directory.
        directory: an existing directory that the run writes to.
        n_bytes: the additional bytes; less than 0 if the run frees more than it writes.
    """

    flag: str
    directory: Path
    n_bytes: int


def disk_needs(
    outputs: Outputs,
    *,
    n_parameters: int,
    n_checkpoints: int,
    n_updates: int,
    n_predicted: Mapping[str, int],
    vocabulary: Sequence[Path] = (),
    resumed: bool,
) -> list[Need]:
    """Return the largest disk space that a run will need in each of its directories.

    Args:
        outputs: the run's files.
        n_parameters: of its model.
        n_checkpoints: how many it will write; of them at most
            :data:`gpt1.training.checkpoint.KEPT` + 1 are there at once.
        n_updates: how many it will do.
        n_predicted: number of examples in each submission, by its stem.
        vocabulary: the files that are copied to ``outputs.vocabulary``.
        resumed: whether it goes on from a checkpoint. Otherwise it removes those that are there.
    """
    parameters = FLOAT_BYTES * n_parameters
    saved = new_checkpoints(outputs.directory, n_parameters, n_checkpoints, resumed=resumed)
    if not resumed:
        if outputs.settings.submit:
            saved = max(parameters, saved + parameters - size_of(outputs.best_params))
        saved -= old_checkpoints(outputs.directory)
    if outputs.settings.submit:
        copies = zip(vocabulary, outputs.vocabulary, strict=False)
        saved += sum(max(0, size_of(file) - size_of(copy)) for file, copy in copies)
    logged = n_updates * UPDATE_LINE - (0 if resumed else size_of(outputs.updates))
    needs = [
        Need("--save_dir", outputs.directory, saved),
        Need("--log_dir", outputs.log.parent, logged),
    ]
    if outputs.settings.submit:
        more = 0
        for stem, n in n_predicted.items():
            size = len(table([0] * n))
            written = (outputs.submissions[stem], outputs.last_submissions[stem])
            more += sum(max(0, size - size_of(path)) for path in written)
        needs.append(Need("--submission_dir", outputs.submission.parent, more))
    return needs


def new_checkpoints(
    directory: Path, n_parameters: int, n_checkpoints: int, *, resumed: bool
) -> int:
    """Return the bytes of the checkpoints that a run adds at most to those that are there.

    The arguments are those of :func:`disk_needs`.
    """
    kept = min(len(checkpoint.checkpoints(directory)), checkpoint.KEPT) if resumed else 0
    n = min(n_checkpoints, checkpoint.KEPT + 1 - kept)
    return n * IN_CHECKPOINT * FLOAT_BYTES * n_parameters


def old_checkpoints(directory: Path) -> int:
    """Return the bytes of the checkpoints of earlier runs, which a new run removes first."""
    return size_of(*directory.glob("checkpoint-*"))


def check_disks(needs: Sequence[Need]) -> None:
    """Check that the disks have room for all ``needs`` together.

    The needs of directories on the same file system are added up.

    Raises:
        InputError: a file system has too little room; the message says how much is missing.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(need.directory.stat().st_dev, []).append(need)
    problems = []
    for shared in by_disk.values():
        flag, directory, _ = max(shared, key=lambda need: need.n_bytes)
        needed, free = sum(need.n_bytes for need in shared), _free(directory)
        if free is not None and needed > free:
            problems.append(
                f"{directory}: free {shown(needed - free)} on the disk of this directory, or name "
                f"another directory with {flag}; the run needs {shown(needed)} there and "
                f"{shown(free, math.floor)} are free"
            )
    if problems:
        raise InputError(join_problems(problems))


def _free(directory: Path) -> int | None:
    """Return how many bytes may still be written; None if the file system does not tell."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError:
        return None
    # Part of a file system is reserved for root, and is not free for other users.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return (usage.total - usage.used if is_root else usage.free) if usage.total else None


def size_of(*paths: Path) -> int:
    """Return the total bytes of these files; a file that does not exist counts as 0."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def shown(n_bytes: float, to_integer: Callable[[float], int] = math.ceil) -> str:
    """Return a number of bytes as a message shows it, such as ``1.4 GB``, by default rounded up."""
    power = min(max(len(str(int(n_bytes))) - 1, 3) // 3, len(UNITS))
    return f"{to_integer(10 * n_bytes / 1000**power) / 10:.1f} {UNITS[power - 1]}"
