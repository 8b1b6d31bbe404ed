"""How far rounding moves a run: the same training twice, with one thing different.

What differs is the precision, or the number of threads, which changes the order of sums.

    python scripts/compare_precision.py                          # the bundled demo, fp32 and bf16
    python scripts/compare_precision.py --data_dir data --model_dir model --precisions fp32 tf32
    python scripts/compare_precision.py --threads 1 2            # one thread and two, in fp32

All other flags go to `gpt1.train` as they are. Prints how far costs and accuracies lie apart, and
how many predictions differ.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from gpt1.commands import train
from gpt1.training.log_lines import read_updates
from gpt1.training.submissions import read_submission


class Variant(NamedTuple):
    """One of the two runs: how it is called, its own flags, and its threads [torch's default]."""

    name: str
    flags: list[str]
    threads: int | None = None


class Outcome(NamedTuple):
    """The evaluations, updates and predictions of a run."""

    evaluations: list[dict[str, Any]]
    updates: list[dict[str, Any]]
    predictions: list[int]


@contextlib.contextmanager
def on_threads(number: int | None) -> Iterator[None]:
    """Let torch compute on so many threads within the block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcome(variant: Variant, flags: Sequence[str]) -> Outcome:
    """Train one variant and read what the run leaves."""
    with tempfile.TemporaryDirectory() as place, on_threads(variant.threads):
        places = [f"--{kind}_dir={place}/{kind}" for kind in ("log", "save", "submission")]
        command = ["--submit", "--desc", "run", *places, *variant.flags, *flags]
        with contextlib.redirect_stdout(io.StringIO()):
            status = train.main(command)
        if status:
            raise SystemExit(status)

        log = Path(place) / "log" / "run.jsonl"
        evaluations = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        updates = [asdict(line) for line in read_updates(log.with_name("run.updates.jsonl"))]
        submission = read_submission(Path(place) / "submission" / "ROCStories.tsv")
        return Outcome(evaluations, updates, submission)


def distance(name: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    """The mean and the largest difference of a figure over two logs."""
    gaps = [abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)]
    return f"{name:10} mean {sum(gaps) / len(gaps):.2e}, at most {max(gaps):.2e}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
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
    args, flags = parser.parse_known_args(argv)
    if args.threads is None:
        variants = [Variant(name, ["--precision", name]) for name in args.precisions]
    elif min(args.threads) < 1:
        parser.error("--threads: a run needs at least one thread")
    else:
        variants = [Variant(f"threads {n}", [], n) for n in args.threads]
    one, two = (outcome(variant, flags) for variant in variants)
    if not one.updates:
        parser.error("--n_iter 0: without updates there is nothing to compare")
    print(f"{variants[1].name} against {variants[0].name}, {len(one.updates)} updates:")
    costs = ["clf_cost", *(["lm_cost"] if one.updates[0]["lm_cost"] is not None else [])]
    for name in costs:
        print(distance(name, two.updates, one.updates))
    print(f"{len(one.evaluations)} evaluations:")
    for name in ("tr_cost", "va_cost", "tr_acc", "va_acc"):
        print(distance(name, two.evaluations, one.evaluations))
    other = sum(a != b for a, b in zip(one.predictions, two.predictions, strict=True))
    n = len(one.predictions)
    print(f"predictions that differ: {other} of {n} ({100 * other / n:.1f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
