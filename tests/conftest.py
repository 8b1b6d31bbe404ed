"""Settings of all tests: their environment, their selection, and the paths of the real data."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from leftovers import Leftovers

pytest_plugins = ["shared_fixtures"]

ROOT = Path(__file__).parent.parent
# A process of pytest-xdist computes with one thread, unless the user says otherwise. This
# must come before the import of torch, which reads the variable only then.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may read or write the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="gpt1-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# How many examples a test with random input tries: plain pytest and `make test-all` take
# "thorough", `make test` takes "quick". Either tries the same examples in each run, so that no run
# fails by chance. With GPT1_FUZZ_EXAMPLES=N each run tries N new ones.
N_EXAMPLES = os.environ.get("GPT1_FUZZ_EXAMPLES")
settings.register_profile(
    "thorough",
    max_examples=max(int(N_EXAMPLES or 300), 1),
    derandomize=N_EXAMPLES is None,
    database=None,
    deadline=None,  # A busy machine may be slow.
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("quick", settings.get_profile("thorough"), max_examples=50)
settings.load_profile("thorough")

DATA_FIXTURES = {"rocstories_dir", "released_dir", "references_dir", "tasks_dir"}
LONGEST = {"test_reference_run.py"}  # If it began last, it would keep one process busy at the end.


def pytest_configure(config: pytest.Config) -> None:
    """Look for processes and files that tests leave, in pytest's main process only."""
    if not IS_WORKER:
        config.pluginmanager.register(Leftovers(ROOT))


def pytest_unconfigure() -> None:
    """Remove what multiprocessing has in /tmp, as it does itself when Python ends normally.

    The processes of pytest-xdist end without that.
    """
    if IS_WORKER:
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the real data, and put the longest tests first."""
    for item in items:
        if DATA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("data")
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session", autouse=True)
def _sigint_is_not_ignored() -> Iterator[None]:
    """Give SIGINT its usual handling, here and in the processes that tests start.

    If the parent of this process ignores SIGINT, so does this process: a shell script arranges
    that for what it starts with ``&``. A test in which SIGINT is to be ignored arranges it itself.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _directory(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{what} not here: set {variable} to the directory that holds them")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{variable}={value} is not a directory")
    return path


@pytest.fixture(scope="session")
def rocstories_dir() -> Path:
    """The two real ROCStories cloze CSVs, which come under a request form."""
    return _directory("GPT1_ROCSTORIES", "the real ROCStories CSVs are")


@pytest.fixture(scope="session")
def tasks_dir() -> Path:
    """Real files of the paper's other data sets, a folder for each; some are only a part."""
    return _directory("GPT1_TASKS", "real files of the paper's data sets are")


@pytest.fixture(scope="session")
def released_dir() -> Path:
    """The released vocabulary, merges and shapes (not the 466 MB of weights)."""
    return _directory("GPT1_RELEASED", "the released vocabulary and merges are")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Values the running original produced, small enough for the repository."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def references_dir() -> Path:
    """All values the running original produced, those that encode real text included."""
    return _directory("GPT1_REFERENCES", "the full reference values are")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how close comparisons with golden values were; ``check_processors.py`` reads it."""
    reference = sys.modules.get("reference")  # slow to import, and most tests do without it
    if reference is not None and reference.SHARES:
        test, share = max(reference.SHARES.items(), key=lambda item: item[1])
        terminalreporter.write_line(
            f"golden values: {len(reference.SHARES)} tests, largest error {share:.2f} of its "
            f"tolerance ({test})"
        )
