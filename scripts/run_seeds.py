"""Fine-tune with several seeds and report how the test score varies.

    python scripts/run_seeds.py --seeds 10 --data_dir data --model_dir model
    python scripts/run_seeds.py --seeds 5 --desc scratch --n_transfer -1

All other flags are those of `gpt1 train`. The runs have different names (`DESC-seed3`). If the same
command is started again, finished runs are not repeated and interrupted runs are resumed. On a
machine with several GPUs, that many runs train at once, one on each GPU.

The score is that of the data set's first metric. Where the labels of the test split are hidden, it
is that of the validation split.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gpt1.datasets import find_task
from gpt1.reports.analysis import identify_run
from gpt1.reports.labelled import LabelledSplit, first_labelled
from gpt1.reports.statistics import example_interval, median_interval
from gpt1.results.log_lines import read_run_log
from gpt1.results.outputs import Outputs
from gpt1.results.submissions import read_submission
from gpt1.runtime.errors import InputError, report_errors
from gpt1.settings.training import Settings, from_keywords, parse
from gpt1.tasks.targets import Labels, Target
from gpt1.training.runs import fine_tune
from gpt1.training.sources import find_sources


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed.

    Attributes:
        seed: the seed of the run.
        stem: the stem of the submission that is scored.
        flags: the arguments of :func:`gpt1.training.runs.fine_tune`, by name.
    """

    seed: int
    stem: str
    flags: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """The settings that the flags stand for."""
        return from_keywords(self.flags)

    @property
    def outputs(self) -> Outputs:
        """The files of the run."""
        return Outputs(self.settings, (self.stem,))

    def is_done(self) -> bool:
        """Return whether a run with these flags has written its submission.

        A submission of an earlier run of the same name does not count.

        Raises:
            InputError: the log of this name is of a run with other flags.
        """
        outputs = self.outputs
        if not (outputs.submission.is_file() and outputs.log.is_file()):
            return False
        log = read_run_log(outputs.log)
        free = {"resume", "device"}
        asked = {name: value for name, value in self.flags.items() if name not in free}
        other = sorted(name for name in asked if log.settings.get(name) != asked[name])
        if other:
            raise InputError(
                f"{outputs.log}: this run was made with another {', '.join(other)}; give another "
                "--desc, or remove the old results"
            )
        try:
            identify_run(outputs.submission, log)
        except InputError:  # The run was started again later, and has not finished.
            return False
        return True

    def predictions(self, target: Target) -> Labels:
        """Return the predictions of the submission, [n]."""
        return np.array(read_submission(self.outputs.submission, target))


def seed_runs(args: argparse.Namespace, given: Settings, stem: str) -> list[SeedRun]:
    """Return one run per seed of the command line.

    Args:
        args: the flags of this program.
        given: the flags of training.
        stem: the stem of the submission that is scored.
    """
    flags = {name: getattr(given, name) for name in given.given}
    base = args.desc or given.dataset
    return [
        SeedRun(seed, stem, {**flags, "desc": f"{base}-seed{seed}", "seed": seed, "resume": True})
        for seed in range(args.first, args.first + args.seeds)
    ]


def report(runs: Sequence[SeedRun], split: LabelledSplit) -> str:
    """Return a text with each score in percent, the median, the range and two 95 % intervals."""
    metric, n = split.task.metrics[0], len(split.labels)
    predictions = [run.predictions(split.task.target) for run in runs]
    found = [metric.compute(each, split.labels) for each in predictions]
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
    _, typical = min(enumerate(predictions), key=lambda pair: abs(found[pair[0]] - median))
    low, high = example_interval(metric, typical, split.labels)
    what = f"{'test' if split.title == 'Test' else 'validation'} {split.task.plural}"
    lines.append(f"95 % interval from the choice of the {n} {what}: {low:.2f} to {high:.2f}")
    return "\n".join(lines)


def train(run: SeedRun) -> None:
    """Train one run unless it is done, and print which of the two."""
    if run.is_done():
        print(f"seed {run.seed}: done already", file=sys.stderr)
        return
    try:
        fine_tune(verbose=False, **run.flags)
    except InputError as error:
        raise InputError(f"seed {run.seed}: {error}") from error
    print(f"seed {run.seed}: done", file=sys.stderr)


def train_all(runs: Sequence[SeedRun], jobs: int, n_gpus: int) -> None:
    """Train all runs that are not done, ``jobs`` at a time.

    If there are GPUs, each of these runs has one to itself.

    Raises:
        Gpt1Error: a run failed; no further run is begun.
    """
    if jobs == 1:
        for run in runs:
            train(run)
        return
    # Each run has a new process, which frees the memory of its GPU when it ends.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        placed = [
            replace(run, flags={**run.flags, "device": f"cuda:{number % n_gpus}"})
            if n_gpus > 1
            else run
            for number, run in enumerate(runs)
        ]
        outcomes = [pool.submit(train, run) for run in placed]
        try:
            for outcome in outcomes:
                outcome.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
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
    given = parse(rest)
    refused = sorted({"seed", "submit", "resume", "desc"} & given.given)
    if refused:
        raise InputError(f"--{refused[0]}: is set by this script for each run; leave it out")
    task = find_task(given)
    sources = find_sources(given, task)
    split = first_labelled(task, task.read(sources.data_dir).predicted)
    runs, n_gpus = seed_runs(args, given, split.stem), torch.cuda.device_count()
    train_all(runs, args.jobs or max(1, n_gpus), n_gpus)
    print(report(runs, split))
    return 0


if __name__ == "__main__":
    sys.exit(main())
