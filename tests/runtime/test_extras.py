"""A library of an extra is imported when it is used, or one message says how to install it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import LIBRARIES, import_extra


@pytest.mark.parametrize(
    ("extra", "module"),
    [("plots", "matplotlib.ticker"), ("tensorboard", "torch.utils.tensorboard")],
)
def test_a_missing_library_is_one_message(
    extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, LIBRARIES[extra], None)
    with pytest.raises(InputError) as caught:
        import_extra(extra, module)
    assert str(caught.value) == f"{LIBRARIES[extra]} is missing: pip install 'gpt1[{extra}]'"


def test_a_broken_library_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("raise ImportError('no shared object')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no shared object"):
        import_extra("plots", "broken_library")


def test_every_library_is_that_of_its_extra() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra, library in LIBRARIES.items():
        assert f'\n{extra} = ["{library}>=' in pyproject
