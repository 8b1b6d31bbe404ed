"""How far bfloat16 moves a run: the same training in two precisions, side by side.

    python scripts/compare_precision.py                          # the bundled demo
    python scripts/compare_precision.py --data_dir data --model_dir model --precisions fp32 tf32

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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from gpt1 import train
from gpt1.analysis import read_submission
from gpt1.runs import read_updates


class Outcome(NamedTuple):
    """The evaluations, updates and predictions of a run."""

    evaluations: list[dict[str, Any]]
    updates: list[dict[str, Any]]
    predictions: list[int]


def outcome(precision: str, flags: Sequence[str]) -> Outcome:
    """Train in a precision and read what the run leaves."""
    with tempfile.TemporaryDirectory() as place:
        places = [f"--{kind}_dir={place}/{kind}" for kind in ("log", "save", "submission")]
        command = ["--submit", "--precision", precision, "--desc", "run", *places, *flags]
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
    args, flags = parser.parse_known_args(argv)
    one, two = (outcome(precision, flags) for precision in args.precisions)
    print(f"{args.precisions[1]} against {args.precisions[0]}, {len(one.updates)} updates:")
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
