"""Write the figures in the logs for TensorBoard (needs the extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt1.results.log_lines import Run
from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.extras import import_extra

_FLUSH_SECONDS = 10  # how far TensorBoard lags behind a run at most
_NOT_SCALARS = ("n_updates", "time")  # they say where and when the scalars stand


class TensorBoard:
    """A directory of event files with the same scalars as the two logs of a run.

    The scalars are named after the fields of the logs: ``update/clf_cost``, ``evaluation/va_acc``
    and so on. Opening a directory again begins anew, as opening a log does: earlier event files
    stay, but TensorBoard no longer shows their scalars. So a resumed run writes the lines that it
    keeps of its logs again, and no update appears twice or is lost.

    Args:
        directory: the directory of the event files; made if it does not exist.

    Raises:
        InputError: TensorBoard is not installed.
        Gpt1Error: the directory cannot be written.
    """

    def __init__(self, directory: str | Path) -> None:
        make = import_extra("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.directory = Path(directory)
        with self._trouble_reported():
            self._writer: Any = make(str(directory), purge_step=0, flush_secs=_FLUSH_SECONDS)

    def update(self, n_updates: int, values: Mapping[str, float | None]) -> None:
        """Write the figures of an update.

        Args:
            n_updates: number of the update.
            values: figures by name, or a whole line of the log. ``time`` becomes the time of the
                scalars; ``n_updates`` and values that are None are left out.
        """
        self._write("update", n_updates, values)

    def evaluation(self, n_updates: int, values: Mapping[str, float | None]) -> None:
        """Write the figures of an evaluation after ``n_updates``; see :meth:`update`."""
        self._write("evaluation", n_updates, values)

    def update_line(self, line: Mapping[str, Any]) -> None:
        """Write the figures in a line of the log of updates; a line of an event has none."""
        if "event" not in line:
            self.update(line["n_updates"], line)

    def evaluation_line(self, line: Mapping[str, Any]) -> None:
        """Write the figures in a line of the log of evaluations; the line of settings has none."""
        if "va_cost" in line:
            self.evaluation(line["n_updates"], line)

    def close(self) -> None:
        """Write all remaining figures and close the file."""
        with self._trouble_reported():
            self._writer.close()

    def _write(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        when = values.get("time")
        with self._trouble_reported():
            for name, value in values.items():
                if value is not None and name not in _NOT_SCALARS:
                    self._writer.add_scalar(f"{kind}/{name}", value, step, walltime=when)

    @contextmanager
    def _trouble_reported(self) -> Iterator[None]:
        """Turn an error of TensorBoard into a :class:`Gpt1Error`.

        TensorBoard writes in a thread, whose error is raised by some later call.
        """
        try:
            yield
        except OSError as error:
            raise Gpt1Error(
                f"{self.directory}: TensorBoard's files cannot be written: "
                f"{error.strerror or error}; free space or name another directory."
            ) from error


def write_run(run: Run, directory: str | Path) -> None:
    """Write all figures of a run's logs; TensorBoard then shows no others of the directory.

    Raises:
        InputError: TensorBoard is not installed.
        Gpt1Error: the directory cannot be written.
    """
    board = TensorBoard(directory)
    for update in run.updates:
        board.update_line(asdict(update))
    for evaluation in run.evaluations:
        board.evaluation_line(asdict(evaluation))
    board.close()
