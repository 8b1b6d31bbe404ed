"""Write the two logs of a run: the original's lines, and one line per update and per event.

:mod:`gpt1.training.log_lines` has the types of the lines, and reads the logs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.files import atomic_write, unreadable
from gpt1.training.log_lines import UpdateLine

Mirror = Callable[[Mapping[str, Any]], None]
Check = Callable[[int, Sequence[float]], str | None]

DIVERGING = "diverging"  # the event of a run whose costs are far above those of a guess


class JsonLines:
    """A file of JSON objects, one a line, each with the time in seconds since 1970 last.

    Args:
        path: the file; made anew unless ``keep`` says what to keep of it.
        keep: the number of updates that a resumed run goes on from: later lines go.
        mirror: is given each line, too: those that are kept and those that are written.

    Attributes:
        is_new: whether no line was kept.
        first: the values of the first line, kept or written; empty before it is written.
        events: the kinds of events in the lines that are kept or written: the values of ``event``.
    """

    def __init__(self, path: Path, keep: int | None = None, mirror: Mirror | None = None) -> None:
        self.path = path
        self._mirror = mirror
        lines = [] if keep is None else _lines_until(path, keep)
        with atomic_write(path, "w") as file:
            file.writelines(lines)
        self.is_new = not lines
        self.first: Mapping[str, Any] = json.loads(lines[0]) if lines else {}
        self.events: set[str] = set()
        self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        for line in lines:
            self._note(json.loads(line))

    def write(self, **values: Any) -> None:
        """Append a line, at once."""
        values.setdefault("time", time.time())
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error
        self.first = self.first or values
        self._note(values)

    def _note(self, values: Mapping[str, Any]) -> None:
        """Take notice of a line that is in the file."""
        if isinstance(values.get("event"), str):
            self.events.add(values["event"])
        if self._mirror:
            self._mirror(values)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:  # a line that could not be written: it tries again
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> Gpt1Error:
        return Gpt1Error(
            f"{self.path}: cannot be written: {error.strerror}. Free space; go on with --resume."
        )


def _lines_until(path: Path, n_updates: int) -> list[str]:
    """The whole lines of a log that speak of no later update than ``n_updates``.

    Raises:
        Gpt1Error: there is a log that cannot be read, and that a new one must not replace.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except (OSError, MemoryError) as error:
        raise unreadable(path, "the run's log", error, remedy="make it readable") from error
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line cut off by a crash
        if isinstance(values, Mapping) and _counts(values.get("n_updates", 0), n_updates):
            kept.append(line if line.endswith("\n") else line + "\n")
    return kept


def _counts(found: object, n_updates: int) -> bool:
    """Whether a line's ``n_updates`` is a number, and one the run has done."""
    return type(found) is int and found <= n_updates


class UpdateLog:
    """The log of updates, which reads numbers off the device only now and then.

    To ask a GPU for a number is to wait for it; here numbers wait instead, ``delay`` updates
    at most, and are read together.

    Args:
        log: where the lines go.
        delay: updates that may wait; 0 writes each at once.
        with_lm: whether there is a language-model loss; without it ``lm_cost`` is null.
        check: is given each update's number and numbers before they are written. What it returns
            is a warning that the run diverges.
        warn: shows a warning. The log's first one is shown, and is an event in the log.
    """

    def __init__(
        self,
        log: JsonLines,
        *,
        delay: int,
        with_lm: bool,
        check: Check = lambda n_updates, numbers: None,
        warn: Callable[[str], None] = lambda warning: None,
    ) -> None:
        self._log = log
        self._delay = delay
        self._with_lm = with_lm
        self._check = check
        self._warn = warn
        self._waiting: list[tuple[int, float, float, Tensor]] = []

    def write(self, n_updates: int, lr: float, numbers: Tensor) -> None:
        """Note an update: its number, learning rate, and [clf cost, LM cost, gradient norm]."""
        self._waiting.append((n_updates, time.time(), lr, numbers))
        if len(self._waiting) > self._delay:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        rows = torch.stack([numbers for *_, numbers in waiting]).tolist()
        for (n_updates, when, lr, _), (clf, lm, norm) in zip(waiting, rows, strict=True):
            warning = self._check(n_updates, (clf, lm, norm))
            line = UpdateLine(
                n_updates=n_updates,
                clf_cost=clf,
                lm_cost=lm if self._with_lm else None,
                lr=lr,
                grad_norm=norm,
                time=when,
            )
            self._log.write(**asdict(line))
            if warning and DIVERGING not in self._log.events:
                self._log.write(n_updates=n_updates, event=DIVERGING, message=warning, time=when)
                self._warn(warning)

    def close(self) -> None:
        """Write what waits and close the log."""
        try:
            self.flush()
        finally:
            self._log.close()
