"""Show a run on the terminal: its start, a progress bar, a table of evaluations, a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from gpt1.results.log_lines import UpdateLine
from gpt1.training.checkpoint import TrainState
from gpt1.training.loop import Evaluation, Listener

LINE_EVERY = 30.0
"""Seconds between two lines of progress on an output that cannot show a progress bar."""

BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}"


def say(message: str) -> None:
    """Write a message to stderr, above the progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


def can_draw() -> bool:
    """Return whether stderr can show a progress bar: on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Console(Listener):
    """Shows the progress and the results of a run.

    The evaluations go to stdout: as a table on a terminal or in a notebook, otherwise as the lines
    of the original, for programs to read. Everything else goes to stderr.

    Args:
        n_examples: number of examples per update, or of other units of work.
        units: what they are called.
        quiet: print nothing but the lines of the original, on a terminal too.
    """

    def __init__(self, n_examples: int, *, quiet: bool = False, units: str = "examples") -> None:
        self._n_examples, self._quiet, self._units = n_examples, quiet, units
        self._is_table = not quiet and (sys.stdout.isatty() or "ipykernel" in sys.modules)
        self._bar: Any = None
        self._has_header = False
        self._shown_at = self._started_at = time.monotonic()
        self._n_begin = self._n_updates = self._n_total = 0

    def prepared(self, description: Sequence[str]) -> None:
        """Print the lines that describe the run."""
        if not self._quiet:
            say("\n".join(description))

    def started(self, state: TrainState, *, n_updates: int, resumed: bool) -> None:
        """Show the progress bar."""
        self._started_at = self._shown_at = time.monotonic()
        self._n_begin, self._n_total = state.n_updates, n_updates
        self._n_updates = state.n_updates
        self._bar = tqdm(
            total=n_updates,
            initial=state.n_updates,
            bar_format=BAR,
            leave=False,
            dynamic_ncols=True,
            disable=self._quiet or not can_draw(),
        )

    def stepped(self, n_updates: int) -> None:
        """Move the progress bar."""
        self._n_updates = n_updates
        self._bar.update(n_updates - self._bar.n)

    def updated(self, update: UpdateLine) -> None:
        """Show the figures of an update in the bar, or in a line per :data:`LINE_EVERY` seconds."""
        now = time.monotonic()
        rate = (self._n_updates - self._n_begin) / max(now - self._started_at, 1e-9)
        loss = update.lm_cost if update.clf_cost is None else update.clf_cost
        figures = f"loss {loss:.2f}, lr {update.lr:.1e}"
        speed = f"{rate * self._n_examples:.0f} {self._units}/s"
        self._bar.set_postfix_str(f"{figures}, {speed}", refresh=False)
        if self._quiet or can_draw() or now - self._shown_at < LINE_EVERY:
            return
        self._shown_at = now
        left = (self._n_total - self._n_updates) / max(rate, 1e-9)
        say(
            f"update {update.n_updates} of {self._n_total}: {figures}, {speed}, "
            f"{tqdm.format_interval(left)} left"
        )

    def evaluating(self, done: int, total: int) -> None:
        """Show in the bar how far an evaluation is."""
        self._bar.set_postfix_str(f"evaluating: {100 * done // max(total, 1)} %")

    def evaluated(self, evaluation: Evaluation, *, is_best: bool) -> None:
        """Print epochs, updates, both costs, and both scores of the first metric."""
        self._bar.set_postfix_str("", refresh=False)
        names, figures = zip(*list(evaluation.figures.items())[:4], strict=True)
        costs, scores = figures[:2], figures[2:]
        if not self._is_table:
            words = [str(evaluation.n_epochs), str(evaluation.n_updates)]
            words += [f"{x:.3f}" for x in costs] + [f"{x:.2f}" for x in scores]
            tqdm.write(" ".join(words))
            sys.stdout.flush()
            return
        titles = [name.replace("tr_", "train ").replace("va_", "valid ") for name in names]
        width = max(12, *(len(title) + 2 for title in titles))
        if not self._has_header:
            heads = "".join(f"{title:>{width}}" for title in titles)
            tqdm.write(f"{'epoch':>6}{'update':>8}{heads}")
            self._has_header = True
        row = f"{evaluation.n_epochs:6}{evaluation.n_updates:8}"
        row += "".join(f"{x:{width}.3f}" for x in costs) + "".join(
            f"{x:{width}.2f}" for x in scores
        )
        tqdm.write(row + ("  best" if is_best else ""))

    def closed(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def finished(self, summary: Sequence[str]) -> None:
        """Print the lines that summarize the results."""
        if not self._quiet:
            say("\n".join(summary))
