"""Report how good the predictions in a submission are, and how certain this is.

The first two lines of a report are those of the original's ``analysis.py``. The lines after them
give the interval of the test accuracy, the kinds of errors, and a test whether another submission
is better. These figures take the test stories as drawn by chance. Runs from different seeds differ
as well; ``scripts/run_seeds.py`` measures by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sklearn.metrics import accuracy_score

from gpt1.datasets.story_cloze import ROCSTORIES, TEST_CSV, read_cloze
from gpt1.reports import calibration, figures
from gpt1.reports.statistics import McNemar, confusion, mcnemar_exact, wilson_interval
from gpt1.results.log_lines import LogLine, RunLog, read_run_log
from gpt1.results.submissions import (
    Choices,
    Record,
    read_probs,
    read_record,
    read_submission,
    record_path,
    sha256,
)
from gpt1.runtime.errors import InputError

SIGNIFICANCE = 0.05
N_MISTAKES = 5
LEGEND = "0: the first ending, label 1 in the CSV; 1: the second, label 2"
"""What predictions mean, beside the labels in a CSV."""


def identify_run(
    submission_path: str | Path, submission: Sequence[int], log: RunLog | None = None
) -> str:
    """Say which run made a submission, according to the record beside the submission.

    Args:
        submission_path: the file that the submission was read from.
        submission: the predictions in that file.
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
    if record.sha256 != sha256(submission):
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
    best = best_valid_accuracy(log.evaluations)
    if best != record.valid_accuracy:
        raise InputError(
            f"{log.path}: its best validation accuracy is {best:.2f} %, but the parameters that "
            f"made {submission_path} had {record.valid_accuracy:.2f} %, says {where}; the run was "
            "resumed from an earlier state or with another --log_dir: finish it with --resume, or "
            "leave this log out."
        )
    return f"Run: {_plain(record.desc)}"


def _name_of_run(submission_path: str | Path, submission: Sequence[int]) -> str:
    """Return what a picture of a submission is called: its run, or its path if that is unknown."""
    record = read_record(submission_path)
    if record is None or record.sha256 != sha256(submission):
        return str(submission_path)
    return f"Run {_plain(record.desc)}"


def best_valid_accuracy(log: Sequence[LogLine]) -> float:
    """Return the highest validation accuracy in percent, which the kept parameters have."""
    return max(line.va_acc for line in log)


def report(
    submission: Sequence[int],
    labels: Sequence[int],
    log: Sequence[LogLine] | None = None,
    other: Sequence[int] | None = None,
    run: str | None = None,
) -> str:
    """Return the text of a report: the two lines of the original's report, then the details.

    Args:
        submission: predictions, 0 or 1 for each story.
        labels: the right answers, at least one.
        log: evaluations of the run; without them the line on validation is left out.
        other: predictions of a second submission to compare with, if given.
        run: a line about the run that made the submission; left out if None.

    Raises:
        ValueError: there are not as many predictions as labels.
    """
    parts = []
    if log is not None:
        parts.append(f"ROCStories Valid Accuracy: {best_valid_accuracy(log):.2f}")
    # The operations have the original's order, so that the last digit shown is the original's.
    accuracy = _n_right(submission, labels) / len(labels) * 100
    parts.append(f"ROCStories Test Accuracy:  {accuracy:.2f}")
    parts += ["", *([] if run is None else [run])]
    parts += [accuracy_line("Test", submission, labels), "", _table(submission, labels)]
    if other is not None:
        parts += ["", accuracy_line("Second submission", other, labels)]
        parts.append(_comparison(mcnemar_exact(submission, other, labels)))
    return "\n".join(parts)


def accuracy_line(what: str, predictions: Sequence[int], labels: Sequence[int]) -> str:
    """Return one line, which begins with ``what``, with the accuracy and its 95 % interval."""
    right, n = _n_right(predictions, labels), len(labels)
    low, high = wilson_interval(right, n)
    return (
        f"{what}: {right} of {n} right, {right / n * 100:.2f} %; "
        f"95 % interval (Wilson) {low * 100:.2f} to {high * 100:.2f} %"
    )


def analyse_rocstories(
    data_dir: str | Path,
    submission_path: str | Path,
    log_path: str | Path | None = None,
    other_path: str | Path | None = None,
    *,
    probs_path: str | Path | None = None,
    plot_path: str | Path | None = None,
    n_mistakes: int = N_MISTAKES,
) -> str:
    """Read the files that a run has written and the test labels, and return a report on them.

    Args:
        data_dir: where the ROCStories test CSV is.
        submission_path: predictions for the stories in that CSV.
        log_path: the log of the run that made the submission.
        other_path: a second submission for the same stories, to compare with.
        probs_path: probabilities of the first submission, which add the report of
            :mod:`gpt1.reports.calibration`.
        plot_path: where to write a picture of the reliability of the probabilities.
        n_mistakes: number of the most confident mistakes to show.

    Raises:
        InputError: a file is missing or malformed, a submission does not have one line per story,
            the log is of another run, or the probabilities are those of another submission.
        Gpt1Error: the picture cannot be written.
    """
    test_csv = Path(data_dir) / TEST_CSV
    submission = read_submission(submission_path)
    other = None if other_path is None else read_submission(other_path)
    log = None if log_path is None else read_run_log(log_path)
    run = identify_run(submission_path, submission, log)
    if not test_csv.exists():
        raise InputError(
            f"{test_csv}: no such file; name the test CSV's directory with --data_dir."
        )
    cloze = read_cloze(test_csv)
    labels = cloze.labels
    _check_length(submission_path, submission, test_csv, labels)
    if other_path is not None and other is not None:
        _check_length(other_path, other, test_csv, labels)
    text = report(submission, labels, log and log.evaluations, other, run)
    if probs_path is None:
        return text
    choices = read_probs(probs_path)
    _check_agreement(probs_path, choices, submission_path, submission)
    if plot_path is not None:
        bins = calibration.reliability(choices, labels)
        name = _name_of_run(submission_path, submission)
        figures.save(calibration.reliability_figure(bins, name), plot_path)
    return f"{text}\n\n{calibration.report(choices, cloze, n_mistakes)}"


def _plain(text: str) -> str:
    """Return a text from a file as a message shows it: on one line, at most 200 characters."""
    return f"{text if text.isprintable() else repr(text):.200}"


def _right_submission(log: RunLog, record: Record) -> str:
    """Return the remedy for a log of another run: how to get the submission of that run."""
    desc, directory = (str(log.settings.get(name)) for name in ("desc", "submission_dir"))
    if desc == record.desc:
        return f"another run of the name {_plain(desc)} began this log: finish it, with --submit"
    own = _plain(str(Path(directory) / desc / f"{ROCSTORIES.submission}.tsv"))
    return f"name the submission of the run {_plain(desc)}, which writes it to {own}"


def _check_length(
    path: str | Path, predictions: Sequence[int], test_csv: Path, labels: Sequence[int]
) -> None:
    if len(predictions) != len(labels):
        raise InputError(
            f"{path} has {len(predictions)} predictions, but {test_csv} has {len(labels)} stories; "
            "they must be of the same test set: name its directory with --data_dir."
        )


def _check_agreement(
    probs_path: str | Path,
    choices: Choices,
    path: str | Path,
    submission: Sequence[int],
) -> None:
    """Check that the file of probabilities and the submission hold the same predictions.

    Raises:
        InputError: they differ; the message names the line.
    """
    remedy = "name the file that the same run wrote beside its submission."
    if len(choices.predictions) != len(submission):
        raise InputError(
            f"{probs_path} has {len(choices.predictions)} stories, but {path} has "
            f"{len(submission)}; {remedy}"
        )
    pairs = zip(choices.predictions.tolist(), submission, strict=True)
    for line, (found, expected) in enumerate(pairs, 2):
        if found != expected:
            raise InputError(
                f"{probs_path}, line {line}: prediction {found}, but {path} has {expected} on that "
                f"line; {remedy}"
            )


def _n_right(predictions: Sequence[int], labels: Sequence[int]) -> int:
    return int(accuracy_score(labels, predictions, normalize=False))


def _table(predictions: Sequence[int], labels: Sequence[int]) -> str:
    """Return the confusion table with its legend, one row per label."""
    rows = [f"{'':18}{'predicted 0':>13}{'predicted 1':>13}"]
    for label, counts in enumerate(confusion(predictions, labels)):
        rows.append(f"{f'right answer {label}':18}{counts[0]:13}{counts[1]:13}")
    return "\n".join([*rows, f"({LEGEND})"])


def _comparison(test: McNemar) -> str:
    """Return the result of a McNemar test in words."""
    if test.only_a + test.only_b == 0:
        return "Both submissions get the same stories right: no difference to test (p = 1)."
    if test.p >= SIGNIFICANCE:
        verdict = "not significant: chance alone could explain it"
    else:
        verdict = f"significant: the {'first' if test.only_a > test.only_b else 'second'} is better"
    return (
        f"Stories that only the first gets right: {test.only_a}; only the second: {test.only_b}\n"
        f"Exact McNemar test, two-sided: p = {test.p:.3g}; at the "
        f"{SIGNIFICANCE * 100:.0f} % level the difference is {verdict}."
    )
