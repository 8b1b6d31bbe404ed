"""The pages of the site: where they stand, and where their links lead."""

from __future__ import annotations

import runpy
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_site.py"


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a first page, two pages, and two files that they link to."""
    files = {
        "README.md": "[one](docs/one.md#part), ![a picture](docs/a.png), [there](https://a.org/b)",
        "docs/one.md": "[two](two.md), [home](../README.md), [data](../data/README.md), [x](#part)",
        "docs/two.md": "[a program](../examples/a.py), [nothing](../docs/missing.md)",
        "docs/a.png": "",
        "data/README.md": "[one](../docs/one.md)",
        "examples/a.py": "pass",
        "examples/b.py": "pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_links_lead_to_where_the_pages_stand(script: dict[str, Any], root: Path) -> None:
    pages = root / "pages"
    script["collect"](root, pages)
    found = {
        path.relative_to(pages).as_posix(): path.read_text("utf-8")
        for path in pages.rglob("*")
        if path.is_file()
    }
    assert found == {
        "index.md": "[one](one.md#part), ![a picture](a.png), [there](https://a.org/b)",
        "one.md": "[two](two.md), [home](index.md), [data](data.md), [x](#part)",
        # A link to nothing stays, so that Zensical reports it.
        "two.md": "[a program](examples/a.py), [nothing](missing.md)",
        "a.png": "",
        "data.md": "[one](one.md)",
        "examples/a.py": "pass",
    }


def test_links_from_a_folder_lead_out_of_it(script: dict[str, Any]) -> None:
    source = PurePosixPath("examples/README.md")
    assert script["page"](source, "[a](b/c.md)") == "[a](examples/b/c.md)"
    assert script["page"](PurePosixPath("gpt1/a/b.md"), "[a](../../docs/c.md)") == "[a](../../c.md)"


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (SCRIPT.parents[1] / "zensical.toml").read_text("utf-8")
    for path in sorted((SCRIPT.parents[1] / "docs").glob("*.md")):
        assert f'"{path.name}"' in navigation, f"{path.name} is missing in zensical.toml"
