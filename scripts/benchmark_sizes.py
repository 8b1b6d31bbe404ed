"""Cost against size: seconds a story and peak memory of a training step, one axis at a time.

    python scripts/benchmark_sizes.py --json sizes.json

Every case runs in a process of its own: one update that does not count, then two that do. Stories
are random tokens of full length without shared prefixes, so that the sizes are what they say.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import N_VOCAB, Ours, peak_gib, timed

from gpt1.batches import ChoiceArrays
from gpt1.device import keep_freed_memory
from gpt1.model import ModelConfig

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (32, 64, 128, 256, 512)
LAYERS = (3, 6, 12, 24)
BASE = {"batch": 4, "length": 64, "layers": 12}


def cases() -> Iterator[dict[str, int]]:
    """The base, with one axis at a time varied."""
    for axis, values in (("batch", BATCHES), ("length", LENGTHS), ("layers", LAYERS)):
        for value in values:
            if value != BASE[axis] or axis == "batch":
                yield {**BASE, axis: value}


def full_stories(n: int, length: int) -> ChoiceArrays:
    """n stories, both choices of exactly ``length`` random tokens, the last ``_classify_``."""
    rng = np.random.default_rng(0)
    X = np.empty((n, 2, length, 2), np.int32)
    X[..., 0] = rng.integers(1, N_VOCAB, (n, 2, length))
    X[:, :, -1, 0] = N_VOCAB + 2
    X[..., 1] = N_VOCAB + 3 + np.arange(length)
    M = np.ones((n, 2, length), np.float32)
    return ChoiceArrays(X, M, np.zeros(n, np.int32))


def measure(case: dict[str, int], device_name: str, precision: str, pipe: Any) -> None:
    """Send seconds a story and GiB; the body of a process."""
    device = torch.device(device_name)
    if device.type == "cpu":
        keep_freed_memory()
    config = ModelConfig(n_ctx=case["length"], n_layer=case["layers"])
    run = Ours(config, device, share_prefix=False)
    stories = full_stories(case["batch"], case["length"])
    run.train(stories, precision, 1)
    seconds = timed(lambda: [run.train(stories, precision, 1) for _ in range(2)], device) / 2
    pipe.send((seconds / case["batch"], peak_gib(device)))


def in_own_process(case: dict[str, int], device: str, precision: str) -> tuple[float, float] | None:
    """What :func:`measure` sends, or None if the process died, for want of memory."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(case, device, precision, send))
    child.start()
    send.close()
    try:
        found: tuple[float, float] = receive.recv()
    except EOFError:
        return None
    finally:
        child.join()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Cost of a training step against its size.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(argv)
    rows = []
    print("| batch | tokens a choice | layers | s a story | peak GiB |\n|---|---|---|---|---|")
    for case in cases():
        found = in_own_process(case, args.device, args.precision)
        shown = (
            "more memory than there is | |" if found is None else "{:.3f} | {:.1f} |".format(*found)
        )
        print("| {batch} | {length} | {layers} | ".format(**case) + shown, flush=True)
        rows.append({**case, "found": found})
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
