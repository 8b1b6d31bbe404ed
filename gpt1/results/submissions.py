"""Write and read the predictions of a run: submission, record of the run, and probabilities.

``ROCStories.tsv`` has the format of the original's ``predict``, which has no place for the name of
the run. The record ``ROCStories.run.json`` holds the name of the run, the ``run_id`` from the first
line of the run's log, and the SHA-256 of the submission. It is valid only for a submission with
that SHA-256. ``ROCStories.probs.tsv`` adds to each prediction the probabilities of both endings;
the original writes no such file.

Axes: n stories, 2 choices.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import atomic_write, read_lines, read_text
from gpt1.runtime.json_files import (
    FiniteNumber,
    Kind,
    Text,
    TextOrNull,
    parse_object,
    shown,
    typed,
)
from gpt1.tasks.targets import ChoiceIndex

HEADER = "index\tprediction"
PROBS_HEADER = f"{HEADER}\tprob_0\tprob_1"
SUM_TOLERANCE = 1e-6  # Other programs may have rounded the numbers.

_PROBS_ROW = re.compile(r"(\d+)\t([01])" + r"\t(\d(?:\.\d+)?(?:e-\d+)?)" * 2, re.ASCII)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of the run that made a submission.

    Attributes:
        desc: the run's name, from ``--desc``.
        run_id: the ``run_id`` in the first line of the run's log; None if that line has none.
        log: where the run wrote its log, as a path that was valid where the run was started.
        valid_accuracy: validation accuracy of the parameters that made the submission, in percent.
        sha256: SHA-256 of the submission, in hexadecimal digits.
    """

    desc: Text
    run_id: TextOrNull
    log: Text
    valid_accuracy: FiniteNumber
    sha256: Annotated[str, Kind("64 hexadecimal digits", _is_sha256)]


class Choices(NamedTuple):
    """The choices of a model, with probabilities.

    Attributes:
        predictions: int32 [n], 0 for the first ending, 1 for the second, as in a submission.
        probs: float64 [n, 2], the probability of each ending.
    """

    predictions: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float64]

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """The probability of the chosen ending of each story, [n]."""
        return self.probs[np.arange(len(self.predictions)), self.predictions]


# The submission


def table(predictions: Sequence[int | str]) -> str:
    """Return the text of a submission: the header, then index and prediction of each story."""
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


def read_submission(path: str | Path) -> list[int]:
    """Read the predictions of a submission, 0 (first ending) or 1 (second) for each story.

    The format is that of the original's ``predict``: the header ``index<TAB>prediction``, then
    one line per story with its index from 0 and the prediction. Lines end in LF or CRLF.

    Raises:
        InputError: the file is missing or has another format; the message names the line.
    """
    rows = _rows(path, "the submission", HEADER, remedy="name a submission that training wrote.")
    for index, row in enumerate(rows):
        if row not in (f"{index}\t0", f"{index}\t1"):
            raise InputError(
                f"{path}, line {index + 2}: expected index {index}, a tab, and 0 or 1, found "
                f"{shown(row)}; write the submission again."
            )
    return [int(row[-1]) for row in rows]


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
    return typed(Record, values, str(path), remedy)


def is_of_run(submission: str | Path, run_id: str | None) -> bool:
    """Return whether the record beside a submission can be read and names this ``run_id``."""
    try:
        record = read_record(submission)
    except Gpt1Error:
        return False
    return record is not None and run_id is not None and record.run_id == run_id


# The probabilities


def choices_of(logits: npt.NDArray[Any]) -> Choices:
    """Turn logits [n, 2] into choices and their probabilities."""
    target = ChoiceIndex()
    return Choices(target.decide(logits), target.probabilities(logits))


def probs_table(choices: Choices) -> str:
    """Return the text of a file of probabilities: a submission's columns, ``prob_0``, ``prob_1``.

    Each probability has enough digits to give the same float64 when it is read.
    """
    rows = [PROBS_HEADER]
    for index, (prediction, probs) in enumerate(zip(*choices, strict=True)):
        rows.append(f"{index}\t{prediction}\t{float(probs[0])!r}\t{float(probs[1])!r}")
    return "\n".join(rows) + "\n"


def write_probs(path: str | Path, logits: npt.NDArray[Any]) -> None:
    """Write the probabilities of choice logits [n, 2], as :func:`probs_table` has them.

    Raises:
        Gpt1Error: the file cannot be written.
    """
    with atomic_write(path, "w") as file:
        file.write(probs_table(choices_of(logits)))


def read_probs(path: str | Path) -> Choices:
    """Read a file that :func:`write_probs` wrote, bit for bit; lines end in LF or CRLF.

    Raises:
        InputError: the file is missing or has another format, two probabilities do not sum to 1,
            or a prediction is the less probable ending; the message names the line.
    """
    remedy = "name a file that training wrote with --probs."
    rows = _rows(path, "the file of probabilities", PROBS_HEADER, remedy)
    values = [_probs_row(path, index, row) for index, row in enumerate(rows)]
    predictions, probs = zip(*values, strict=True)
    return Choices(np.array(predictions, dtype=np.int32), np.array(probs, dtype=np.float64))


def _probs_row(path: str | Path, index: int, row: str) -> tuple[int, tuple[float, float]]:
    """Return the prediction and the two probabilities in the row of story ``index``."""
    where = f"{path}, line {index + 2}"
    match = _PROBS_ROW.fullmatch(row)
    if match is None or match[1] != str(index):
        remedy = "the model had diverged" if "nan" in row else "write the file again"
        raise InputError(
            f"{where}: expected index {index}, 0 or 1, and two probabilities from 0 to 1, with "
            f"tabs between them, found {row!r:.60}; {remedy}."
        )
    prediction, probs = int(match[2]), (float(match[3]), float(match[4]))
    if abs(sum(probs) - 1) > SUM_TOLERANCE:
        expected = "two probabilities that sum to 1, found"
    elif probs[prediction] < probs[1 - prediction]:
        expected = f"the more probable ending as the prediction, found {prediction} with"
    else:
        return prediction, probs
    raise InputError(
        f"{where}: expected {expected} {probs[0]} and {probs[1]}; write the file again."
    )
