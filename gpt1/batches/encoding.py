"""Texts to token sequences, in several processes where there are many texts.

The processes beside this one only help: this process encodes, too, and does what a process that
failed or was killed has left. The other processes get their work through pipes. They end when the
pipe is closed, so that none is left if this process is killed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt1.batches.encoded import EncodedSplit
from gpt1.tasks import Layout
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens

Texts = Sequence[str]
"""The texts of one example."""

CHUNK_CHARACTERS = 1 << 18
"""Characters that are encoded at a time; the ids of so few texts fit in Python lists."""
WORTH_A_PROCESS = 1 << 22
"""Characters from which another process helps; to encode fewer takes less time than its start."""
_BAR_DELAY = 1.0  # seconds of work before a progress bar appears
_START = (
    "import sys; sys.path.insert(0, {root!r}); from gpt1.batches.encoding import serve; serve()"
)


@dataclass(frozen=True)
class Encoding:
    """How the texts of an example become token sequences.

    Attributes:
        encoder: turns a text into token ids.
        layout: makes the sequences of an example from the ids of its texts.
        special: ids of the special tokens.
        n_ctx: the largest number of tokens in a sequence; longer texts are cut.
    """

    encoder: TextEncoder
    layout: Layout
    special: SpecialTokens
    n_ctx: int

    def __call__(self, examples: Sequence[Texts]) -> EncodedSplit:
        """Encode examples in this process, each different text once."""
        texts = list(dict.fromkeys(chain.from_iterable(examples)))
        ids = dict(zip(texts, self.encoder.encode(texts, verbose=False), strict=True))
        sequences = (
            self.layout.sequences([ids[text] for text in each], self.special, self.n_ctx)
            for each in examples
        )
        return EncodedSplit.of(sequences, self.special)


def encode_examples(
    encoding: Encoding,
    examples: Sequence[Texts],
    *,
    n_processes: int = 1,
    verbose: bool = False,
) -> EncodedSplit:
    """Encode the examples of a split, a few at a time; the result has no labels.

    Args:
        encoding: how texts become sequences.
        examples: the texts of each example.
        n_processes: the largest number of processes, this one included.
        verbose: show a progress bar on stderr if that is a terminal and the work takes long.
    """
    parts = list(_parts(examples))
    n_helpers = min(n_processes - 1, n_characters(examples) // WORTH_A_PROCESS)
    work = _Work(examples, parts)
    hidden = None if verbose else True  # None hides the bar where stderr is not a terminal.
    with (
        tqdm(
            total=len(examples), desc="encode", leave=False, delay=_BAR_DELAY, disable=hidden
        ) as bar,
        _helpers(encoding, work, n_helpers),
    ):
        while (number := work.take()) is not None:
            work.done[number] = encoding(work.examples_of(number))
            bar.update(work.n_done() - bar.n)
    return _joined(encoding, [work.done[number] for number in range(len(parts))])


def n_characters(examples: Sequence[Texts]) -> int:
    """Return the number of characters of all texts."""
    return sum(len(text) for each in examples for text in each)


def _parts(examples: Sequence[Texts]) -> Iterator[slice]:
    """Cut examples into parts of about :data:`CHUNK_CHARACTERS` characters."""
    begin, size = 0, 0
    for number, texts in enumerate(examples, start=1):
        size += sum(map(len, texts))
        if size >= CHUNK_CHARACTERS:
            yield slice(begin, number)
            begin, size = number, 0
    if begin < len(examples):
        yield slice(begin, len(examples))


def _joined(encoding: Encoding, parts: list[EncodedSplit]) -> EncodedSplit:
    if not parts:
        return encoding([])
    return EncodedSplit(
        ids=np.concatenate([part.ids for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )


class _Work:
    """The parts that are still to be encoded, and those that are done.

    Attributes:
        done: the encoded parts by their numbers.
    """

    def __init__(self, examples: Sequence[Texts], parts: Sequence[slice]) -> None:
        self._examples, self._parts = examples, parts
        self._waiting = list(range(len(parts)))[::-1]
        self._with_helpers = 0
        self._changed = threading.Condition()
        self.done: dict[int, EncodedSplit] = {}

    def examples_of(self, number: int) -> Sequence[Texts]:
        """Return the examples of a part."""
        return self._examples[self._parts[number]]

    def n_done(self) -> int:
        """Return the number of examples that are done."""
        parts = (self._parts[number] for number in list(self.done))
        return sum(part.stop - part.start for part in parts)

    def take(self) -> int | None:
        """Return a part for this process; None when all is done.

        Waits while helpers are at work on the last parts, since one of them may fail.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._with_helpers)
            return self._waiting.pop() if self._waiting else None

    def take_for_helper(self) -> int | None:
        """Return a part for a helper; None if all parts are taken."""
        with self._changed:
            if not self._waiting:
                return None
            self._with_helpers += 1
            return self._waiting.pop()

    def finish(self, number: int, found: EncodedSplit | None) -> None:
        """Note the result of a helper; None if it failed, so that this process does the part."""
        with self._changed:
            self._with_helpers -= 1
            if found is None:
                self._waiting.append(number)
            else:
                self.done[number] = found
            self._changed.notify_all()


@contextmanager
def _helpers(encoding: Encoding, work: _Work, n: int) -> Iterator[None]:
    """Let n processes encode parts while the block runs; all have ended after it."""
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[threading.Thread] = []
    try:
        for _ in range(n):
            with suppress(OSError):  # No more processes are allowed: this one does the work.
                processes.append(_start())
                threads.append(threading.Thread(target=_feed, args=(processes[-1], encoding, work)))
                threads[-1].start()
        yield
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            with suppress(OSError), process:  # closes the pipes, and waits
                pass


def _start() -> subprocess.Popen[bytes]:
    """Start a process that runs :func:`serve` of this very package."""
    return subprocess.Popen(
        [sys.executable, "-c", _START.format(root=str(Path(__file__).parents[2]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # If it fails, this process does the work and reports errors.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _feed(process: subprocess.Popen[bytes], encoding: Encoding, work: _Work) -> None:
    """Give a process parts to encode until all are taken, or the process fails."""
    assert process.stdin is not None
    assert process.stdout is not None
    # Whatever goes wrong, this process encodes the part itself, and reports what is wrong with it.
    with suppress(Exception):
        pickle.dump(encoding, process.stdin)
        while (number := work.take_for_helper()) is not None:
            found = None
            try:
                pickle.dump(work.examples_of(number), process.stdin)
                process.stdin.flush()
                found = pickle.load(process.stdout)
            finally:
                work.finish(number, found)


def serve() -> None:
    """Encode what comes through stdin until it is closed; the results go to stdout."""
    encoding: Encoding = pickle.load(sys.stdin.buffer)
    with suppress(EOFError):
        while True:
            found = encoding(pickle.load(sys.stdin.buffer))
            pickle.dump(found, sys.stdout.buffer)
            sys.stdout.flush()
