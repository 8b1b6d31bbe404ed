"""What ``import gpt1`` offers, and that it costs nothing before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gpt1
from gpt1.inference.language_model import LanguageModel, open_model
from gpt1.inference.zeroshot import ZeroshotResult, zeroshot
from gpt1.training.pretraining_runs import PretrainingResult, pretrain
from gpt1.training.runs import Result, fine_tune

ROOT = Path(__file__).parents[2]
OFFERED = {
    "LanguageModel": LanguageModel,
    "PretrainingResult": PretrainingResult,
    "Result": Result,
    "ZeroshotResult": ZeroshotResult,
    "fine_tune": fine_tune,
    "load_pretrained": open_model,
    "pretrain": pretrain,
    "zeroshot": zeroshot,
}


def printed(code: str) -> str:
    """What a fresh Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Only modules of the standard library and the package itself, whose rooms stay closed."""
    code = """
import sys
before = set(sys.modules)
import gpt1
dir(gpt1), gpt1.__version__, gpt1.__all__
new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in
       sys.stdlib_module_names}
print(sorted(new))
"""
    assert printed(code) == "['gpt1']"


def test_the_public_names_are_those_of_the_rooms() -> None:
    assert {*gpt1.__all__} == {*OFFERED, "__version__"}
    for name, expected in OFFERED.items():
        assert getattr(gpt1, name) is expected
        assert name in dir(gpt1)


@pytest.mark.parametrize("name", ["fine_tune", "load_pretrained", "pretrain", "zeroshot"])
def test_no_module_hides_a_public_function(name: str) -> None:
    """A submodule of the same name would replace the function once it is imported."""
    code = f"""
import importlib, pkgutil, gpt1
assert {name!r} not in [module.name for module in pkgutil.iter_modules(gpt1.__path__)]
import gpt1.train, gpt1.training, gpt1.inference
print(callable(gpt1.{name}))
"""
    assert printed(code) == "True"
    assert inspect.isfunction(getattr(gpt1, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gpt1' has no attribute 'tune'"):
        gpt1.tune  # noqa: B018
