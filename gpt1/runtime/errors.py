"""What the project raises when the user, not the program, can mend the cause."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


class Gpt1Error(Exception):
    """A failure with a message for people: no traceback is shown for it.

    The message says what happened, where (file and line, array, flag) and what to do.

    Attributes:
        reported_elsewhere: whether another process of the run reports the message.
    """

    exit_status = 1
    reported_elsewhere = False


class InputError(Gpt1Error):
    """Something handed over is wrong: a file, a value, a flag, or their combination."""

    exit_status = 2


def join_problems(problems: Sequence[str]) -> str:
    """Make one message of one problem or of several."""
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} problems:", *problems])


class Stopped(BaseException):
    """The program was asked to end (SIGTERM, SIGINT); its exit status says so, as shells do.

    No ``except Exception`` catches it, as with KeyboardInterrupt.

    Args:
        request: the signal.
        message: how far the work is, and how to continue.

    Attributes:
        reported_elsewhere: whether another process of the run reports the message.
    """

    reported_elsewhere = False

    def __init__(self, request: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.request = request
        self.exit_status = 128 + request


class ReaderGoneError(Gpt1Error):
    """The reader of standard output has ended, as ``head`` does; the shell's user knows why."""

    exit_status = 128 + 13  # as if SIGPIPE had ended the program; Windows has no such signal
    reported_elsewhere = True


class _Output:
    """Standard output whose failed writes are errors with a message for people.

    All other attributes are those of the stream itself.

    Args:
        stream: ``sys.stdout``; None if the program was started with standard output closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as the stream does.

        Raises:
            ReaderGoneError: nobody reads the output any more.
            Gpt1Error: the output cannot be written: a full disk, a closed stream.
        """
        with _output_errors():
            return self._open_stream().write(text)

    def flush(self) -> None:
        """Flush as the stream does; raises what :meth:`write` raises."""
        with _output_errors():
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._open_stream(), name)

    def _open_stream(self) -> TextIO:
        if self._stream is None:
            raise Gpt1Error("standard output is closed; send the output to a file")
        return self._stream


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError("nobody reads standard output any more") from error
    except OSError as error:
        raise Gpt1Error(
            f"standard output cannot be written: {error.strerror or error}; free space, or send "
            "the output elsewhere"
        ) from error


def report_errors(program: str, body: Callable[[], int]) -> int:
    """Run ``body`` and turn a :class:`Gpt1Error` into one message and its exit status.

    Ctrl-C, a closed pipe and standard output on a full disk end the program without a traceback,
    too. Any other exception is a fault of the program or of its installation and passes through.

    Args:
        program: the name put before the message, such as ``gpt1 train``.
        body: the program; returns its exit status.
    """
    try:
        return _run_with_checked_output(body)
    except Gpt1Error as error:
        _flush_or_drop_output()
        if not error.reported_elsewhere:
            print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_status
    except Stopped as stop:
        _flush_or_drop_output()
        if not stop.reported_elsewhere:
            print(f"{program}: stopped by {stop.request.name}: {stop}", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run_with_checked_output(body: Callable[[], int]) -> int:
    """Run ``body`` and see that everything it printed has been written in the end."""
    output: Any = _Output(sys.stdout)
    with redirect_stdout(output):
        try:
            status = body()
        except SystemExit:  # argparse ends the program so after --help
            output.flush()
            raise
        output.flush()
        return status


def _flush_or_drop_output() -> None:
    """Write what was printed; if that cannot be, Python must not try again at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
