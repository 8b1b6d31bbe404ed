#!/usr/bin/env python3
"""How fast TextEncoder is on ROCStories, beside the plain way to the same ids.

Three figures, each the best of some rounds, on one core (tokens a second, and how many times
the first figure):

    plain   ftfy, regular expressions, spaCy and remembered words, text by text
    cold    encode() of an encoder that has seen nothing
    warm    encode() again, every piece seen before

Every round uses new encoders; making them is not counted.

    python scripts/benchmark_text.py --data_dir data/ --model_dir model/
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpt1.errors import InputError, report_errors
from gpt1.text_utils import TextEncoder


def read_texts(data_dir: Path) -> list[str]:
    """The story and both endings of each row of both cloze CSVs."""
    texts = []
    for split in ("val", "test"):
        paths = sorted(data_dir.glob(f"cloze_test_{split}__*.csv"))
        if not paths:
            raise InputError(
                f"{data_dir}: no cloze_test_{split}__*.csv here; name the directory of the "
                "ROCStories CSVs with --data_dir."
            )
        with paths[0].open(encoding="utf-8-sig", newline="") as file:
            for row in list(csv.reader(file))[1:]:
                texts += [" ".join(row[1:5]), row[5], row[6]]
    return texts


def timed(body: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Processor seconds taken, and the ids; earlier garbage is not charged to it."""
    gc.collect()
    start = time.process_time()
    ids = body()
    return time.process_time() - start, ids


def benchmark(texts: list[str], model_dir: Path, rounds: int) -> dict[str, float]:
    """Seconds of the best round of each way; the ids must be the same in all of them."""

    def new_encoder() -> TextEncoder:
        return TextEncoder(model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe")

    best = dict.fromkeys(("plain", "cold", "warm"), float("inf"))
    n_tokens = 0
    for _ in range(rounds):
        plain, fast = new_encoder(), new_encoder()
        ways: dict[str, Callable[[], list[list[int]]]] = {
            "plain": lambda plain=plain: [plain._encode_directly(text) for text in texts],
            "cold": lambda fast=fast: fast.encode(texts, verbose=False),
            "warm": lambda fast=fast: fast.encode(texts, verbose=False),
        }
        expected = None
        for name, way in ways.items():
            seconds, ids = timed(way)
            expected = expected or ids
            assert ids == expected, f"{name}: other ids than the plain way"
            best[name] = min(best[name], seconds)
            n_tokens = sum(map(len, ids))
    print(f"{len(texts)} texts, {n_tokens} tokens, best of {rounds} rounds")
    for name, seconds in best.items():
        ratio = best["plain"] / seconds
        print(
            f"{name:6s} {seconds:7.3f} s {n_tokens / seconds:10.0f} tokens/s {ratio:6.2f} x plain"
        )
    return best


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=Path("data/"))
    parser.add_argument("--model_dir", type=Path, default=Path("model/"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise InputError(f"--rounds {arguments.rounds}: expected 1 or more.")
    benchmark(read_texts(arguments.data_dir), arguments.model_dir, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors("benchmark_text.py", main))
