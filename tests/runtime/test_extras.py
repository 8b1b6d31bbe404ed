"""Optional dependencies: imported late, and named with the way to install them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import PACKAGES, import_extra

ROOT = Path(__file__).parents[2]


def test_a_module_that_is_there_is_imported() -> None:
    assert import_extra("json.decoder", "plots") is sys.modules["json.decoder"]


@pytest.mark.parametrize("extra", PACKAGES)
def test_a_missing_package_is_named_with_the_way_to_install_it(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[extra], None)
    with pytest.raises(InputError) as caught:
        import_extra(PACKAGES[extra], extra)
    assert str(caught.value) == (
        f"{PACKAGES[extra]} is missing: run pip install -e '.[{extra}]' in the directory of the "
        "project"
    )


def test_each_extra_brings_its_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra, package in PACKAGES.items():
        assert re.search(rf'^{extra} = \["{package}\b', text, re.M), extra
