"""Reading submissions and logs: how good the predictions are, and how sure that is.

The first two lines of a report are those of the original's ``analysis.py``. What follows them
says how far the test accuracy can be trusted, where the errors are, and whether another
submission is really better. Chance means here the choice of the test stories: how much runs from
different seeds differ comes on top of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from gpt1.reports import calibration
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text
from gpt1.training.submissions import HEADER, SUBMISSION, Record, read_record, record_path, sha256

SIGNIFICANCE = 0.05
N_MISTAKES = 5


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One evaluation during training, under the names of ``log/<desc>.jsonl``.

    Attributes:
        n_epochs, n_updates: how far training was.
        tr_cost, va_cost: mean cost a story, in nats; not finite if the run diverged.
        tr_acc, va_acc: accuracies in percent.
        time: seconds since 1970.
    """

    n_epochs: int
    n_updates: int
    tr_cost: float
    va_cost: float
    tr_acc: float
    va_acc: float
    time: float


class RunLog(NamedTuple):
    """A training log: the settings in its first line, and its evaluations, at least one."""

    path: Path
    settings: dict[str, Any]
    evaluations: list[LogLine]


class McNemar(NamedTuple):
    """How two submissions ``a`` and ``b`` disagree.

    Attributes:
        only_a, only_b: stories that this one alone gets right.
        p: how likely a split at least as uneven is if both are equally good.
    """

    only_a: int
    only_b: int
    p: float


def read_submission(path: str | Path) -> list[int]:
    """The predictions of a submission file, 0 (first ending) or 1 (second) a story.

    The format is that of the original's ``predict``: the header ``index<TAB>prediction``, then
    one line a story with its index from 0 and the prediction. Lines end in LF or CRLF.

    Raises:
        InputError: the file is missing or differs from that format; names the line.
    """
    header, *rows = _lines(path, "the submission")
    if header != HEADER:
        raise InputError(
            f"{path}, line 1: expected the header {HEADER!r}, found {_shown(header)}; "
            "name a submission that training wrote."
        )
    if not rows:
        raise InputError(f"{path}: no predictions after the header; run training with --submit.")
    return [_prediction(path, index, row) for index, row in enumerate(rows)]


def read_log(path: str | Path) -> list[LogLine]:
    """The evaluations in a training log, as :func:`read_run_log` reads them."""
    return read_run_log(path).evaluations


def read_run_log(path: str | Path) -> RunLog:
    """A whole training log, in the order of the file.

    Raises:
        InputError: the file is missing, has no evaluation yet, or a line is not what training
            writes; names the line and the field.
    """
    lines = _lines(path, "the training log")
    settings, *rows = [_json_object(path, line, text) for line, text in enumerate(lines, 1)]
    if "va_acc" in settings:
        raise InputError(
            f"{path}, line 1: expected the settings of the run, found an evaluation; "
            "name a whole log, with its first line."
        )
    if not rows:
        raise InputError(
            f"{path}: only settings, no evaluation yet; wait for the end of the first epoch, "
            "or leave the log out."
        )
    evaluations = [_log_line(path, line, row) for line, row in enumerate(rows, 2)]
    return RunLog(Path(path), settings, evaluations)


def identify_run(
    submission_path: str | Path, submission: Sequence[int], log: RunLog | None = None
) -> str:
    """Say which run made a submission, as far as the record beside it shows that.

    Args:
        submission_path: where the submission was read.
        submission: its predictions.
        log: the log that is to be of the same run.

    Returns:
        One line, which says ``Run unknown`` where nothing proves anything.

    Raises:
        InputError: the record proves that the log is of another run, or that it is not the whole
            log of the run; or the record is malformed.
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


def best_valid_accuracy(log: Sequence[LogLine]) -> float:
    """The highest validation accuracy, in percent: that of the parameters a run keeps."""
    return max(line.va_acc for line in log)


def wilson_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval, without continuity correction, for a proportion of ``k`` in ``n``.

    Unlike the textbook ``p +- z * sqrt(p (1 - p) / n)`` it stays within [0, 1] and keeps its
    level for small ``n`` and for proportions near the ends.

    Args:
        k: stories that are right, 0 <= k <= n.
        n: stories, at least 1.
        level: how often such an interval holds the true proportion, in (0, 1).

    Returns:
        Both ends, as proportions.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= k <= n or n < 1 or not 0 < level < 1:
        raise ValueError(f"no interval for k={k}, n={n}, level={level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / n
    centre = (k / n + z * z / (2 * n)) / shrink
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n * shrink)
    # The outer ends are exactly 0 and 1 on paper, but not after rounding.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def confusion(predictions: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """Count stories as ``table[label][prediction]``, [2, 2].

    Raises:
        ValueError: the two are not equally long.
    """
    table = [[0, 0], [0, 0]]
    for prediction, label in zip(predictions, labels, strict=True):
        table[label][prediction] += 1
    return table


def mcnemar_exact(a: Sequence[int], b: Sequence[int], labels: Sequence[int]) -> McNemar:
    """Exact two-sided McNemar test of two submissions on the same stories.

    Stories that both get right, or both wrong, say nothing about which is better. If the two
    are equally good, each of the others falls to either side like a fair coin; ``p`` is the
    two-sided binomial probability of the counts seen, summed in whole numbers.

    Args:
        a, b: predictions, 0 or 1 a story.
        labels: the right answers.

    Raises:
        ValueError: the three are not equally long.
    """
    only_a = only_b = 0
    for in_a, in_b, label in zip(a, b, labels, strict=True):
        only_a += in_a == label != in_b
        only_b += in_b == label != in_a
    n = only_a + only_b
    ways, tail = 1, 0
    for smaller in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (n - smaller) // (smaller + 1)  # n choose smaller + 1
    # The two tails share the middle when the counts are equal: no probability exceeds 1.
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def report(
    submission: Sequence[int],
    labels: Sequence[int],
    log: Sequence[LogLine] | None = None,
    other: Sequence[int] | None = None,
    run: str | None = None,
) -> str:
    """What a submission is worth, as text: the original's two lines, then the details.

    Args:
        submission: predictions, 0 or 1 a story.
        labels: the right answers, at least one.
        log: evaluations of the run; without them the line on validation is left out.
        other: predictions of a second submission to compare with.
        run: a line on the run that made the submission; left out if None.

    Raises:
        ValueError: predictions and labels are not equally long.
    """
    parts = []
    if log is not None:
        parts.append(f"ROCStories Valid Accuracy: {best_valid_accuracy(log):.2f}")
    # The original's order of operations: the last digit shown must be its own.
    accuracy = _n_right(submission, labels) / len(labels) * 100
    parts.append(f"ROCStories Test Accuracy:  {accuracy:.2f}")
    parts += ["", *([] if run is None else [run])]
    parts += [accuracy_line("Test", submission, labels), "", _table(submission, labels)]
    if other is not None:
        parts += ["", accuracy_line("Second submission", other, labels)]
        parts.append(_comparison(mcnemar_exact(submission, other, labels)))
    return "\n".join(parts)


def accuracy_line(what: str, predictions: Sequence[int], labels: Sequence[int]) -> str:
    """How many are right, with :func:`wilson_interval`: one line that begins with ``what``."""
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
    """Read what a run left and the test labels, and give the :func:`report` on them.

    Args:
        data_dir: where the ROCStories test CSV is.
        submission_path: predictions for that file.
        log_path: the log of the same run.
        other_path: a second submission for the same file.
        probs_path: probabilities of the first submission; adds what
            :mod:`gpt1.reports.calibration` says.
        plot_path: where to draw the reliability of the probabilities.
        n_mistakes: most confident mistakes to show.

    Raises:
        InputError: a file is missing or malformed, a submission has not one line per story, the
            log is of another run, or the probabilities are those of another submission.
        Gpt1Error: the picture cannot be written.
    """
    from gpt1.datasets.story_cloze import TEST_CSV, read_cloze

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
    choices = calibration.read_probs(probs_path)
    _check_agreement(probs_path, choices, submission_path, submission)
    if plot_path is not None:
        from gpt1.reports import figures

        bins = calibration.reliability(choices, labels)
        figures.save(calibration.reliability_figure(bins), plot_path)
    return f"{text}\n\n{calibration.report(choices, cloze, n_mistakes)}"


def _lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file, LF or CRLF, at least one; only the last may lack its end."""
    lines = [line.removesuffix("\r") for line in read_text(path, what).split("\n")]
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{path}: {what} is empty; name a file that training wrote.")
    return lines


def _shown(text: str) -> str:
    """A piece of a file as a message quotes it: short, on one line."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _prediction(path: str | Path, index: int, row: str) -> int:
    """The prediction in the row of story ``index``."""
    if row not in (f"{index}\t0", f"{index}\t1"):
        raise InputError(
            f"{path}, line {index + 2}: expected index {index}, a tab, and 0 or 1, found "
            f"{_shown(row)}; write the submission again."
        )
    return int(row[-1])


def _json_object(path: str | Path, line: int, text: str) -> dict[str, Any]:
    """One line of JSON, its numbers all as floats: no integer is then too long to read."""
    try:
        value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}, line {line}: expected one JSON object, found {_shown(text)}; "
            "if a crash cut the line off, delete it."
        )
    return value


# What training writes in a field, and how a message calls it. A diverged run has costs of NaN.
_Check = tuple[Callable[[float], bool], str]
_COUNT: _Check = (lambda x: x >= 0 and x.is_integer(), "a whole number from 0")
_PERCENT: _Check = (lambda x: 0 <= x <= 100, "a percentage from 0 to 100")
_NUMBER: _Check = (lambda x: True, "a number")
_CHECKS = {"n_epochs": _COUNT, "n_updates": _COUNT, "tr_acc": _PERCENT, "va_acc": _PERCENT}


def _log_line(path: str | Path, line: int, row: dict[str, Any]) -> LogLine:
    """An evaluation with every field checked; fields of other names are left alone."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(LogLine)):
        is_right, expected = _CHECKS.get(name, _NUMBER)
        value = row.get(name)
        if not isinstance(value, float) or not is_right(value):
            found = _shown(json.dumps(value)) if name in row else "nothing"
            raise InputError(
                f"{path}, line {line}: expected {name} to be {expected}, found {found}; "
                "name a log that training wrote."
            )
        values[name] = int(value) if _CHECKS.get(name) is _COUNT else value
    return LogLine(**values)


def _plain(text: str) -> str:
    """A text from a file as a message shows it: on one line, not too long."""
    return f"{text if text.isprintable() else repr(text):.200}"


def _right_submission(log: RunLog, record: Record) -> str:
    """How to come by the submission of the run that a log is of."""
    desc, directory = (str(log.settings.get(name)) for name in ("desc", "submission_dir"))
    if desc == record.desc:
        return f"another run of the name {_plain(desc)} began this log: finish it, with --submit"
    own = _plain(str(Path(directory) / desc / SUBMISSION))
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
    choices: calibration.Choices,
    path: str | Path,
    submission: Sequence[int],
) -> None:
    """Raise an :class:`InputError` unless both files hold the same predictions."""
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
    table = confusion(predictions, labels)
    return table[0][0] + table[1][1]


def _table(predictions: Sequence[int], labels: Sequence[int]) -> str:
    """The confusion table with its legend, one row a label."""
    rows = [f"{'':18}{'predicted 0':>13}{'predicted 1':>13}"]
    for label, counts in enumerate(confusion(predictions, labels)):
        rows.append(f"{f'right answer {label}':18}{counts[0]:13}{counts[1]:13}")
    return "\n".join([*rows, "(0: the first ending, 1: the second)"])


def _comparison(test: McNemar) -> str:
    """A McNemar test in words."""
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
