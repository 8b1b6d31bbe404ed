"""Items are prepared in order, in one other thread, and a few ahead of the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest
from waiting import wait_until

from gpt1.runtime.ahead import AHEAD, made_ahead


def ahead_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_every_item_comes_once_and_in_order(n: int) -> None:
    with made_ahead(range(n), lambda x: x * x) as items:
        assert list(items) == [(x, x * x) for x in range(n)]
    assert ahead_threads() == []


def test_the_next_items_are_prepared_while_the_loop_works() -> None:
    made: list[int] = []
    with made_ahead(range(9), made.append) as items:
        for item, _ in items:
            due = list(range(min(item + 1 + AHEAD, 9)))
            wait_until(lambda due=due: made == due, f"the items {due}")  # type: ignore[misc]
    assert made == list(range(9))


def collect(items: Iterable[int], make: Callable[[int], int], seen: list[int], last: int) -> None:
    """Append what is made to ``seen``; raise KeyboardInterrupt at the item ``last``."""
    with made_ahead(items, make) as pairs:
        for item, made in pairs:
            if item == last:
                raise KeyboardInterrupt
            seen.append(made)


def test_an_error_comes_with_its_item() -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        collect([2, 1, 0, 3], lambda x: 2 // x, seen, last=9)
    assert seen == [1, 2]
    assert ahead_threads() == []


def test_the_thread_ends_with_the_loop() -> None:
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        collect(range(10**9), abs, seen, last=3)
    assert seen == [0, 1, 2]
    assert ahead_threads() == []
