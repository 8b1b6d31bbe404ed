"""Write and read the predictions of a run: submission, record of the run, and probabilities.

A run writes a submission for each split that it predicts: ``ROCStories.tsv`` for the test split of
ROCStories, ``ROCStories.dev.tsv`` for its validation split. A submission has the format of the
original's ``predict``, which has no place for the name of the run; :class:`gpt1.tasks.Target` says
how predictions are spelled. The record ``ROCStories.run.json`` holds the name of the run, the
``run_id`` from the first line of the run's log, the task, the split, and the SHA-256 of the
submission. It is valid only for a submission with that SHA-256. ``ROCStories.probs.tsv`` adds to
each prediction the probabilities of all outcomes; the original writes no such file.

Axes: n examples, C outcomes (classes, answers or whole grades).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import atomic_write, read_lines, read_text
from gpt1.runtime.json_files import (
    FiniteNumberOrNull,
    Kind,
    Text,
    TextOrNull,
    parse_object,
    shown,
    typed,
)
from gpt1.tasks.targets import Grades, Labels, Target

HEADER = "index\tprediction"
SUM_TOLERANCE = 1e-6  # Other programs may have rounded the numbers.

_PROBABILITY = re.compile(r"\d(\.\d+)?(e-\d+)?", re.ASCII)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of the run that made a submission.

    Attributes:
        desc: the run's name, from ``--desc``.
        run_id: the ``run_id`` in the first line of the run's log; None if that line has none.
        log: where the run wrote its log, as a path that was valid where the run was started.
        dataset: the task, a value of ``--dataset``.
        split: the stem under which the run wrote the submission, such as ``SST-2.dev``.
        metric: the title of the task's first metric.
        valid_score: validation score, by that metric, of the parameters that made the submission,
            in percent; None if they were never evaluated.
        sha256: SHA-256 of the submission, in hexadecimal digits.
    """

    desc: Text
    run_id: TextOrNull
    log: Text
    dataset: Text
    split: Text
    metric: Text
    valid_score: FiniteNumberOrNull
    sha256: Annotated[str, Kind("64 hexadecimal digits", _is_sha256)]


class Choices(NamedTuple):
    """The predictions of a model, with probabilities.

    Attributes:
        predictions: int32 or float64 [n], as the target of the task has them.
        probs: float64 [n, C], the probability of each outcome.
    """

    predictions: Labels
    probs: npt.NDArray[np.float64]

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """The probability of the predicted outcome of each example, [n]."""
        return self.probs[np.arange(len(self.predictions)), self.predictions]


# The submission


def table(predictions: Sequence[int | str]) -> str:
    """Return the text of a submission: the header, then index and prediction of each example."""
    rows = [HEADER, *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))]
    return "\n".join(rows) + "\n"


def sha256(predictions: Sequence[int | str]) -> str:
    """Return the SHA-256 of a submission with these predictions and LF line ends."""
    return hashlib.sha256(table(predictions).encode()).hexdigest()


def write(path: Path, predictions: Sequence[int | str], record: Record) -> None:
    """Write a record and then its submission.

    A process that is killed between the two leaves the new record beside the old submission. The
    SHA-256 in the record is then not that of the submission, so that the run of the submission
    counts as unknown. In the other order, a new submission that equals the old one would be
    attributed to the old run.

    Raises:
        Gpt1Error: a file cannot be written.
    """
    with atomic_write(record_path(path), "w") as file:
        file.write(json.dumps(asdict(record), indent=1) + "\n")
    with atomic_write(path, "w") as file:
        file.write(table(predictions))


def digest(path: str | Path) -> str:
    """Return the SHA-256 that a submission would have with LF line ends and no byte-order mark.

    Raises:
        InputError: the file is missing or is not UTF-8.
    """
    text = "\n".join(read_lines(path, "the submission"))
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()


def read_submission(path: str | Path, target: Target = ROCSTORIES.target) -> list[float]:
    """Read the predictions of a submission.

    The format is that of the original's ``predict``: the header ``index<TAB>prediction``, then
    one line per example with its index from 0 and the prediction. Lines end in LF or CRLF.

    Args:
        path: the file.
        target: the target of the task, which says how predictions are spelled.

    Raises:
        InputError: the file is missing or has another format; the message names the line.
    """
    rows = _rows(path, "the submission", HEADER, remedy="name a submission that training wrote.")
    return [_submission_row(path, index, row, target) for index, row in enumerate(rows)]


def _submission_row(path: str | Path, index: int, row: str, target: Target) -> float:
    """Return the prediction in the row of example ``index``."""
    found, _, prediction = row.partition("\t")
    with suppress(ValueError):
        if found == str(index):
            return target.parse(prediction)
    raise InputError(
        f"{path}, line {index + 2}: expected index {index}, a tab, and {target.expected}, found "
        f"{shown(row)}; write the submission again."
    )


def _rows(path: str | Path, what: str, header: str, remedy: str) -> list[str]:
    """Return the lines of a table after its header.

    Raises:
        InputError: the file is missing, has another header, or ends after it.
    """
    found, *rows = read_lines(path, what) or [""]
    if found != header:
        raise InputError(
            f"{path}, line 1: expected the header {header!r}, found {shown(found)}; {remedy}"
        )
    if not rows:
        raise InputError(f"{path}: {what} ends after its header; {remedy}")
    return rows


# The record of the run


def record_path(submission: str | Path) -> Path:
    """Return the path of a submission's record: ``a.run.json`` for ``a.tsv``."""
    return Path(submission).with_name(f"{Path(submission).stem}.run.json")


def probs_path(submission: str | Path) -> Path:
    """Return the path of the probabilities of a submission: ``a.probs.tsv`` for ``a.tsv``."""
    return Path(submission).with_name(f"{Path(submission).stem}.probs.tsv")


def read_record(submission: str | Path) -> Record | None:
    """Read the record beside a submission; None if there is no such file.

    Raises:
        InputError: the file was not written by :func:`write`; the message names the field.
    """
    path = record_path(submission)
    if not os.path.lexists(path):
        return None
    remedy = "delete this file; the run of the submission is then reported as unknown."
    values = parse_object(read_text(path, "the record of a submission"), str(path), remedy)
    if "valid_accuracy" in values:  # written when ROCStories was the only task
        values |= {
            "dataset": ROCSTORIES.name,
            "split": ROCSTORIES.submission,
            "metric": ROCSTORIES.metrics[0].title,
            "valid_score": values["valid_accuracy"],
        }
    return typed(Record, values, str(path), remedy)


def is_of_run(submission: str | Path, run_id: str | None) -> bool:
    """Return whether the record beside a submission can be read and names this ``run_id``."""
    try:
        record = read_record(submission)
    except Gpt1Error:
        return False
    return record is not None and run_id is not None and record.run_id == run_id


# The probabilities


def choices_of(logits: npt.NDArray[Any], target: Target = ROCSTORIES.target) -> Choices:
    """Turn logits [n, C] into predictions and probabilities."""
    return Choices(target.decide(logits), target.probabilities(logits))


def _probs_header(target: Target) -> str:
    return "\t".join([HEADER, *(f"prob_{name}" for name in target.columns)])


def probs_table(choices: Choices, target: Target = ROCSTORIES.target) -> str:
    """Return the text of a file of probabilities: a submission's columns, then the probabilities.

    The columns of the probabilities are ``prob_`` with the names of classes, or with the numbers of
    answers or whole grades from 0. Each probability has enough digits to give the same float64 when
    it is read.
    """
    rows = [_probs_header(target)]
    pairs = zip(choices.predictions.tolist(), choices.probs.tolist(), strict=True)
    for index, (prediction, probs) in enumerate(pairs):
        rows.append("\t".join([str(index), target.spell(prediction), *map(repr, probs)]))
    return "\n".join(rows) + "\n"


def write_probs(
    path: str | Path, logits: npt.NDArray[Any], target: Target = ROCSTORIES.target
) -> None:
    """Write the probabilities of logits [n, C], as :func:`probs_table` has them.

    Raises:
        Gpt1Error: the file cannot be written.
    """
    with atomic_write(path, "w") as file:
        file.write(probs_table(choices_of(logits, target), target))


def read_probs(path: str | Path, target: Target = ROCSTORIES.target) -> Choices:
    """Read a file that :func:`write_probs` wrote, bit for bit; lines end in LF or CRLF.

    Raises:
        InputError: the file is missing or has another format, the probabilities of an example do
            not sum to 1, or the prediction does not follow from them; the message names the line.
    """
    remedy = "name a file that training wrote with --probs."
    rows = _rows(path, "the file of probabilities", _probs_header(target), remedy)
    values = [_probs_row(path, index, row, target) for index, row in enumerate(rows)]
    predictions, probs = zip(*values, strict=True)
    found = Choices(np.array(predictions), np.array(probs, dtype=np.float64))
    _check_predictions(path, found, target)
    return found


def _probs_row(path: str | Path, index: int, row: str, target: Target) -> tuple[float, list[float]]:
    """Return the prediction and the probabilities in the row of example ``index``."""
    where, n = f"{path}, line {index + 2}", len(target.columns)
    found, *cells = row.split("\t")
    numbers = [float(cell) for cell in cells[1:] if _PROBABILITY.fullmatch(cell)]
    try:
        prediction = target.parse(cells[0])
    except (ValueError, IndexError):
        numbers = []
    if found != str(index) or not len(numbers) == len(cells) - 1 == n:
        remedy = "the model had diverged" if "nan" in row else "write the file again"
        raise InputError(
            f"{where}: expected index {index}, {target.expected}, and {n} probabilities from 0 to "
            f"1, with tabs between them, found {row!r:.60}; {remedy}."
        )
    if abs(sum(numbers) - 1) > SUM_TOLERANCE:
        raise InputError(
            f"{where}: expected {n} probabilities that sum to 1, found a sum of {sum(numbers):g}; "
            "write the file again."
        )
    return prediction, numbers


def _check_predictions(path: str | Path, choices: Choices, target: Target) -> None:
    """Check that each prediction follows from its probabilities.

    It is the most probable outcome, or one of several, and of grades the expected one.

    Raises:
        InputError: a prediction does not follow; the message names the line.
    """
    with np.errstate(divide="ignore"):
        expected = target.decide(np.log(choices.probs))
    if isinstance(target, Grades):
        what, tolerance = "the expected grade", SUM_TOLERANCE * (target.highest - target.lowest)
        is_wrong = np.abs(choices.predictions - expected) > tolerance
    else:
        what, is_wrong = "the most probable outcome", choices.confidence < choices.probs.max(-1)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        right, found = (target.spell(each[row]) for each in (expected, choices.predictions))
        raise InputError(
            f"{path}, line {row + 2}: expected {what}, {right}, as the prediction, found {found}; "
            "write the file again."
        )
