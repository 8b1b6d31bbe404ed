"""The tests, modules, scripts, flags and files that the pages name exist; no gaps are left."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from every_command import every_command

import gpt1
from gpt1.settings.command import CONFIG
from gpt1.settings.training import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, *(ROOT / room / "README.md" for room in ("data", "model"))]
# Names in capitals that no source of the project defines: variables of Slurm's, and what the
# command in docs/performance.md has in place of a directory.
OTHER_CAPITALS = {
    "PYTEST_ADDOPTS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NNODES",
    "STAND_IN",
}
OTHER_FLAGS = {  # of torchrun, TensorBoard, git and make
    *("--nproc_per_node", "--nnodes", "--node_rank", "--rdzv-backend", "--rdzv-endpoint"),
    *("--rdzv-id", "--standalone", "--max-restarts", "--help", "--version", "--logdir", "--depth"),
    *("--check", "--durations", "--monitor-interval", "--signals-to-handle"),
    # of Slurm
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--signal", "--requeue"),
    "--open-mode",
    "--re",  # a shortened flag, which is refused according to docs/fidelity.md
}


@cache
def own_flags() -> set[str]:
    """Return the flags of all commands, and the flags in the sources of scripts and benchmarks."""
    sources = [
        path for room in ("gpt1", "scripts", "benchmarks") for path in (ROOT / room).rglob("*.py")
    ]
    added = re.findall(r"add(?:_argument)?\(\s*\"(--\w+)\"", "".join(map(Path.read_text, sources)))
    declared = {item.shown for command in every_command() for item in command.settings}
    training = {f"--{name}" for name in Settings().as_flags()}
    return {*declared, *training, *added, CONFIG.shown}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_tests_exist(page: Path) -> None:
    for file, test in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text()):
        assert re.search(rf"^def {test}\b", next((ROOT / "tests").rglob(file)).read_text(), re.M), (
            test
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b((?:scripts|tests|gpt1|docs)/[\w/]+\.\w+)\b", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_flags_exist(page: Path) -> None:
    known = own_flags() | OTHER_FLAGS
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    assert named <= known, named - known


# --------------------------------------------------------------------------- nothing to fill in

CAPITALS = r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+"
# Words for text that is not written yet, and figures without digits.
TO_FILL_IN = re.compile(
    r"\b(?:TODO|FIXME|XXX+|TB[ACD]|TK|WIP|PLACEHOLDER|LOREM IPSUM|NN+|[XN]+\.[XN]+)\b"
    r"|\?\?+|\.{4,}|_{3,}",
    re.IGNORECASE,
)
CODE = re.compile(r"^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*\n)+|`(?:[^`\n]|\n(?!\n))*`", re.M | re.S)
ANGLES = re.compile(r"<(?!https?://)([a-z]\w*(?:[ -]\w+)*)>", re.IGNORECASE)
BRACES = re.compile(r"\{\w*\}|\$\w+|%\(\w+\)s")
SHOUTED_LINE = re.compile(r"^[A-Z][A-Z0-9 _-]+[A-Z0-9]$", re.M)


@cache
def defined_capitals() -> set[str]:
    """Return constants, environment variables and names of values in ``--help`` in the sources."""
    files = [path for room in ("gpt1", "scripts") for path in (ROOT / room).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*files, ROOT / "tests" / "conftest.py"])
    constants = re.findall(rf"^({CAPITALS})\s*(?::[^=\n]+)?=", text, re.M)
    return {*constants, *re.findall(rf"[\"']({CAPITALS})[\"']", text)}


def placeholders(text: str) -> list[str]:
    """Return the parts of a page that look like placeholders."""
    known = defined_capitals() | OTHER_CAPITALS
    found = [word for word in re.findall(rf"\b{CAPITALS}\b", text) if word not in known]
    # In code a name in angle brackets may stand for the value of a flag: log/<desc>.jsonl.
    found += [match[0] for match in ANGLES.finditer(text) if f"--{match[1]}" not in own_flags()]
    found += [match[0] for match in TO_FILL_IN.finditer(text)]
    prose = CODE.sub(" ", text)
    for pattern in (ANGLES, BRACES, SHOUTED_LINE):
        found += [match[0] for match in pattern.finditer(prose)]
    return found


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert placeholders(page.read_text()) == []


COMPLETE = """# A page

`OMP_NUM_THREADS`, `GPT1_RELEASED` and `DEMO_DEFAULTS` are names, `log/<desc>.jsonl` is a file,
<https://example.org> an address, text <-> ids an arrow, `{"n_head": 4}` JSON. H200? No, CPU.

    text_utils        text <-> ids

```sh
cat > job.sh <<'EOF'
echo ${SLURM_JOB_ID}
EOF
```
"""


def test_a_complete_page_is_let_pass() -> None:
    assert placeholders(COMPLETE) == []


LEFT_OVERS = """
FIGURE_THREADS
`FIGURE_2`
it took FIGURE_A_B s
FIGURE THREADS
FIGURE
todo: measure
FIXME
XXX
tbd
TBC
TK
a placeholder
X.XX s
N.N times
about NN %
how many???
the figure is ....
took ___ seconds
<number>
<your name>
`<number>`
`log/<name>.jsonl`
<desc> of a run
{seconds} s
{} s
%(seconds)s s
$seconds
"""


@pytest.mark.parametrize("line", LEFT_OVERS.strip().splitlines())
def test_what_is_left_to_fill_in_is_found(line: str) -> None:
    found = placeholders(f"{COMPLETE}\n{line}\n\nMore text.\n")
    assert found
    assert all(each in line for each in found)


def test_no_name_is_excused_that_no_page_has() -> None:
    text = "".join(page.read_text() for page in ALL_PAGES)
    assert {name for name in OTHER_CAPITALS if name not in text} == set()


def test_changelog_and_citation_are_of_this_version() -> None:
    assert f"\n## {gpt1.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {gpt1.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'\nversion = "{gpt1.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
