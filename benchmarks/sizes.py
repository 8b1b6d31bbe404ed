"""Measure seconds per story and peak memory of a training step, one axis of the size at a time.

    python -m benchmarks.sizes --json out/sizes.json

Every case runs in a separate process: one update that does not count, then two that do. Stories are
random tokens of full length without shared prefixes, so that no computation is saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.harness import Worker, machine, parser, peak_gib, timed, write_json
from benchmarks.training import N_VOCAB, Ours
from gpt1.batches.arrays import ChoiceArrays, to_arrays
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.device import keep_freed_memory
from gpt1.runtime.errors import report_errors
from gpt1.text_utils.special import SpecialTokens

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (32, 64, 128, 256, 512)
LAYERS = (3, 6, 12, 24)
BASE = {"batch": 4, "length": 64, "layers": 12}


def cases() -> Iterator[dict[str, int]]:
    """Yield the base case, and cases that differ from it in one size."""
    for axis, values in (("batch", BATCHES), ("length", LENGTHS), ("layers", LAYERS)):
        for value in values:
            if value != BASE[axis] or axis == "batch":
                yield {**BASE, axis: value}


def full_stories(n: int, length: int) -> ChoiceArrays:
    """Make n stories whose two choices have ``length`` random tokens with ``_classify_`` last."""
    rng = np.random.default_rng(0)
    special = SpecialTokens.after(N_VOCAB)
    ids = rng.integers(1, N_VOCAB, (n, 2, length))
    ids[..., -1] = special.classify
    return to_arrays(ids.tolist(), special, n_ctx=length, labels=[0] * n)


def measure(
    case: dict[str, int], device: torch.device, precision: str
) -> Callable[[], tuple[float, float]]:
    """Prepare a case in its process; return a function that measures seconds per story and GiB."""
    if device.type == "cpu":
        keep_freed_memory()
    config = ModelConfig(n_ctx=case["length"], n_layer=case["layers"])
    ours = Ours(config, device, share_prefix=False)
    stories = full_stories(case["batch"], case["length"])

    def answer() -> tuple[float, float]:
        _, *seconds = [timed(partial(ours.train, stories, precision, 1), device) for _ in range(3)]
        return sum(seconds) / len(seconds) / case["batch"], peak_gib(device)

    return answer


def run(args: argparse.Namespace) -> int:
    """Measure every case, print a table and write the JSON file."""
    rows = []
    print("| batch | tokens per choice | layers | s per story | peak GiB |\n|---|---|---|---|---|")
    for case in cases():
        worker = Worker(measure, case, args.device, args.precision)
        found = worker.ask()
        worker.close()
        shown = (
            "more memory than there is | |" if found is None else "{:.3f} | {:.1f} |".format(*found)
        )
        print("| {batch} | {length} | {layers} | ".format(**case) + shown, flush=True)
        rows.append({**case, "found": found})
    write_json(args.json, {**machine(args.device), "cases": rows})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    return report_errors("benchmarks.sizes", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
