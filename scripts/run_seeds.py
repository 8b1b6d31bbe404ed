"""Run a fine-tuning with several seeds and say how its test accuracy varies.

    python scripts/run_seeds.py --seeds 10 --data_dir data --model_dir model
    python scripts/run_seeds.py --seeds 5 --desc scratch --n_transfer -1

All other flags go to `gpt1.train` as they are. Each run has a name of its own (`DESC-seed3`). A run
that is done is not done again, and one that was interrupted goes on: start the same command once
more. On a machine with several GPUs as many runs go on at once, one on each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from gpt1.datasets import story_cloze as datasets
from gpt1.reports.analysis import identify_run
from gpt1.reports.statistics import wilson_interval
from gpt1.runtime.errors import Gpt1Error, InputError, report_errors
from gpt1.settings import training as settings
from gpt1.settings.training import Settings, find_sources
from gpt1.training.log_lines import read_run_log
from gpt1.training.outputs import Outputs
from gpt1.training.submissions import read_submission

TRAIN = [sys.executable, "-m", "gpt1.train"]


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed: its flags and where its results go."""

    seed: int
    flags: list[str]

    @property
    def settings(self) -> Settings:
        """What its flags say."""
        return settings.parse(self.flags, "run_seeds")

    def is_done(self) -> bool:
        """Whether its submission is there, from a run with these flags.

        A submission that is certainly of an earlier run of this name does not count.

        Raises:
            InputError: a run of this name was made with other flags.
        """
        outputs = Outputs(self.settings)
        if not (outputs.submission.is_file() and outputs.log.is_file()):
            return False
        with open(outputs.log, encoding="utf-8") as file:
            made_with = json.loads(file.readline())
        asked = {name: getattr(self.settings, name) for name in self.settings.given - {"resume"}}
        other = sorted(name for name in asked if made_with.get(name) != asked[name])
        if other:
            raise InputError(
                f"{outputs.log}: this run was made with another {', '.join(other)}; give another "
                "--desc, or remove the old results"
            )
        try:
            identify_run(
                outputs.submission, read_submission(outputs.submission), read_run_log(outputs.log)
            )
        except InputError:  # it was started again since, and has not come to its end
            return False
        return True

    def run(self, gpu: int | None) -> None:
        """Train, or go on with it; its output goes to a file beside the log.

        Raises:
            Gpt1Error: it failed; names the file that says why.
        """
        outputs = Outputs(self.settings)
        console = outputs.log.with_suffix(".console.txt")
        console.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        with open(console, "a", encoding="utf-8") as file:
            status = subprocess.call(
                [*TRAIN, *self.flags], stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        if status:
            raise Gpt1Error(
                f"seed {self.seed}: the run ended with status {status}; see {console}, then start "
                "this command again: what is done is kept"
            )

    def n_right(self, labels: Sequence[int]) -> int:
        """Test stories that its submission gets right."""
        submission = read_submission(Outputs(self.settings).submission)
        return sum(own == label for own, label in zip(submission, labels, strict=True))


def seed_runs(args: argparse.Namespace, rest: Sequence[str]) -> list[SeedRun]:
    """The runs that the command line asks for, its training flags checked."""
    given = settings.parse(rest, "run_seeds")
    refused = sorted({"seed", "submit", "resume", "desc"} & given.given)
    if refused:
        raise InputError(f"--{refused[0]}: is set by this script for each run; leave it out")
    base = given.desc or args.desc or given.dataset
    runs = []
    for seed in range(args.first, args.first + args.seeds):
        name = f"{base}-seed{seed}"
        own = ["--desc", name, "--seed", str(seed), "--submit", "--resume"]
        runs.append(SeedRun(seed, [*rest, *own]))
    return runs


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """An interval for the median of all seeds, free of assumptions on their distribution.

    The i-th lowest and i-th highest of n values enclose the median unless at most i - 1 of n fair
    coins fall to one side. None if n is too small for the level even with i = 1.
    """
    n, ordered, best = len(values), sorted(values), None
    for i in range(1, n // 2 + 1):
        outside = 2 * sum(math.comb(n, k) for k in range(i)) / 2**n
        if outside <= 1 - level:
            best = (ordered[i - 1], ordered[n - i])
    return best


def report(runs: Sequence[SeedRun], n_right: Sequence[int], n: int) -> str:
    """Each accuracy, the median, the range and what of it is chance, in percent."""
    found = [100 * k / n for k in n_right]
    lines = [f"seed {run.seed}: {value:.2f}" for run, value in zip(runs, found, strict=True)]
    median = statistics.median(found)
    lines.append(
        f"median {median:.2f}, range {min(found):.2f} to {max(found):.2f} ({len(found)} runs)"
    )
    interval = median_interval(found)
    if interval is None:
        lines.append("95 % interval of the median over seeds: needs 6 runs or more")
    else:
        low, high = interval
        lines.append(f"95 % interval of the median over seeds: {low:.2f} to {high:.2f}")
    low, high = (100 * end for end in wilson_interval(round(median * n / 100), n))
    lines.append(f"95 % interval from the choice of the {n} test stories: {low:.2f} to {high:.2f}")
    return "\n".join(lines)


def run_all(runs: Sequence[SeedRun], jobs: int, n_gpus: int) -> None:
    """Do what is not done yet, ``jobs`` at a time, each on a GPU of its own if there are some."""
    gpus: SimpleQueue[int | None] = SimpleQueue()
    for job in range(jobs):
        gpus.put(job % n_gpus if n_gpus > 1 else None)
    failed = threading.Event()

    def one(run: SeedRun) -> None:
        if failed.is_set():
            return
        if run.is_done():
            print(f"seed {run.seed}: done already", file=sys.stderr)
            return
        gpu = gpus.get()
        try:
            run.run(gpu)
        except Gpt1Error:
            failed.set()  # no further run is begun
            raise
        finally:
            gpus.put(gpu)
        print(f"seed {run.seed}: done", file=sys.stderr)

    with ThreadPoolExecutor(jobs) as pool:
        for outcome in [pool.submit(one, run) for run in runs]:
            outcome.result()


def count_gpus() -> int:
    """GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return report_errors("run_seeds", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many runs [10]")
    parser.add_argument("--first", type=int, default=1, help="the first seed [1]")
    parser.add_argument("--desc", help="name that those of the runs begin with [the data set]")
    parser.add_argument("--jobs", type=int, help="runs at once [one on each GPU, or one]")
    args, rest = parser.parse_known_args(argv)
    if args.seeds < 1 or args.first < 0:
        raise InputError("--seeds must be at least 1 and --first at least 0")
    runs = seed_runs(args, rest)
    sources = find_sources(runs[0].settings, (datasets.VALIDATION_CSV, datasets.TEST_CSV))
    n_gpus = count_gpus()
    run_all(runs, args.jobs or max(1, n_gpus), n_gpus)
    labels = datasets.read_cloze(sources.data_dir / datasets.TEST_CSV).labels
    print(report(runs, [run.n_right(labels) for run in runs], len(labels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
