"""Fixtures that several folders of tests use; ``conftest.py`` gives them to all tests.

What a fixture needs is imported when a test asks for the fixture: torch takes seconds, and most
tests do without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from processes import Run
    from tiny import Tiny
    from web_server import Server


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, since the bits of a result depend on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ----------------------------------------------------------------------------- the tiny task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny task: its stories, its vocabulary and its pretrained model."""
    from tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def fork_server() -> None:
    """The server that starts runs in processes of their own.

    It begins before the fixtures of a single test, so that no variable and no current directory
    that a test sets reaches the runs of another test.
    """
    from processes import start_fork_server

    start_fork_server()


@pytest.fixture
def run(task: Tiny, tmp_path: Path) -> Run:
    """A run of the tiny task that has not begun."""
    from processes import Run

    return Run(task, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(fork_server: None, task: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run with dropout."""
    from processes import Run

    run = Run(task, tmp_path_factory.mktemp("whole"))
    done = run.do()
    assert (done.status, done.stderr) == (0, "")
    return run


@pytest.fixture(scope="module")
def whole(finished: Run) -> dict[str, Any]:
    """The results of the undisturbed run."""
    return finished.results()


@pytest.fixture(scope="module")
def whole_pair(
    fork_server: None, task: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of an undisturbed run of two processes."""
    from processes import Run

    run = Run(task, tmp_path_factory.mktemp("pair"))
    assert [(done.status, done.stderr) for done in run.do_pair()] == [(0, ""), (0, "")]
    return run.results()


# ----------------------------------------------------------------------------- other libraries


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The library transformers, which prints nothing and does not use the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


# ----------------------------------------------------------------------------- a server of files


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server with the files of :mod:`web_server`, which is reached without a proxy."""
    from web_server import running_server

    monkeypatch.setenv("no_proxy", "*")
    with running_server() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between the attempts of a download instead of waiting."""
    from gpt1.weights import fetching

    pauses: list[float] = []
    monkeypatch.setattr(fetching, "sleep", pauses.append)
    return pauses
