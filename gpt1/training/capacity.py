"""What a run needs of memory and of disks at least, and whether this machine has it.

All figures are lower bounds: a run that is refused could not come to its end. A run that is not
refused may still run out of memory, since activations come on top, or of disk space, which other
programs may take meanwhile.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import InputError, join_problems
from gpt1.training import checkpoint
from gpt1.training.outputs import Outputs
from gpt1.training.submissions import table

FLOAT_BYTES = 4
IN_CHECKPOINT = 3  # copies: parameters and both moments
IN_TRAINING = 4  # copies: parameters, gradients and both moments
UPDATE_LINE = 80  # bytes; a line in the log of updates has more
UNITS = ("kB", "MB", "GB", "TB", "PB")  # of powers of 1000


def n_parameters(config: ModelConfig) -> int:
    """The number of a model's parameters, the classifier included.

    A block has matrices of [D, 3D], [D, D], [D, 4D] and [4D, D], their biases, and two layer norms
    with two vectors each.
    """
    D = config.n_embd
    return config.n_rows * D + config.n_layer * (12 * D**2 + 13 * D) + D + 1


# Memory


def check_memory(config: ModelConfig, device: torch.device, source: str) -> None:
    """See that the machine, and the GPU if there is one, can hold what training must hold.

    It is compared with all the memory there is, not with what is free at the moment.

    Args:
        config: the model's sizes.
        device: where the model is trained. For another device than the CPU, the machine's own
            memory must hold the copy of which a checkpoint is written.
        source: where sizes come from that no flag gives, for the message.

    Raises:
        InputError: one of them cannot.
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
    """Bytes of memory that this process may use at most; None where the system does not say."""
    limits = list(_cgroup_limits(Path("/")))
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's Linux control groups, as containers and Slurm set them.

    A group's limit holds for the groups below it, too. In a container, the path of the group may
    be that outside of it, while the group itself is mounted as the topmost one.

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
                    with suppress(OSError, ValueError):  # there is none, or it is "max"
                        yield int((directory / name).read_text())


# Disks


class Need(NamedTuple):
    """What a run will write into a directory, beyond what it replaces there.

    Attributes:
        flag: the flag that names another directory.
        directory: where the files go; it exists.
        n_bytes: less than 0 if the run frees more than it writes.
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
    n_test: int,
    vocabulary: Sequence[Path] = (),
    resumed: bool,
) -> list[Need]:
    """What a run will need at its fullest moment in each of its directories.

    Args:
        outputs: the run's files.
        n_parameters: of its model.
        n_checkpoints: how many it will write; of them at most
            :data:`gpt1.training.checkpoint.KEPT` + 1 are there at once.
        n_updates: how many it will do.
        n_test: test stories.
        vocabulary: the files that are copied to ``outputs.vocabulary``.
        resumed: whether it goes on from a checkpoint. Otherwise it removes those that are there.
    """
    parameters = FLOAT_BYTES * n_parameters
    old = checkpoint.checkpoints(outputs.directory)
    kept = min(len(old), checkpoint.KEPT) if resumed else 0
    saved = min(n_checkpoints, checkpoint.KEPT + 1 - kept) * IN_CHECKPOINT * parameters
    if not resumed:
        if outputs.settings.submit:
            saved = max(parameters, saved + parameters - _size(outputs.best_params))
        saved -= _size(*outputs.directory.glob("checkpoint-*"))
    if outputs.settings.submit:
        copies = zip(vocabulary, outputs.vocabulary, strict=False)
        saved += sum(max(0, _size(file) - _size(copy)) for file, copy in copies)
    logged = n_updates * UPDATE_LINE - (0 if resumed else _size(outputs.updates))
    needs = [
        Need("--save_dir", outputs.directory, saved),
        Need("--log_dir", outputs.log.parent, logged),
    ]
    if outputs.settings.submit:
        size = len(table([0] * n_test))
        written = (outputs.submission, outputs.last_submission)
        more = sum(max(0, size - _size(path)) for path in written)
        needs.append(Need("--submission_dir", outputs.submission.parent, more))
    return needs


def check_disks(needs: Sequence[Need]) -> None:
    """See that there is room for all of ``needs``; directories on one file system share its room.

    Raises:
        InputError: there is not; says how much is missing where.
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
    """Bytes that may still be written; None where the file system does not say."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError:
        return None
    # Root may fill the part that is reserved, which other users do not count as free.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return (usage.total - usage.used if is_root else usage.free) if usage.total else None


def _size(*paths: Path) -> int:
    """Bytes of those of these files that there are."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def shown(n_bytes: float, to_integer: Callable[[float], int] = math.ceil) -> str:
    """A number of bytes as a message shows it, rounded up unless told otherwise."""
    power = min(max(len(str(int(n_bytes))) - 1, 3) // 3, len(UNITS))
    return f"{to_integer(10 * n_bytes / 1000**power) / 10:.1f} {UNITS[power - 1]}"
