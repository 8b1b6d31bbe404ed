"""Apply a function to a stream of tasks in several processes, with the results in order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from gpt1.runtime.errors import Gpt1Error
from gpt1.runtime.stopping import SIGNALS, end_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_AHEAD = 2  # tasks per process that are read before their results are needed
_function: Callable[[Any], Any] | None = None  # in a worker process: what it applies to tasks


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def apply_in_order(
    make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], n_processes: int
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with the function's result for it, in the order of the tasks.

    Only a few tasks are read ahead, so that memory does not grow with their number. The processes
    end with the iterator, also if it is closed early or an error ends it, and they end when this
    process is killed. Signals of a terminal, such as Ctrl-C, reach this process alone.

    Args:
        make: makes the function, once in each process. With more than one process, ``make``, the
            tasks and the results must be picklable, and ``make`` must not fail.
        tasks: the arguments of the function.
        n_processes: the number of processes. With 1, this process does the work itself.

    Raises:
        Gpt1Error: the system ended one of the processes.
    """
    if n_processes == 1:
        function = make()
        for task in tasks:
            yield task, function(task)
        return
    executor = ProcessPoolExecutor(
        n_processes,
        multiprocessing.get_context(_start_method()),
        _start,
        (make, os.getpid()),
    )
    try:
        yield from _in_order(executor, iter(tasks), n_processes * _TASKS_AHEAD)
    except BrokenProcessPool as error:
        raise Gpt1Error(
            "a process that this program started was ended by the system, as Linux does when "
            "memory runs out; free memory, or allow the program fewer cores (taskset), and start "
            "the same command again"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_method() -> str:
    """Return how to start processes: by a fork, which takes no time, where that is safe.

    A fork copies the locks that other threads hold. They would never be released in the copy.
    """
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    return "fork" if can_fork else "spawn"


def _in_order(
    executor: ProcessPoolExecutor, tasks: Iterator[Task], most: int
) -> Iterator[tuple[Task, Any]]:
    """Yield the tasks with their results, of which ``most`` are under way at a time."""
    waiting: deque[tuple[Task, Future[Any]]] = deque()
    while True:
        for task in islice(tasks, most - len(waiting)):
            with _signals_blocked():
                waiting.append((task, executor.submit(_apply, task)))
        if not waiting:
            return
        task, future = waiting.popleft()
        yield task, future.result()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals that end this process; a process that is started meanwhile blocks them, too."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(make: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    """Begin a worker process, which SIGTERM ends and SIGINT does not."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent()
    if os.getppid() != parent:  # The parent is dead already.
        os._exit(1)
    _function = make()
    # The garbage collector need not look again and again at what is there before the work begins:
    # a process that was forked would get a copy of all memory that it only looks at.
    gc.freeze()


def _apply(task: Any) -> Any:
    """Apply the function of this worker process to a task."""
    assert _function is not None
    return _function(task)
