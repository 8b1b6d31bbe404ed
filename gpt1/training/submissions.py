"""A submission, and the record beside it that says which run made it.

``ROCStories.tsv`` has the format of the original's ``predict`` and cannot name its run. The record,
``ROCStories.run.json``, does: it holds the name of the run, the ``run_id`` from the first line of
the run's log, and the SHA-256 of the submission. A record counts only for a submission with that
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import atomic_write, read_text

SUBMISSION = "ROCStories.tsv"  # the original's name for it
HEADER = "index\tprediction"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Which run made a submission.

    Attributes:
        desc: the run's name, from ``--desc``.
        run_id: the ``run_id`` in the first line of the run's log; None if that line has none.
        log: where the run wrote its log, as a path that was valid where the run was started.
        valid_accuracy: validation accuracy of the parameters that made the submission, in percent.
        sha256: SHA-256 of the submission, in hexadecimal digits.
    """

    desc: str
    run_id: str | None
    log: str
    valid_accuracy: float
    sha256: str


def table(predictions: Sequence[int]) -> str:
    """The text of a submission: the header, then index and prediction of each story."""
    rows = [HEADER, *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))]
    return "\n".join(rows) + "\n"


def sha256(predictions: Sequence[int]) -> str:
    """SHA-256 of the file that :func:`write` makes of these predictions, whatever its line ends."""
    return hashlib.sha256(table(predictions).encode()).hexdigest()


def record_path(submission: str | Path) -> Path:
    """Where the record of a submission is: ``a.run.json`` beside ``a.tsv``."""
    return Path(submission).with_suffix(".run.json")


def write(path: Path, predictions: Sequence[int], record: Record) -> None:
    """Write a record and then its submission.

    A process that is killed between the two leaves the new record beside the old submission. Their
    SHA-256 values differ, so that the run of that submission counts as unknown. In the other order
    a new submission that happens to equal the old one would be taken for the old run's.

    Raises:
        Gpt1Error: one of them cannot be written.
    """
    with atomic_write(record_path(path), "w") as file:
        file.write(json.dumps(asdict(record), indent=1) + "\n")
    with atomic_write(path, "w") as file:
        file.write(table(predictions))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "desc": (_is_text, "a text"),
    "run_id": (lambda x: x is None or _is_text(x), "a text or null"),
    "log": (_is_text, "a text"),
    "valid_accuracy": (lambda x: isinstance(x, float) and math.isfinite(x), "a number"),
    "sha256": (
        lambda x: _is_text(x) and re.fullmatch("[0-9a-f]{64}", x) is not None,
        "64 hexadecimal digits",
    ),
}


def read_record(submission: str | Path) -> Record | None:
    """The record beside a submission, or None if there is no such file.

    Raises:
        InputError: the file is not what :func:`write` wrote; names the field.
    """
    path = record_path(submission)
    if not os.path.lexists(path):
        return None
    remedy = "delete this file, and the submission's run counts as unknown."
    try:  # all numbers as floats: no integer is then too long to read
        values = json.loads(read_text(path, "the record of a submission"), parse_int=float)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected one JSON object; {remedy}")
    for name, (is_right, expected) in _CHECKS.items():
        if name not in values or not is_right(values[name]):
            raise InputError(f"{path}: expected {name} to be {expected}; {remedy}")
    return Record(**{item.name: values[item.name] for item in fields(Record)})


def is_of_run(submission: str | Path, run_id: str | None) -> bool:
    """Whether a readable record beside a submission names the run of this ``run_id``."""
    try:
        record = read_record(submission)
    except Gpt1Error:
        return False
    return record is not None and run_id is not None and record.run_id == run_id
