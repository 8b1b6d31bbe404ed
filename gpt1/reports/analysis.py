"""Report how good the predictions in a submission are, and how certain this is.

The first two lines of a report are those of the original's ``analysis.py``. The lines after them
give the interval of each score, the kinds of errors, and a test whether another submission is
better. These figures take the examples as drawn by chance. Runs from different seeds differ
as well; ``scripts/run_seeds.py`` measures by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score

from gpt1.reports import calibration, figures
from gpt1.reports.labelled import LabelledSplit
from gpt1.reports.statistics import (
    bootstrap_interval,
    compare_by_bootstrap,
    confusion,
    mcnemar_exact,
    wilson_interval,
)
from gpt1.results.log_lines import LogLine, RunLog, read_run_log
from gpt1.results.submissions import (
    Choices,
    Record,
    digest,
    read_probs,
    read_record,
    read_submission,
    record_path,
)
from gpt1.runtime.errors import InputError
from gpt1.tasks.metrics import Metric
from gpt1.tasks.targets import Grades, Labels

SIGNIFICANCE = 0.05
N_MISTAKES = 5
WIDTH = 80  # of a terminal


def identify_run(submission_path: str | Path, log: RunLog | None = None) -> str:
    """Say which run made a submission, according to the record beside the submission.

    Args:
        submission_path: the submission.
        log: the log that the user gave as that of the same run.

    Returns:
        One line with the name of the run, or ``Run unknown`` and the reason.

    Raises:
        InputError: according to the record, the log is of another run or is not the whole log of
            the run; or the record is malformed.
    """
    record, where = read_record(submission_path), record_path(submission_path)
    if record is None:
        return f"Run unknown: {submission_path} has no record of its run ({where})."
    if record.sha256 != digest(submission_path):
        return f"Run unknown: {where} is the record of another submission than {submission_path}."
    if log is None:
        return f"Run: {_plain(record.desc)}"
    if record.run_id is None:
        return f"Run unknown: the log of the run {_plain(record.desc)} had no run_id, says {where}."
    if log.settings.get("run_id") != record.run_id:
        raise InputError(
            f"{log.path}: not the log of the run that made {submission_path}; "
            f"{_right_submission(log, record)}, or give that run's log with --log (run "
            f"{_plain(record.desc)}, log {_plain(record.log)}, says {where})."
        )
    best = best_valid_score(log.evaluations)
    if best != record.valid_score:
        had = "no score" if record.valid_score is None else f"{record.valid_score:.2f} %"
        raise InputError(
            f"{log.path}: its best validation {log.evaluations[0].metric.title} is {best:.2f} %, "
            f"but the parameters that made {submission_path} had {had}, says {where}; the run was "
            "resumed from an earlier state or with another --log_dir: finish it with --resume, or "
            "leave this log out."
        )
    return f"Run: {_plain(record.desc)}"


def _name_of_run(submission_path: str | Path) -> str:
    """Return what a picture of a submission is called: its run, or its path if that is unknown."""
    record = read_record(submission_path)
    if record is None or record.sha256 != digest(submission_path):
        return str(submission_path)
    return f"Run {_plain(record.desc)}"


def best_valid_score(log: Sequence[LogLine]) -> float:
    """Return the highest validation score in percent, which the kept parameters have."""
    return max(line.valid_score for line in log)


def report(
    split: LabelledSplit,
    submission: Labels,
    log: Sequence[LogLine] | None = None,
    other: Labels | None = None,
    run: str | None = None,
) -> str:
    """Return the text of a report: the two lines of the original's report, then the details.

    Args:
        split: the task, and the right answers [n].
        submission: predictions [n].
        log: evaluations of the run; without them the line on validation is left out.
        other: predictions [n] of a second submission to compare with, if given.
        run: a line about the run that made the submission; left out if None.

    Raises:
        ValueError: there are not as many predictions as labels.
    """
    task, metric = split.task, split.task.metrics[0]
    valid = f"{task.title} Valid {_name(metric)}:"
    parts = [] if log is None else [f"{valid} {best_valid_score(log):.2f}"]
    own = f"{task.title} Test" if split.title == "Test" else split.stem
    score = metric.compute(submission, split.labels)
    parts.append(f"{f'{own} {_name(metric)}:':<{len(valid)}} {score:.2f}")
    parts += ["", *([] if run is None else [run])]
    parts += score_lines(split.title, submission, split)
    if not isinstance(task.target, Grades):
        parts += ["", _table(submission, split)]
    if other is not None:
        parts += ["", *score_lines("Second submission", other, split)]
        parts += _comparisons(submission, other, split)
    return "\n".join(parts)


def accuracy_line(what: str, predictions: Labels, labels: Labels) -> str:
    """Return one line, which begins with ``what``, with the accuracy and its 95 % interval."""
    right, n = int(accuracy_score(labels, predictions, normalize=False)), len(labels)
    low, high = wilson_interval(right, n)
    return (
        f"{what}: {right} of {n} right, {right / n * 100:.2f} %; "
        f"95 % interval (Wilson) {low * 100:.2f} to {high * 100:.2f} %"
    )


def analyse(
    split: LabelledSplit,
    submission_path: str | Path,
    log_path: str | Path | None = None,
    other_path: str | Path | None = None,
    *,
    probs_path: str | Path | None = None,
    plot_path: str | Path | None = None,
    n_mistakes: int = N_MISTAKES,
) -> str:
    """Read the files that a run has written, and return a report on them.

    Args:
        split: the right answers to what the submission predicts.
        submission_path: predictions for the examples of the split.
        log_path: the log of the run that made the submission.
        other_path: a second submission for the same examples, to compare with.
        probs_path: probabilities of the first submission, which add the report of
            :mod:`gpt1.reports.calibration`.
        plot_path: where to write a picture of the reliability of the probabilities.
        n_mistakes: number of the most confident mistakes to show.

    Raises:
        InputError: a file is missing or malformed, a submission does not have one line per example,
            the log is of another run, or the probabilities are those of another submission.
        Gpt1Error: the picture cannot be written.
    """
    submission = _read(submission_path, split)
    other = None if other_path is None else _read(other_path, split)
    log = None if log_path is None else read_run_log(log_path)
    run = identify_run(submission_path, log)
    _check_metric(log, split)
    text = report(split, submission, log and log.evaluations, other, run)
    if probs_path is None:
        return text
    target = split.task.target
    if isinstance(target, Grades):
        raise InputError(
            f"--probs {probs_path}: {split.task.title} has grades, but calibration is reported of "
            "classes and answers only; leave the flag out."
        )
    choices = read_probs(probs_path, target)
    _check_agreement(probs_path, choices, submission_path, submission, split)
    if plot_path is not None:
        bins = calibration.reliability(choices, split.labels)
        name = _name_of_run(submission_path)
        figure = calibration.reliability_figure(bins, name, split.task.plural)
        figures.save(figure, plot_path)
    return f"{text}\n\n{calibration.report(choices, split, n_mistakes)}"


def _plain(text: str) -> str:
    """Return a text from a file as a message shows it: on one line, at most 200 characters."""
    return f"{text if text.isprintable() else repr(text):.200}"


def _right_submission(log: RunLog, record: Record) -> str:
    """Return the remedy for a log of another run: how to get the submission of that run."""
    desc, directory = (str(log.settings.get(name)) for name in ("desc", "submission_dir"))
    if desc == record.desc:
        return f"another run of the name {_plain(desc)} began this log: finish it, with --submit"
    own = Path(directory, desc)
    if log.settings.get("dataset", record.dataset) == record.dataset:
        own /= f"{record.split}.tsv"
    return f"name the submission of the run {_plain(desc)}, which writes it to {_plain(str(own))}"


def _read(path: str | Path, split: LabelledSplit) -> Labels:
    """Read a submission, and check that it has as many predictions as the split has examples."""
    found = np.array(read_submission(path, split.task.target))
    if len(found) != len(split.labels):
        raise InputError(
            f"{path} has {len(found)} predictions, but {split.source} has {len(split.labels)} "
            f"{split.task.plural}; they must be of the same split: name the data with --dataset "
            "and --data_dir."
        )
    return found


def _check_metric(log: RunLog | None, split: LabelledSplit) -> None:
    """Refuse a log whose scores are of another metric than those of the task."""
    own = split.task.metrics[0]
    if log is not None and log.evaluations[0].metric.name != own.name:
        raise InputError(
            f"{log.path}: the log of a run that is scored by {log.evaluations[0].metric.title}, "
            f"but {split.task.title} is scored by {own.title}; name the log of the run that made "
            "the submission."
        )


def _check_agreement(
    probs_path: str | Path,
    choices: Choices,
    path: str | Path,
    submission: Labels,
    split: LabelledSplit,
) -> None:
    """Check that the file of probabilities and the submission hold the same predictions.

    Raises:
        InputError: they differ; the message names the line.
    """
    remedy = "name the file that the same run wrote beside its submission."
    if len(choices.predictions) != len(submission):
        raise InputError(
            f"{probs_path} has {len(choices.predictions)} {split.task.plural}, but {path} has "
            f"{len(submission)}; {remedy}"
        )
    differs = choices.predictions != submission
    if differs.any():
        row = int(differs.argmax())
        found, expected = (
            split.task.target.spell(each[row]) for each in (choices.predictions, submission)
        )
        raise InputError(
            f"{probs_path}, line {row + 2}: prediction {found}, but {path} has {expected} on that "
            f"line; {remedy}"
        )


def _name(metric: Metric) -> str:
    return metric.title.capitalize()


def score_lines(what: str, predictions: Labels, split: LabelledSplit) -> list[str]:
    """Return a line for each metric of the task, with its 95 % interval."""
    lines = []
    for metric in split.task.metrics:
        if metric.resampled is None:
            lines.append(accuracy_line(what, predictions, split.labels))
            continue
        score = metric.compute(predictions, split.labels)
        low, high = bootstrap_interval(
            metric.resampled(predictions, split.labels), len(predictions)
        )
        lines.append(
            f"{what}: {_name(metric)} {score:.2f} %; 95 % interval (bootstrap) {low:.2f} to "
            f"{high:.2f} %"
        )
    return lines


def _table(predictions: Labels, split: LabelledSplit) -> str:
    """Return the confusion table with its legend, one row per label."""
    spell, n = split.task.target.spell, len(split.task.target.columns)
    names = [spell(outcome) for outcome in range(n)]
    first, heads = (
        [f"right answer {name}" for name in names],
        [f"predicted {name}" for name in names],
    )
    corner = ""
    if len(max(first, key=len)) + 4 + sum(len(head) + 2 for head in heads) > WIDTH:
        corner, first, heads = "right, predicted:", names, names
    left = max(map(len, (corner, *first))) + 4
    widths = [max(len(head) + 2, 7) for head in heads]
    counts = [[str(n) for n in row] for row in confusion(predictions, split.labels, n)]
    lines = []
    for head, cells in zip([corner, *first], [heads, *counts], strict=True):
        pairs = zip(cells, widths, strict=True)
        lines.append(f"{head:{left}}" + "".join(f"{cell:>{width}}" for cell, width in pairs))
    legend = split.task.legend
    return "\n".join([*lines, *([f"({legend})"] if legend else [])])


def _comparisons(a: Labels, b: Labels, split: LabelledSplit) -> list[str]:
    """Return the results of paired tests: of right answers, and of the first metric."""
    lines = []
    for metric in split.task.metrics:
        if metric.resampled is None:
            lines.append(_compare_right(a, b, split))
        elif metric is split.task.metrics[0]:
            lines.append(_compare_scores(a, b, split))
    return lines


def _compare_right(a: Labels, b: Labels, split: LabelledSplit) -> str:
    """Return the result of a McNemar test in words."""
    test, plural = mcnemar_exact(a, b, split.labels), split.task.plural
    if test.only_a + test.only_b == 0:
        return f"Both submissions get the same {plural} right: no difference to test (p = 1)."
    return (
        f"{plural.capitalize()} that only the first gets right: {test.only_a}; only the second: "
        f"{test.only_b}\nExact McNemar test, two-sided: "
        + _verdict(test.p, first_is_better=test.only_a > test.only_b)
    )


def _compare_scores(a: Labels, b: Labels, split: LabelledSplit) -> str:
    """Return the result of a bootstrap test of the first metric in words."""
    metric = split.task.metrics[0]
    test = compare_by_bootstrap(metric, a, b, split.labels)
    return (
        f"{_name(metric)} of the second minus that of the first: {test.difference:+.2f} points; "
        f"95 % interval (bootstrap) {test.low:+.2f} to {test.high:+.2f}\n"
        f"Paired bootstrap test, two-sided: "
        + _verdict(test.p, first_is_better=test.difference < 0)
    )


def _verdict(p: float, *, first_is_better: bool) -> str:
    """Return the end of the line about a test."""
    verdict = "not significant: chance alone could explain it"
    if p < SIGNIFICANCE:
        verdict = f"significant: the {'first' if first_is_better else 'second'} is better"
    return f"p = {p:.3g}; at the {SIGNIFICANCE * 100:.0f} % level the difference is {verdict}."
