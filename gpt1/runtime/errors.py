"""Errors whose cause the user can mend; a program reports them by one message, not a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


class Gpt1Error(Exception):
    """A failure that ends the program with one message and without a traceback.

    The message says what happened, where (file and line, array, flag) and what the user can do.

    Attributes:
        reported_elsewhere: whether another process of the run reports the message.
    """

    exit_status = 1
    reported_elsewhere = False


class InputError(Gpt1Error):
    """The user's input is wrong: a file, a value, a flag, or a combination of them."""

    exit_status = 2


def join_problems(problems: Sequence[str]) -> str:
    """Return one message that lists all ``problems``, of which there is at least one."""
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} problems:", *problems])


class Stopped(BaseException):
    """A signal (SIGTERM, SIGINT) asked the program to end.

    Like KeyboardInterrupt, this is no :class:`Exception`, so that ``except Exception`` does not
    catch it.

    Args:
        request: the signal.
        message: how far the work is, and how to continue.

    Attributes:
        exit_status: 128 plus the number of the signal, as in shells.
        reported_elsewhere: whether another process of the run reports the message.
    """

    reported_elsewhere = False

    def __init__(self, request: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.request = request
        self.exit_status = 128 + request


class ReaderGoneError(Gpt1Error):
    """The program that read standard output, such as ``head``, has ended; no message is needed."""

    exit_status = 128 + 13  # as if SIGPIPE had ended this program; Windows has no such signal
    reported_elsewhere = True


class _Output:
    """Standard output whose failed writes raise :class:`Gpt1Error`.

    All other attributes are those of the stream itself.

    Args:
        stream: ``sys.stdout``; None if the program was started with standard output closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text to the stream and return the number of characters, as every text stream does.

        Raises:
            ReaderGoneError: the program that read the output has ended.
            Gpt1Error: the output cannot be written (full disk, closed stream).
        """
        with _output_errors():
            return self._open_stream().write(text)

    def flush(self) -> None:
        """Flush the stream; raise the errors that :meth:`write` raises."""
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
    """Report an :class:`OSError` of the block as a failure to write standard output."""
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
    """Run ``body``, and turn a :class:`Gpt1Error` into one message on stderr and an exit status.

    Ctrl-C, a closed pipe and standard output on a full disk also end the program without a
    traceback. Any other exception is a fault of the program or of its installation and is raised.

    Args:
        program: the name that begins the message, such as ``gpt1 train``.
        body: the program; returns its exit status.

    Returns:
        The exit status of ``body``, or that of the error or signal that ended it.
    """
    try:
        return _run_with_checked_output(body)
    except (Gpt1Error, Stopped) as end:
        _flush_or_drop_output()
        if not end.reported_elsewhere:
            what = f"stopped by {end.request.name}" if isinstance(end, Stopped) else "error"
            print(f"{program}: {what}: {end}", file=sys.stderr)
        return end.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run_with_checked_output(body: Callable[[], int]) -> int:
    """Run ``body``, and check that everything it printed has been written."""
    output: Any = _Output(sys.stdout)
    with redirect_stdout(output):
        try:
            status = body()
        except SystemExit:  # argparse ends the program in this way after --help
            output.flush()
            raise
        output.flush()
        return status


def _flush_or_drop_output() -> None:
    """Write what was printed, or drop it if it cannot be written.

    Otherwise Python would try again when it exits, and print a traceback.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
