"""Where the tests find what cannot be in the repository, and why they skip without it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


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
