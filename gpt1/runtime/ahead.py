"""Prepare the next items of a loop in a thread, while the loop works on the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 2
"""Number of items that are prepared before they are asked for."""


@contextmanager
def made_ahead(
    items: Iterable[Item], make: Callable[[Item], Made]
) -> Iterator[Iterator[tuple[Item, Made]]]:
    """Call a function on each item, in order and in another thread, some items ahead of the loop.

    An error of the function is raised when its item is asked for. The thread has ended when the
    block ends.

    Args:
        items: taken in the thread of the caller.
        make: is called in the other thread, for one item at a time.

    Yields:
        An iterator over the items and what the function returned for each.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        try:
            yield _made(iter(items), make, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


def _made(
    items: Iterator[Item], make: Callable[[Item], Made], thread: ThreadPoolExecutor
) -> Iterator[tuple[Item, Made]]:
    waiting: deque[tuple[Item, Future[Made]]] = deque()
    while True:
        for item in islice(items, AHEAD + 1 - len(waiting)):
            waiting.append((item, thread.submit(make, item)))
        if not waiting:
            return
        item, made = waiting.popleft()
        yield item, made.result()
