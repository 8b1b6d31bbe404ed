"""What the project raises when the user, not the program, can mend the cause."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


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


def report_errors(program: str, body: Callable[[], int]) -> int:
    """Run ``body`` and turn a :class:`Gpt1Error` into one message and its exit status.

    Ctrl-C, a reader of our output that has gone, and output to a full disk end the program without
    a traceback, too.

    Args:
        program: the name put before the message, such as ``gpt1.train``.
        body: the program; returns its exit status.
    """
    try:
        status = body()
        sys.stdout.flush()
        return status
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
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        _flush_or_drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is not None:
            raise
        _flush_or_drop_output()
        print(
            f"{program}: error: standard output, or an open file, fails: {error.strerror}; free "
            "space, or send the output elsewhere",
            file=sys.stderr,
        )
        return Gpt1Error.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _flush_or_drop_output() -> None:
    """Write what was printed; if that cannot be, Python must not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
