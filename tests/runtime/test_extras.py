"""A library of an extra is imported when it is used, or one message says how to install it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import PACKAGES, import_extra


@pytest.mark.parametrize(
    ("module", "extra"),
    [("matplotlib.ticker", "plots"), ("torch.utils.tensorboard", "tensorboard")],
)
def test_a_missing_library_is_one_message(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, PACKAGES[extra], None)
    with pytest.raises(InputError) as caught:
        import_extra(module, extra)
    assert str(caught.value).startswith(
        f"{PACKAGES[extra]} is missing: run pip install -e '.[{extra}]' "
    )


def test_every_library_is_that_of_its_extra() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra, library in PACKAGES.items():
        assert f'\n{extra} = ["{library}>=' in pyproject
