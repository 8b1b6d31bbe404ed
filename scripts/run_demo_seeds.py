"""Run the demo with several seeds, with and without transfer: the figures in README.md.

python scripts/run_demo_seeds.py --seeds 5
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpt1 import train
from gpt1.analysis import read_submission
from gpt1.datasets import TEST_CSV, read_cloze

KINDS = {"with transfer": [], "--n_transfer -1": ["--n_transfer", "-1"]}


def accuracy(seed: int, flags: Sequence[str]) -> float:
    """Test accuracy in percent of one run of the demo."""
    with tempfile.TemporaryDirectory() as place:
        places = [f"--{kind}_dir={place}/{kind}" for kind in ("log", "save", "submission")]
        command = ["--submit", "--seed", str(seed), *places, *flags]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(sys.stdout):
            status = train.main(command)
        if status:
            raise SystemExit(status)
        submission = read_submission(Path(place) / "submission" / "ROCStories.tsv")
    labels = read_cloze(Path("data/demo") / TEST_CSV).labels
    right = sum(own == label for own, label in zip(submission, labels, strict=True))
    return 100 * right / len(labels)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="The demo with several seeds.")
    parser.add_argument("--seeds", type=int, default=5, help="how many: 1, 2, 3, ...")
    args = parser.parse_args(argv)
    medians = []
    for name, flags in KINDS.items():
        found = [accuracy(seed, flags) for seed in range(1, args.seeds + 1)]
        medians.append(statistics.median(found))
        shown = " ".join(f"{value:.2f}" for value in found)
        print(
            f"{name}: median {medians[-1]:.2f}, {min(found):.2f} to {max(found):.2f} ({shown})",
            flush=True,
        )
    print(f"difference of the medians: {medians[0] - medians[1]:.2f} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
