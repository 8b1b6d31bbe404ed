"""Measure how much rounding changes a run: train twice, with one difference.

The difference is the precision, or the number of threads, which changes the order of sums.

    python scripts/compare_precision.py                          # the bundled demo, fp32 and bf16
    python scripts/compare_precision.py --data_dir data --model_dir model --precisions fp32 tf32
    python scripts/compare_precision.py --threads 1 2            # one thread and two, in fp32

All other flags are those of `gpt1 train`. The program prints the differences of costs and
scores, and the number of predictions that differ.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from gpt1.settings.training import parse
from gpt1.training.runs import Result, fine_tune

Figures = Mapping[str, Any]


class Variant(NamedTuple):
    """One of the two runs: its title, its flags, and its number of threads [torch's default]."""

    name: str
    flags: dict[str, Any]
    threads: int | None = None


@contextlib.contextmanager
def on_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with this number of threads within the block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcome(variant: Variant, flags: Mapping[str, Any]) -> Result:
    """Train one variant in a temporary directory, and return its results."""
    with tempfile.TemporaryDirectory() as place, on_threads(variant.threads):
        places = {f"{kind}_dir": f"{place}/{kind}" for kind in ("log", "save", "submission")}
        return fine_tune(verbose=False, **{**flags, **places, **variant.flags})


def distance(name: str, ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """Return a line with the mean and the largest difference of a figure between two logs."""
    gaps = [abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)]
    return f"{name:10} mean {sum(gaps) / len(gaps):.2e}, at most {max(gaps):.2e}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--precisions", nargs=2, default=["fp32", "bf16"], help="which two [fp32 bf16]"
    )
    parser.add_argument(
        "--threads", nargs=2, type=int, metavar="N", help="compare these numbers of threads instead"
    )
    args, rest = parser.parse_known_args(argv)
    if args.threads is None:
        variants = [Variant(name, {"precision": name}) for name in args.precisions]
    elif min(args.threads) < 1:
        parser.error("--threads: a run needs at least one thread")
    else:
        variants = [Variant(f"threads {n}", {}, n) for n in args.threads]
    given = parse(rest)
    if given.n_iter == 0:
        parser.error("--n_iter 0: without updates there is nothing to compare")
    flags = {name: getattr(given, name) for name in given.given}
    one, two = (outcome(variant, flags) for variant in variants)
    print(f"{variants[1].name} against {variants[0].name}, {len(one.updates)} updates:")
    updates = [[asdict(line) for line in run.updates] for run in (two, one)]
    costs = ["clf_cost", *(["lm_cost"] if one.updates[0].lm_cost is not None else [])]
    for name in costs:
        print(distance(name, *updates))
    print(f"{len(one.evaluations)} evaluations:")
    evaluations = [[found.figures for found in run.evaluations] for run in (two, one)]
    for name in evaluations[0][0]:
        print(distance(name, *evaluations))
    first, second = (next(iter(run.predictions.values())) for run in (one, two))
    other, n = int((first != second).sum()), len(first)
    print(f"predictions that differ: {other} of {n} ({100 * other / n:.1f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
