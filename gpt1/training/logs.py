"""Listeners of the training loop that write the logs of a run and keep its best parameters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt1.results.log_lines import UpdateLine
from gpt1.results.outputs import RunFiles
from gpt1.results.tensorboard import TensorBoard
from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.files import atomic_write, unreadable
from gpt1.training.checkpoint import TrainState
from gpt1.training.loop import Evaluation, Listener

Mirror = Callable[[Mapping[str, Any]], None]

DIVERGING = "diverging"  # the event that the costs are far above those of a uniform guess


class JsonLines:
    """A file of JSON objects, one per line, each with its time in seconds since 1970.

    Args:
        path: the file, which begins empty unless ``keep`` is given.
        keep: the number of updates from which a resumed run continues. The file keeps its lines on
            updates up to this number and loses the others.
        mirror: a function that is called with each line, whether kept or written.

    Attributes:
        is_new: whether no line was kept.
        first: the values of the first line of the file; empty before a line is written.
        events: the values of ``event`` in the lines of the file.
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
        """Append a line, and flush the file.

        Raises:
            Gpt1Error: the line cannot be written.
        """
        values.setdefault("time", time.time())
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error
        self.first = self.first or values
        self._note(values)

    def _note(self, values: Mapping[str, Any]) -> None:
        """Note the event in a line of the file, and pass the line to the mirror."""
        if isinstance(values.get("event"), str):
            self.events.add(values["event"])
        if self._mirror:
            self._mirror(values)

    def close(self) -> None:
        """Close the file.

        Raises:
            Gpt1Error: an earlier line cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:  # Closing tries again to write a line that could not be written.
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> Gpt1Error:
        return Gpt1Error(
            f"{self.path}: cannot be written: {error.strerror}. Free space; go on with --resume."
        )


def first_line(path: Path) -> Mapping[str, Any]:
    """Return the settings in the first line of a log; none if there is no such log."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines_until(path: Path, n_updates: int) -> list[str]:
    """Return the complete lines of a log, except those on updates after ``n_updates``.

    Raises:
        Gpt1Error: the log exists but cannot be read, so that it must not be replaced.
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
            continue  # A crash cut the line off.
        if isinstance(values, Mapping) and _is_kept(values, n_updates):
            kept.append(line if line.endswith("\n") else line + "\n")
    return kept


def _is_kept(values: Mapping[str, Any], n_updates: int) -> bool:
    """Return whether a line has the settings of a run, or is on its updates up to ``n_updates``."""
    found = values.get("n_updates", 0)
    return "desc" in values or (type(found) is int and found <= n_updates)


class Logs(Listener):
    """The two logs of a run: settings and evaluations as in the original, and a line per update.

    Args:
        outputs: the paths of both logs and of TensorBoard's files.
        settings: the settings of the run, for the first line of the log of evaluations.
        warn: shows a warning to the user.

    Attributes:
        first: the first line of the log of evaluations. A resumed run keeps the line of the run
            that it continues.
    """

    def __init__(
        self,
        outputs: RunFiles,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._outputs, self._settings, self._warn = outputs, settings, warn
        self._open = ExitStack()
        self.first: Mapping[str, Any] = {}

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Begin both logs, or cut them back to the checkpoint from which the run continues."""
        keep = state.n_updates if resumed else None
        # If the evaluation after the checkpoint's last update is to be made again, its line goes.
        keep_evaluations = None if keep is None else keep - (not state.evaluated)
        mirrors: tuple[Mirror | None, Mirror | None] = (None, None)
        directory = self._outputs.settings.tensorboard
        if directory is not None:
            board = TensorBoard(directory)
            self._open.callback(board.close)
            mirrors = (board.evaluation_line, board.update_line)
        self._evaluations = JsonLines(self._outputs.log, keep_evaluations, mirrors[0])
        self._open.callback(self._evaluations.close)
        if self._evaluations.is_new:
            self._evaluations.write(**self._settings)
        self.first = self._evaluations.first
        self._updates = JsonLines(self._outputs.updates, keep, mirrors[1])
        self._open.callback(self._updates.close)

    def updated(self, update: UpdateLine) -> None:
        """Write a line of the log of updates."""
        self._updates.write(**asdict(update))

    def warned(self, update: UpdateLine, message: str) -> None:
        """Show the first warning of a run, and note it as an event in the log of updates."""
        if DIVERGING not in self._updates.events:
            self._updates.write(
                n_updates=update.n_updates, event=DIVERGING, message=message, time=update.time
            )
            self._warn(f"warning: {message}")

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Write a line of the log of evaluations."""
        counts = {"n_epochs": evaluation.n_epochs, "n_updates": evaluation.n_updates}
        self._evaluations.write(**counts, **evaluation.figures)

    def closed(self) -> None:
        """Close both logs."""
        self._open.close()


class Keeper(Listener):
    """Calls ``save`` before the first update, and whenever an evaluation is the best so far.

    Args:
        save: keeps the parameters that the model has now.
        begin: called once before all else, also where the run goes on from a checkpoint.
    """

    def __init__(self, save: Callable[[], None], begin: Callable[[], None] = lambda: None) -> None:
        self._save, self._begin = save, begin

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Keep what the run starts from, unless it goes on from a checkpoint."""
        self._begin()
        if not resumed:
            self._save()

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Keep the parameters that were just evaluated, if they are the best so far."""
        if is_best:
            self._save()


class History(Listener):
    """Remembers all evaluations and updates, in order."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.updates: list[UpdateLine] = []

    def updated(self, update: UpdateLine) -> None:
        """Remember the figures of an update."""
        self.updates.append(update)

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Remember an evaluation."""
        self.evaluations.append(evaluation)
