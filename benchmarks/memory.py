"""Measure the peak memory of one update on the longest sequences, and compare it with the estimate.

    python -m benchmarks.memory                    # RACE's shape: 32 examples of 4 * 512 tokens
    python -m benchmarks.memory --dataset race --data_dir data/race --model_dir model
    python -m benchmarks.memory --answers 2 --length 77 --recompute no
    python -m benchmarks.memory --towers 2         # the same peak in half the time

The model has GPT-1's size and fresh weights, and the flags are those of a default run: 4 towers of
8 examples, fp32. From the second tower on the gradients of the earlier ones are in memory, so that
more towers do not raise the peak. ``--recompute auto`` decides as a run does. With ``--dataset``
the batch is made of the longest examples of the real training split, else of random tokens of full
length.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import machine, parser, peak_gib, positive, synchronize, write_json
from benchmarks.training import N_VOCAB, Ours
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.task_data import load_task_data
from gpt1.datasets import TASKS
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.device import keep_freed_memory, return_large_blocks
from gpt1.runtime.errors import report_errors
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens
from gpt1.training.capacity import USABLE, Attention, largest_tower, memory_of, training_memory
from gpt1.weights.locate import vocabulary_files

MODES = {"no": False, "yes": True}


def random_split(n: int, answers: int, length: int) -> EncodedSplit:
    """Make n examples whose answers all have ``length`` random tokens, ``_classify_`` last."""
    ids = np.random.default_rng(0).integers(1, N_VOCAB, (n, answers, length))
    ids[:, :, -1] = N_VOCAB + 2
    return EncodedSplit.of(ids.tolist(), SpecialTokens.after(N_VOCAB), [0] * n)


def real_split(args: argparse.Namespace) -> EncodedSplit:
    """Return the longest examples of the training split of a data set."""
    encoder = TextEncoder(*vocabulary_files(args.model_dir))
    task = TASKS[args.dataset]
    data = load_task_data(task, task.folder(args.data_dir), encoder, n_ctx=args.length)
    longest = np.argsort(data.train.lengths.sum(1), kind="stable")[-args.batch * args.towers :]
    return data.train.take(longest)


def run(args: argparse.Namespace) -> int:
    """Make one update, and print its peak memory, its time and the estimates."""
    if args.device.type == "cpu":
        keep_freed_memory()
    split = (
        real_split(args)
        if args.dataset
        else random_split(args.batch * args.towers, args.answers, args.length)
    )
    config = ModelConfig(n_ctx=split.longest, n_layer=args.layers)
    estimates = {
        mode: training_memory(
            config,
            largest_tower(split, args.batch),
            recompute=recompute,
            precision=args.precision,
            attention=Attention.NOTHING if args.device.type == "cuda" else Attention.WEIGHTS,
        )
        for mode, recompute in MODES.items()
    }
    there = memory_of(args.device)
    fits = there is None or estimates["no"] <= USABLE * there
    mode = ("no" if fits else "yes") if args.recompute == "auto" else args.recompute
    ours = Ours(config, args.device, share_prefix=False)
    if MODES[mode]:
        ours.model.recompute = True
        return_large_blocks()
    before, begin = peak_gib(args.device), time.perf_counter()
    ours.train(split, args.precision, args.towers)
    synchronize(args.device)
    figures = {
        **machine(args.device),
        "tokens": len(split.ids),
        "longest": split.longest,
        "recompute": mode,
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_gib": round(peak_gib(args.device), 2),
        "peak_gib_before": round(before, 2),
        **{f"estimated_gib_{mode}": round(n / 2**30, 2) for mode, n in estimates.items()},
    }
    print("\n".join(f"{name:20s} {value}" for name, value in figures.items()))
    write_json(args.json, figures)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", choices=list(TASKS), help="use the real data of this set")
    flags.add_argument("--data_dir", type=Path, default=Path("data/"))
    flags.add_argument("--model_dir", type=Path, default=Path("model/"))
    flags.add_argument("--batch", type=positive, default=8, help="examples per tower [8]")
    flags.add_argument("--towers", type=positive, default=4)
    flags.add_argument("--answers", type=positive, default=4)
    flags.add_argument("--length", type=positive, default=512)
    flags.add_argument("--layers", type=positive, default=12)
    flags.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    flags.add_argument("--recompute", default="auto", choices=["auto", *MODES])
    return report_errors("benchmarks.memory", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
