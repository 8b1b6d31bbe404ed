"""Change gpt1 in small random ways, one at a time, and check that a test notices each change.

The library cosmic-ray makes the changes: another number, operator or comparison, or a loop that
does not run. Each change is tried in a copy of the repository, with the tests of that module.

    pip install --target /tmp/mutants-library cosmic-ray
    PYTHONPATH=/tmp/mutants-library python scripts/mutants.py --seed 2018 --each 7
"""

from __future__ import annotations

import argparse
import ast
import difflib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
CPU_SECONDS, SECONDS = 300, 1200  # A change that makes the tests slower counts as noticed.
TESTS = {  # the tests of each module, the quickest first
    "model/transformer": ("model", "traps", "dropout", "fast"),
    "model/dropout": ("dropout", "model"),
    "opt/adam": ("opt", "model", "traps"),
    "inference/prediction": ("predict", "traps", "train"),
    "batches/encoded": ("batches", "model", "traps"),
    "batches/packing": ("batches", "model", "traps"),
    "datasets/story_cloze": ("datasets",),
    "text_utils/encoder": ("text_utils",),
    "text_utils/vocabulary": ("text_utils",),
    "text_utils/words": ("text_utils",),
    "weights/parameters": ("weights", "traps"),
    "weights/released": ("weights", "traps"),
    "weights/stored": ("transfer", "language_model", "hub"),
    "training/prepare": ("traps", "train", "hub"),
    "training/loop": ("loop", "train", "checkpoint", "stopping", "distributed"),
    "training/fine_tuning": ("train", "traps", "distributed"),
    "training/runs": ("train", "submissions", "distributed"),
    "runtime/ranks": ("distributed", "predict", "train"),
}
# Parts of the names of cosmic-ray's operators that are left out as unlikely mistakes.
UNLIKELY = re.compile("Bit|Shift|Is|Invert|UAdd|USub_Not|Variable|Decorator|Exception")
CHECKS = ("strict", "frozen", "kw_only")  # keywords that change no result


def meaning(code: str) -> str | None:
    """Dump a module's syntax tree without annotations, messages and checks.

    Returns:
        None if the code is not valid Python.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in CHECKS]
        elif isinstance(node, ast.JoinedStr):
            node.values = []
    return ast.dump(tree)


def draw(module: str, n: int, seed: int, operators: dict[str, Any]) -> list[str]:
    """Draw n texts of a module with one change each, on different lines."""
    source = (ROOT / "gpt1" / f"{module}.py").read_text("utf-8")
    lines = defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators.items():
        positions = [at for node in nodes for at in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(positions):
            lines[line].append((name, occurrence))
    generator, drawn = random.Random(f"{seed} {module}"), []
    for line in generator.sample(sorted(lines), len(lines)):
        name, occurrence = generator.choice(lines[line])
        text = mutate_code(source, operators[name], occurrence)
        if text and meaning(text) not in (None, meaning(source)):
            drawn.append(text)
        if len(drawn) == n:
            break
    return drawn


def try_one(module: str, text: str) -> tuple[str, str, str]:
    """Return the change as one line, ``killed`` or ``SURVIVED``, and the test that noticed it."""
    path = ROOT / "gpt1" / f"{module}.py"
    old, new = path.read_text("utf-8").splitlines(), text.splitlines()
    changed = list(difflib.unified_diff(old, new, lineterm="", n=0))[3:]
    shown = f"{module}: " + "  ".join(line.strip() for line in changed)
    with tempfile.TemporaryDirectory(prefix="gpt1-mutant-") as directory:
        copy = Path(directory) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "log"))
        (copy / path.relative_to(ROOT)).write_text(text, "utf-8")
        names = [str(*(copy / "tests").rglob(f"test_{name}.py")) for name in TESTS[module]]
        process = multiprocessing.get_context("fork").Process(target=_test, args=(copy, names))
        process.start()
        process.join(SECONDS)
        assert process.pid is not None
        with suppress(ProcessLookupError):  # No process that the tests started is left.
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        output = (Path(directory) / "output").read_text("utf-8", "replace")
    noticed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    fate = "SURVIVED" if process.exitcode == 0 else "killed"
    return shown, fate, noticed[0][:150] if noticed else f"status {process.exitcode}"


def _test(copy: Path, names: list[str]) -> None:
    """Run these tests in a forked process, which has imported the slow libraries already."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    output = os.open(copy.parent / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", *names]))


def main() -> int:
    """Print each change and whether a test noticed it; return 1 if one was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="modules [all]")
    parser.add_argument("--seed", type=int, default=2018)
    parser.add_argument("--each", type=int, default=7, help="deviations of each module [7]")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
    import sklearn.utils  # noqa: F401  # slow libraries, which every process would import
    import spacy.lang.en  # noqa: F401
    import torch  # noqa: F401

    names = [name for name in sorted(operator_names()) if not UNLIKELY.search(name)]
    operators = {name: get_operator(name)() for name in names}
    survived = 0
    for module in args.modules:
        for text in draw(module, args.each, args.seed, operators):
            shown, fate, by = try_one(module, text)
            survived += fate == "SURVIVED"
            print(f"{fate:8} {shown}\n         {by}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
