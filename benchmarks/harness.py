"""Functions that all benchmarks share: timing in turns, separate processes, memory, flags.

Other work on a machine changes its speed over time. Therefore the measured functions take turns,
their order is reversed in every other round, and only medians and ratios within one run are
reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gpt1.inference.decoding import PreparedLinear
from gpt1.runtime.device import has_bf16, processor_name
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write

WARM_UP = 2
"""Number of first rounds that do not count; after them a process has allocated all its memory."""

Answer = Callable[..., Any]


def timed(body: Callable[[], Any], device: torch.device | None = None) -> float:
    """Return the seconds until the work of ``body`` is done, on the device too."""
    synchronize(device)
    begin = time.perf_counter()
    body()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device | None) -> None:
    """Wait until a device has finished its work; return at once for a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def matmul_rates(
    device: torch.device, precision: str, *, rows: int = 832, width: int = 768, n_out: int = 40558
) -> dict[str, float]:
    """Measure FLOP/s of the matrix products in GPT-1; a multiply-add counts as two.

    Args:
        device: where the products are computed.
        precision: fp32 or bf16.
        rows: tokens in a product.
        width: the width of the model.
        n_out: the rows of its output matrix.

    Returns:
        The best rate of ``torch.mm`` and, on a CPU where torch has oneDNN, that of oneDNN's product
        with a matrix that was put into oneDNN's own layout before. In bf16, and with some builds of
        torch in fp32, ``torch.mm`` calls oneDNN itself.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best: dict[str, float] = {}
    for k, n in ((width, 4 * width), (4 * width, width), (width, 3 * width), (width, n_out)):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, k), (k, n)))
        out = torch.empty(rows, n, device=device, dtype=dtype)
        products: dict[str, Callable[[], Any]] = {"torch.mm": partial(torch.mm, a, b, out=out)}
        prepared = PreparedLinear(b, None, dtype)
        if prepared.is_packed:
            products["oneDNN"] = partial(prepared.product, a)
        rounds = 10 if device.type == "cpu" else 100
        for name, product in products.items():
            product()
            seconds = min(timed(partial(_repeat, product, rounds), device) for _ in range(3))
            best[name] = max(best.get(name, 0.0), rounds * 2 * rows * k * n / seconds)
    return best


def _repeat(body: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        body()


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Measure the median seconds of several functions, which take turns.

    Args:
        ways: for each name, a function that does the work and returns the seconds it took.
        rounds: number of rounds that count.
        warm_up: number of rounds before them, which do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm_up, rounds):
        names = list(ways) if turn % 2 else list(ways)[::-1]
        for name in names:
            taken = ways[name]()
            if turn >= 0:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Worker:
    """A separate process that answers requests.

    Args:
        start: called once in the process with ``arguments``; returns the function that answers.
        arguments: must be picklable, as ``start`` is.
    """

    def __init__(self, start: Callable[..., Answer], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start, arguments))
        self._process.start()
        theirs.close()

    def ask(self, *request: Any) -> Any:
        """Return the answer, or None if the process was killed, for example without memory."""
        try:
            self._pipe.send(request)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            return None

    def seconds(self, *request: Any) -> float:
        """Return the answer to a request for a number; NaN if the process was killed."""
        answer = self.ask(*request)
        return float("nan") if answer is None else float(answer)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, start: Callable[..., Answer], arguments: Sequence[Any]) -> None:
    answer = start(*arguments)
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(*request))


def peak_gib(device: torch.device | None = None) -> float:
    """Return the peak memory in GiB: that of the device on a GPU, else that of this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # getrusage is not used: its peak includes the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def processor() -> str:
    """Name the processor and the features that decide how fast its matrix products are."""
    bf16 = ", bfloat16" if has_bf16(torch.device("cpu")) else ""
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}{bf16}"


def machine(device: torch.device) -> dict[str, str]:
    """Describe the machine that the figures were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": f"{device} ({name}; {torch.get_num_threads()} threads of {os.cpu_count()} cores)",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the flags of every benchmark: ``--device`` and ``--json``."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--device",
        type=torch.device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, ... [cuda if there is one, else cpu]",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return made


def positive(text: str) -> int:
    """Convert an argument to a whole number that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def write_json(path: Path | None, figures: Any) -> None:
    """Write the figures, if a path is given."""
    if path is not None:
        with atomic_write(path, "w") as file:
            file.write(json.dumps(figures, indent=1) + "\n")


def require_transformers() -> Any:
    """Import and return transformers, with which gpt1 is compared.

    Raises:
        InputError: transformers is not installed; the message says how to install it.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "transformers is missing, which ours is compared with: pip install -e '.[bench]'"
        ) from error
    return transformers
