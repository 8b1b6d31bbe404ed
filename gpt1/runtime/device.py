"""The device that a process computes on: its choice, precision, memory and determinism."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt1.runtime.errors import InputError


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """Return the device that ``--device`` names, or the default: CUDA if there is one, else CPU.

    Args:
        name: a device as torch names it (``cuda:1``), or None for the default.
        local_rank: this process's number on its machine, which selects its GPU.

    Raises:
        InputError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: cannot be used on this machine: {reason}") from error
    if device.type == "meta":
        raise InputError(
            "--device meta: tensors on this device have no numbers; use cpu, cuda or mps"
        )
    return device


def available_devices() -> list[str]:
    """Return the devices of this machine as ``--device`` takes them, GPUs with their names."""
    gpus = [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *gpus, *mps]


def check_precision(precision: str, device: torch.device) -> None:
    """Check that ``device`` supports the value of ``--precision``.

    Raises:
        InputError: the device does not support it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            f"--precision tf32: needs a CUDA device, and this run is on {device.type}; "
            "use fp32 or bf16"
        )


def set_matmul_precision(precision: str) -> None:
    """Allow TF32 in float32 matrix products if ``--precision`` is tf32, and forbid it otherwise.

    This setting holds for the whole process.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def has_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products are faster on ``device`` than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products are computed in bfloat16 if ``precision`` is bf16.

    Parameters, optimizer state and reductions stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Ask glibc, if it is the C library, to keep large freed blocks of memory for reuse.

    By default glibc returns every freed block above 32 MiB to the system. A training step on the
    CPU would then spend much of its time in page faults, for tensors of the same sizes each time.
    """
    m_trim_threshold, m_mmap_max, never = -1, -4, -1
    _mallopt((m_mmap_max, 0), (m_trim_threshold, never))


def return_large_blocks() -> None:
    """Ask glibc to return freed blocks above 4 MiB to the system.

    This undoes most of :func:`keep_freed_memory`. A block that is kept for reuse can only
    serve for blocks that are not larger. With activations of many sizes, some of which stay in
    memory while others come and go, the process would grow to more than twice what it uses.
    """
    m_mmap_threshold, m_mmap_max = -3, -4
    _mallopt((m_mmap_max, 1 << 16), (m_mmap_threshold, 4 << 20))


def _mallopt(*options: tuple[int, int]) -> None:
    """Set options of glibc's memory allocation, if glibc is the C library."""
    with suppress(OSError, AttributeError):  # With another C library the program is slower.
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options:
            libc.mallopt(option, value)


def set_up(device: torch.device, *, precision: str, deterministic: bool) -> None:
    """Set the arithmetic and the memory of this process for training.

    Args:
        device: the device that trains.
        precision: a value of ``--precision``.
        deterministic: whether every run gives the same bits on a GPU too.

    Raises:
        InputError: the device has no such precision.
    """
    check_precision(precision, device)
    set_matmul_precision(precision)
    if device.type == "cpu":
        keep_freed_memory()
    elif deterministic:
        make_deterministic()


def make_deterministic() -> None:
    """Ask torch for GPU kernels whose results are the same bits every time.

    This setting holds for the whole process. CPU kernels are deterministic without it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # No uninitialized memory is ever read.
    torch.backends.cudnn.benchmark = False
    # The backward passes of these attention kernels add numbers in no fixed order.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def environment(device: torch.device, world: int) -> dict[str, str | int]:
    """Describe everything but the settings that the bits of a run's results depend on.

    Sums are split among threads and processes, and each kind of processor or GPU, and each
    version of a library, may add numbers in another order.

    Args:
        device: the device that the run computes on.
        world: the number of processes.

    Returns:
        Values by the names that messages use, such as "the number of threads".
    """
    is_cuda = device.type == "cuda"
    found: dict[str, str | int] = {
        "the device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "the number of processes": world,
        "torch's version": str(torch.__version__),
        "NumPy's version": np.__version__,
    }
    if device.type == "cpu":
        with_bf16 = " with bfloat16" if has_bf16(device) else ""
        found |= {
            "the processor": processor_name(),
            "the processor's instruction set": torch.backends.cpu.get_cpu_capability() + with_bf16,
            "the number of threads": torch.get_num_threads(),
        }
    return found


def processor_name() -> str:
    """Return the processor's name as Linux gives it, or its architecture."""
    with suppress(OSError):
        name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if name:
            return name[1]
    return platform.machine()
