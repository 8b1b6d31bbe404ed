"""Measure how fast ``--help`` answers, and the time and memory that loading the weights takes.

    python -m benchmarks.startup

Writes a checkpoint of the real size (466 MB of random numbers) into a temporary directory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Worker, in_turns, parser, peak_gib, timed, write_json
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import report_errors
from gpt1.weights.parameters import parameter_shapes
from gpt1.weights.released import load_released, save_released

ROUNDS, LOADS = 5, 3
HELP = [sys.executable, "-m", "gpt1.train", "--help"]


def write_checkpoint(directory: Path) -> int:
    """Write random weights of the paper's size; return their size in bytes."""
    config = ModelConfig(n_ctx=512)
    rng = np.random.default_rng(0)
    params = {
        name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in parameter_shapes(config).items()
    }
    save_released(directory, params, n_vocab=config.n_vocab, n_head=config.n_head)
    return sum(path.stat().st_size for path in directory.glob("params_*.npy"))


def loading(directory: Path) -> Callable[[], tuple[float, float]]:
    """Prepare a process; return a function that measures the seconds and GiB of loading.

    The memory that the imports take is not counted.
    """
    before = peak_gib()
    special = np.zeros((ModelConfig().n_special, 768), np.float32)

    def answer() -> tuple[float, float]:
        body = partial(load_released, directory, special=special, n_ctx=512, n_transfer=12)
        return timed(body), peak_gib() - before

    return answer


def run(args: argparse.Namespace) -> int:
    """Measure in separate processes, and print the figures."""
    command = partial(subprocess.run, HELP, check=True, stdout=subprocess.DEVNULL)
    help_seconds = in_turns({"--help": lambda: timed(command)}, ROUNDS)["--help"]
    print(f"--help: {help_seconds:.2f} s")
    found = []
    with tempfile.TemporaryDirectory() as place:
        size = write_checkpoint(Path(place))
        for _ in range(LOADS):
            worker = Worker(loading, Path(place))
            found.append(worker.ask())
            worker.close()
    seconds = statistics.median(each[0] for each in found)
    times = max(each[1] for each in found) * 2**30 / size
    print(f"released weights ({size / 1e6:.0f} MB): {seconds:.2f} s, {times:.2f} times their size")
    write_json(args.json, {"--help": help_seconds, "load": seconds, "times their size": times})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    return report_errors("benchmarks.startup", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
