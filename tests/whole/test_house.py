"""Rules of the code for which linters have none.

The layers of the rooms are a contract of import-linter, in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 50
LATE_IMPORTS = (
    "gpt1/commands/*.py",
    "gpt1/__init__.py",
    "gpt1/**/extras.py",
    "gpt1/text_utils/__init__.py",
    "gpt1/weights/__init__.py",
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*directories: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each Python file."""
    for directory in directories:
        for path in sorted((ROOT / directory).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def n_lines(function: Function) -> int:
    """Return the lines of a function without decorators and docstring."""
    first = function.body[0]
    docstring = first if ast.get_docstring(function, clean=False) is not None else None
    lines = (function.end_lineno or 0) - function.lineno + 1
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


def late_imports(tree: ast.AST) -> list[int]:
    """Return the lines inside functions that import a module, or call ``import_module``."""
    return [
        node.lineno
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"))
    ]


def layers() -> list[str]:
    """Return the rooms in import-linter's contract, from top to bottom."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return re.findall(r'"\(?(\w+)\)?"', text[text.index("layers = [") :].partition("]")[0])


@pytest.mark.parametrize(
    ("source", "lines", "imports"),
    [
        ("def f():\n    '''a\n    b'''\n    x = 1\n    import os\n", 3, [5]),
        ("@x\nasync def f(\n    a,\n):\n    from os import (\n        path,\n    )\n", 6, [5]),
        ("import os\ndef f():\n    return importlib.import_module('x')\n", 2, [3]),
    ],
)
def test_lines_and_late_imports_are_counted(source: str, lines: int, imports: list[int]) -> None:
    (function,) = functions(ast.parse(source))
    assert n_lines(function) == lines
    assert late_imports(ast.parse(source)) == imports


def test_every_function_fits_a_screen() -> None:
    long = [
        f"{path}:{function.lineno} {function.name}: {n_lines(function)} lines"
        for path, tree in sources("gpt1", "scripts", "benchmarks", "examples")
        for function in functions(tree)
        if n_lines(function) > MOST_LINES
    ]
    assert long == []


def test_late_imports_stand_where_programs_start() -> None:
    """All other modules import at their top, where import-linter sees it."""
    late = [
        f"{path}:{line}"
        for path, tree in sources("gpt1")
        if not any(Path(path).match(pattern) for pattern in LATE_IMPORTS)
        for line in sorted(set(late_imports(tree)))
    ]
    assert late == []


def test_the_guide_shows_the_rooms_from_bottom_to_top() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = re.findall(r"^\| `gpt1/(\w+)/` \|", guide, re.MULTILINE)
    assert shown == layers()[::-1]
    rooms = {path.parent.name for path in (ROOT / "gpt1").glob("*/__init__.py")}
    assert rooms - {"tasks"} == set(shown) - {"tasks"}


def test_the_guide_shows_every_folder_of_tests() -> None:
    """The folders of the rooms share one row of the table, ``tests/ROOM/``."""
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = re.findall(r"^\| `tests/(\w+)/` \|", guide, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.*")}
    assert {*shown} - {"ROOM"} == folders - {*layers(), "__pycache__"}
