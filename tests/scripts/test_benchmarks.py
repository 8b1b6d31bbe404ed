"""The benchmarks: asked for help, they show it and measure nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "\ndef main(" in path.read_text()
]


def test_there_are_benchmarks() -> None:
    assert {"generation", "optimizer", "sizes", "startup", "text", "training"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_benchmark_runs_nothing(
    name: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")

    def not_reached(*_: object) -> int:
        raise AssertionError("the benchmark was run")

    monkeypatch.setattr(module, "run", not_reached)
    with pytest.raises(SystemExit) as caught:
        module.main([flag])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ")
    assert "--json FILE" in shown
    assert str(module.__doc__).splitlines()[0] in shown
