"""Make the documentation's site in `build/site/` from README.md and `docs/`.

README.md is the first page. Whatever a page links to in the repository becomes a part of the site.
Zensical makes the pages, and a link to nothing ends the program with status 1.

    python scripts/make_site.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
LINK = re.compile(r"(\]\()([^)#\s]+)")  # "](" and the target without its anchor
EXTERNAL = re.compile(r"[a-z]+:")


def place(source: PurePosixPath) -> PurePosixPath:
    """Return where a file of the repository stands among the pages."""
    if source == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    if source.name == "README.md":  # data/README.md is data.md
        return PurePosixPath(f"{source.parent}.md")
    return PurePosixPath(*source.parts[1:]) if source.parts[0] == "docs" else source


def links(source: PurePosixPath, text: str) -> dict[str, PurePosixPath]:
    """Return the files of the repository that a page links to, by the targets it writes."""
    found = {}
    for _, target in LINK.findall(text):
        if not EXTERNAL.match(target):
            path = os.path.normpath(source.parent / target)
            found[target] = PurePosixPath(path)
    return found


def page(source: PurePosixPath, text: str) -> str:
    """Return the text of a page with links to where the other files stand in the site."""
    here = place(source).parent
    targets = {
        target: os.path.relpath(place(path), here) for target, path in links(source, text).items()
    }
    return LINK.sub(lambda found: found[1] + targets.get(found[2], found[2]), text)


def collect(root: Path, pages: Path) -> None:
    """Write all pages, and the files that they link to.

    A target that does not exist is left out, and Zensical reports the links to it.
    """
    waiting = [PurePosixPath("README.md")]
    waiting += [PurePosixPath("docs") / path.name for path in sorted((root / "docs").glob("*.md"))]
    done = set()
    while waiting:
        source = waiting.pop()
        if source in done or not (root / source).is_file():
            continue
        done.add(source)
        target = pages / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = (root / source).read_text("utf-8")
            target.write_text(page(source, text), "utf-8")
            waiting += links(source, text).values()
        else:
            shutil.copyfile(root / source, target)


def main() -> int:
    """Make the site; return the exit status."""
    if importlib.util.find_spec("zensical") is None:
        print("make_site: needs Python 3.11 and pip install -e '.[site]'", file=sys.stderr)
        return 2
    shutil.rmtree(PAGES, ignore_errors=True)
    collect(ROOT, PAGES)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
