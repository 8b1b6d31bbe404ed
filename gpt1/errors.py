"""What the project raises when the user, not the program, can mend the cause."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


class Gpt1Error(Exception):
    """A failure with a message for people: no traceback is shown for it.

    The message says what happened, where (file and line, array, flag) and what to do.
    """

    exit_status = 1


class InputError(Gpt1Error):
    """Something handed over is wrong: a file, a value, a flag, or their combination."""

    exit_status = 2


def report_errors(program: str, body: Callable[[], int]) -> int:
    """Run ``body`` and turn a :class:`Gpt1Error` into one message and its exit status.

    Ctrl-C and a reader of our output that has gone end the program without a traceback, too.

    Args:
        program: the name put before the message, such as ``gpt1.train``.
        body: the program; returns its exit status.
    """
    try:
        return body()
    except Gpt1Error as error:
        sys.stdout.flush()
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
