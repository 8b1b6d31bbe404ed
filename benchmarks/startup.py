"""How fast the program answers, and how fast and frugally the released weights load.

    python scripts/benchmark_startup.py

Writes a checkpoint of the real size (466 MB of random numbers) into a temporary directory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gpt1 import weights
from gpt1.model import ModelConfig

LOAD = "load"  # the argument with which this script measures itself
N_SPECIAL = 3


def write_checkpoint(directory: Path) -> int:
    """Random weights of the paper's size; returns their size in bytes."""
    config = ModelConfig(n_ctx=512)
    rng = np.random.default_rng(0)
    params = {
        name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in weights.parameter_shapes(config).items()
    }
    weights.save_released(directory, params, n_vocab=config.n_vocab, n_head=config.n_head)
    return sum(path.stat().st_size for path in directory.glob("params_*.npy"))


def measure_load(directory: Path) -> None:
    """Print seconds and the memory that loading took beyond the imports, in bytes."""
    before = peak_memory()
    special = np.zeros((N_SPECIAL, 768), np.float32)
    begin = time.perf_counter()
    weights.load_released(directory, special=special, n_ctx=512)
    seconds = time.perf_counter() - begin
    print(seconds, peak_memory() - before)


def peak_memory() -> int:
    """Bytes at this program's highest point (Linux; getrusage counts what started it, too)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def seconds_of(command: list[str], rounds: int = 5) -> float:
    """Median of several runs."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main() -> int:
    """Measure in processes of their own; returns the exit status."""
    if sys.argv[1:2] == [LOAD]:
        measure_load(Path(sys.argv[2]))
        return 0
    print(f"--help: {seconds_of([sys.executable, '-m', 'gpt1.train', '--help']):.2f} s")
    with tempfile.TemporaryDirectory() as place:
        size = write_checkpoint(Path(place))
        found = [
            subprocess.run(
                [sys.executable, __file__, LOAD, place], check=True, capture_output=True, text=True
            ).stdout.split()
            for _ in range(3)
        ]
    seconds = statistics.median(float(each[0]) for each in found)
    memory = max(float(each[1]) for each in found)
    print(f"released weights ({size / 1e6:.0f} MB): {seconds:.2f} s, {memory / size:.2f} times "
          "their size in memory")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
