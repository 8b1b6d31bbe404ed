"""Wait for what another process or thread does, without a guess at how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 600.0  # seconds after which a wait counts as hung; a busy machine needs fewer


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when ``condition`` holds.

    Raises:
        AssertionError: it does not hold after ``DEADLINE``; the message names ``what``.
    """
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"in vain waited for: {what}"
        time.sleep(0.02)
