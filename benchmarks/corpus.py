"""Measure how fast a text becomes a corpus on one core and on two, and how byte pairs are learned.

    python -m benchmarks.corpus books.txt --model_dir model/
    python -m benchmarks.corpus books.txt --model_dir model/ --rounds 7 --n_merges 0

Each encoding is a process of its own, as in ``gpt1 corpus``, in which the imports are done before
the clock starts. It may use so many cores and no more. The figures are medians of several rounds,
in which the ways take turns. The processor seconds of all processes together show what the second
core costs, also on a machine that is busy with other work: the time on two free cores is half of
them at least.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness import in_turns, parser, positive, processor, write_json
from gpt1.batches.corpus_making import make_corpus
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.workers import available_cores
from gpt1.text_utils.documents import find_sources
from gpt1.text_utils.vocabulary import RELEASED_NAMES

ONE, TWO, LEARN = "one core", "two cores", "learn on two cores"


def encode(
    texts: Sequence[str], model_dir: Path | None, n_merges: int, n_cores: int
) -> list[float]:
    """Make a corpus in a child process, which starts a process per core.

    Returns:
        Wall seconds, processor seconds of all processes, and the peak memory in MiB of the largest
        one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if sys.platform == "linux":
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            files = None
            if model_dir is not None:
                files = model_dir / RELEASED_NAMES[0], model_dir / RELEASED_NAMES[1]
            make_corpus(
                find_sources(texts),
                Path(directory) / "corpus",
                vocabulary=files,
                n_merges=n_merges,
                held_out=0.01,
                n_processes=n_cores,
            )
        wall = time.perf_counter() - begin
        own, others = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        cpu = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
        os.write(writer, f"{wall} {cpu} {max(own.ru_maxrss, others.ru_maxrss) / 1024}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        figures = [float(word) for word in pipe.read().split()]
    os.waitpid(child, 0)
    return figures


def run(args: argparse.Namespace) -> int:
    """Measure and print the figures."""
    n_bytes = sum(each.n_bytes for each in find_sources(args.texts))
    if available_cores() < 2:
        raise InputError("this process may use one core alone; allow it two (taskset)")
    cpu: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}

    def way(name: str, model_dir: Path | None, n_cores: int) -> float:
        wall, seconds, mib = encode(args.texts, model_dir, args.n_merges, n_cores)
        cpu.setdefault(name, []).append(seconds)
        memory.setdefault(name, []).append(mib)
        return wall

    ways = {ONE: partial(way, ONE, args.model_dir, 1), TWO: partial(way, TWO, args.model_dir, 2)}
    if args.n_merges:
        ways[LEARN] = partial(way, LEARN, None, 2)
    seconds = in_turns(ways, args.rounds, warm_up=0)
    print(f"{n_bytes} bytes, median of {args.rounds} rounds, {processor()}")
    for name, value in seconds.items():
        print(
            f"{name:20s} {value:7.2f} s, {n_bytes / value / 1e6:6.2f} MB/s, "
            f"{median(cpu[name]):7.2f} processor seconds, {max(memory[name]):6.0f} MiB"
        )
    ratios = {
        "times as fast": seconds[ONE] / seconds[TWO],
        "times as fast at most, by processor seconds": 2 * median(cpu[ONE]) / median(cpu[TWO]),
    }
    for name, ratio in ratios.items():
        print(f"two cores are {ratio:.2f} {name}")
    figures = {"processor": processor(), "bytes": n_bytes, **seconds, **ratios}
    write_json(args.json, {**figures, "processor_seconds": cpu, "mib": memory})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("texts", nargs="+", metavar="FILE")
    flags.add_argument("--model_dir", type=Path, default=Path("model/"))
    flags.add_argument(
        "--n_merges",
        type=int,
        default=8000,
        help="to learn in the last way; 0 leaves it out [8000]",
    )
    flags.add_argument("--rounds", type=positive, default=3)
    return report_errors("benchmarks.corpus", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
