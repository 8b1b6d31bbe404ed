"""Measure how fast TextEncoder encodes ROCStories, and a plain implementation for comparison.

    python -m benchmarks.text --data_dir data/ --model_dir model/

There are three figures, each the median of several rounds, in processor seconds of one core:

    plain   ftfy, regular expressions, spaCy and remembered words, text by text
    cold    encode() of an encoder that has seen nothing
    warm    encode() again, after the encoder has seen every word

Every round uses new encoders; the time to make them is not counted.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import in_turns, parser, positive, processor, write_json
from gpt1.datasets.story_cloze import TEST_CSV, VALIDATION_CSV, read_cloze
from gpt1.runtime.errors import report_errors
from gpt1.text_utils.encoder import TextEncoder

Ids = list[list[int]]


def read_texts(data_dir: Path) -> list[str]:
    """Read the story and both endings of each row of both cloze CSVs."""
    splits = [read_cloze(data_dir / name) for name in (VALIDATION_CSV, TEST_CSV)]
    return [
        text
        for split in splits
        for row in zip(split.stories, split.endings1, split.endings2, strict=True)
        for text in row
    ]


def processor_seconds(body: Callable[[], Ids], expected: Ids) -> float:
    """Return the processor seconds of ``body``; earlier garbage is collected before it.

    Args:
        body: returns token ids.
        expected: the ids that ``body`` must return.
    """
    gc.collect()
    start = time.process_time()
    ids = body()
    taken = time.process_time() - start
    assert ids == expected, "other ids than the plain way"
    return taken


def run(args: argparse.Namespace) -> int:
    """Measure and print the figures, and check that all three ways give the same ids."""
    texts = read_texts(args.data_dir)

    def new_encoder() -> TextEncoder:
        return TextEncoder(
            args.model_dir / "encoder_bpe_40000.json", args.model_dir / "vocab_40000.bpe"
        )

    expected = new_encoder().encode(texts, verbose=False)
    warm_encoder = new_encoder()
    warm_encoder.encode(texts, verbose=False)

    def plain() -> float:
        encoder = new_encoder()
        return processor_seconds(lambda: [encoder._encode_directly(t) for t in texts], expected)

    def cold() -> float:
        encoder = new_encoder()
        return processor_seconds(lambda: encoder.encode(texts, verbose=False), expected)

    def warm() -> float:
        return processor_seconds(lambda: warm_encoder.encode(texts, verbose=False), expected)

    seconds = in_turns({"plain": plain, "cold": cold, "warm": warm}, args.rounds, warm_up=0)
    n_tokens = sum(map(len, expected))
    print(f"{len(texts)} texts, {n_tokens} tokens, median of {args.rounds} rounds, {processor()}")
    for name, value in seconds.items():
        rate, times = n_tokens / value, seconds["plain"] / value
        print(f"{name:6s} {value:7.3f} s {rate:10.0f} tokens/s {times:6.2f} x plain")
    write_json(args.json, {"processor": processor(), "tokens": n_tokens, **seconds})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("--data_dir", type=Path, default=Path("data/"))
    flags.add_argument("--model_dir", type=Path, default=Path("model/"))
    flags.add_argument("--rounds", type=positive, default=5)
    return report_errors("benchmarks.text", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
