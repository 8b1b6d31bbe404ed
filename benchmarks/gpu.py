"""Measure everything on a machine with a GPU, one part after another, within nine minutes.

    python -m benchmarks.gpu OUT_DIR                              # stories with ROCStories' lengths
    python -m benchmarks.gpu OUT_DIR IDS.npz                      # the real token ids
    python -m benchmarks.gpu OUT_DIR --device cpu --small         # try the program without a GPU
    python -m benchmarks.gpu --make_ids IDS.npz --data_dir data --model_dir model

Needs torch and what gpt1 needs besides, but neither spaCy nor ftfy nor a network, except for
--make_ids. Each part is a process with a time limit of its own; a part that fails does not end the
others. OUT_DIR gets gpu.json (all figures), summary.txt, profile.txt and logs.txt (the ends of the
logs). They are written again after each part. The exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_data import make_ids
from benchmarks.harness import parser, positive, write_json
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests"
SECONDS = {
    "machine": 40,
    TESTS: 90,
    "fast": 150,
    "default": 70,
    "pretraining": 120,
    "peer": 60,
    "profile": 90,
    "deterministic": 60,
    "generation": 45,
    "memory": 40,
}
"""The parts in the order of their importance, each with its time limit in seconds."""
TOTAL = 520
"""Seconds that all parts take together at most; what is left decides over the later parts."""
LEAST = 10
"""Seconds below which no part is started."""
N_LINES, N_CHARACTERS = 60, 12_000
"""How much of the end of a log is kept."""
LEFT_OUT = "left out"


@dataclass(kw_only=True)
class Part:
    """What became of a part.

    Attributes:
        name: its name.
        state: ``done``, ``failed: ...``, ``stopped after ... s`` or ``left out: ...``.
        seconds: how long it took.
        figures: what it measured.
        log: the end of what it printed.
    """

    name: str
    state: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    log: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether the part has neither ended well nor been left out."""
        return self.state != "done" and not self.state.startswith(LEFT_OUT)


def command(name: str, args: argparse.Namespace, json_path: Path) -> list[str]:
    """Return the command line of a part."""
    if name == TESTS:
        marked = [str(path.relative_to(ROOT)) for path in marked_tests()]
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    given = [name, "--device", str(args.device), "--json", str(json_path)]
    given += ["--ids", str(args.ids.resolve())] if args.ids else []
    given += ["--small"] if args.small else []
    return [sys.executable, "-m", "benchmarks.gpu_parts", *given]


def marked_tests() -> list[Path]:
    """Return the files that hold tests which need a GPU.

    The others are not collected, since some import spaCy or ftfy.
    """
    mark = "mark." + "gpu"
    return [
        path for path in sorted((ROOT / "tests").glob("*/test_*.py")) if mark in path.read_text()
    ]


def run_part(name: str, args: argparse.Namespace, limit: float, directory: Path) -> Part:
    """Run a part in a process group of its own, which ends with it or at the limit."""
    json_path, log_path = directory / f"{name}.json", directory / f"{name}.log"
    begin = time.monotonic()
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command(name, args, json_path),
            cwd=ROOT,
            env=environment(name, directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):  # Compilation leaves processes behind, too.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    figures = json.loads(json_path.read_text("utf-8")) if json_path.exists() else {}
    log_end = end_of(log_path.read_text("utf-8", errors="replace"))
    return Part(
        name=name,
        state=state_of(status, log_end, limit),
        seconds=round(time.monotonic() - begin, 1),
        figures=figures,
        log=log_end,
    )


def environment(name: str, directory: Path) -> dict[str, str]:
    """Return the environment of a part: what is compiled is kept for the later parts alone."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "TRITON_CACHE_DIR": str(directory / "triton"),
    }
    if name == TESTS:  # Its own processes are then not taken for some that a test has left.
        found["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return found


def state_of(status: int | None, log: str, limit: float) -> str:
    """Return what became of a part, by its exit status (None at the limit) and its log."""
    if status is None:
        return f"stopped after {limit:.0f} s"
    if status == 0:
        return "done"
    last = log.strip().splitlines()[-1:] or [""]
    if LEFT_OUT in last[0]:
        return last[0][last[0].index(LEFT_OUT) :]
    if "No module named pytest" in last[0]:
        return f"{LEFT_OUT}: pytest is not installed"
    return f"failed with exit status {status}: {last[0][:200]}"


def end_of(log: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(log[-N_CHARACTERS:].splitlines()[-N_LINES:])


# ------------------------------------------------------------------------------- the results


def compared(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the ratios between parts that have both been measured."""
    found: dict[str, float] = {}
    for part, precision in (("fast", "bf16"), ("default", "fp32")):
        with suppress(KeyError):
            ours = figures[part]["whole run"]["seconds"]
            found[f"{part}: seconds of the whole fine-tuning, files included"] = ours["whole"]
            computed = ours["updates"] + ours["evaluations"] + ours["predictions"]
            found[f"{part}: seconds without files"] = round(computed, 3)
            theirs = sum(figures["peer"][precision]["seconds"].values())
            found[f"{part}: times the speed of transformers in {precision}"] = theirs / computed
    shares = [
        value["share of the product rate"]
        for value in figures.get("pretraining", {}).values()
        if isinstance(value, dict) and "share of the product rate" in value
    ]
    if shares:
        found["pretraining: largest share of the bf16 product rate"] = max(shares)
    return found


def lines_of(figures: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Show figures, one per line; the texts of profiles have a file of their own."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *lines_of(value, indent + "  ")]
        elif name != "text":
            shown = f"{value:.5g}" if isinstance(value, float) else value
            lines.append(f"{indent}{name}: {shown}")
    return lines


def write_results(args: argparse.Namespace, parts: Sequence[Part]) -> None:
    """Write all files of the results."""
    figures = {part.name: part.figures for part in parts}
    ratios = compared(figures)
    states = {part.name: {"state": part.state, "seconds": part.seconds} for part in parts}
    whole = {"small": args.small, "ids": args.ids is not None, "parts": states}
    whole |= {"compared": ratios, "figures": figures}
    for path in {args.out / "gpu.json", args.json or args.out / "gpu.json"}:
        write_json(path, whole)
    lines = [f"{part.name:16}{part.seconds:7.1f} s  {part.state}" for part in parts]
    if args.small:
        lines.insert(0, "In small, to try the program: no figure means anything.")
    lines += ["", "Compared", *lines_of(ratios)]
    for part in parts:
        lines += ["", part.name, *lines_of(part.figures)]
        if part.is_failed:
            lines += ["  the end of its log:", part.log]
    profiles = [
        f"==== {name}\n{found['text']}\n"
        for name, found in figures.get("profile", {}).items()
        if isinstance(found, dict)
    ]
    texts = {
        "summary.txt": "\n".join(lines),
        "profile.txt": "\n".join(profiles) or "There is no profile.",
        "logs.txt": "\n\n".join(f"==== {part.name}\n{part.log}" for part in parts),
    }
    for name, text in texts.items():
        with atomic_write(args.out / name, "w") as file:
            file.write(text + "\n")


def run(args: argparse.Namespace) -> int:
    """Run all parts, write the results after each, and print the summary."""
    if args.make_ids is not None:
        make_ids(args.make_ids, args.data_dir, args.model_dir)
        print(f"written: {args.make_ids}, {args.make_ids.stat().st_size:,} bytes")
        return 0
    if args.out is None:
        raise InputError("OUT_DIR is missing: name the directory of the results")
    if args.device.type != "cuda" and not args.small:
        raise InputError(
            f"--device {args.device}: the measurements are made for a GPU; give --small, too, to "
            "try the program here"
        )
    if args.ids is not None and not args.ids.is_file():
        raise InputError(f"{args.ids}: there is no such file; make it with --make_ids")
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.patience * TOTAL
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="gpt1-gpu-", ignore_cleanup_errors=True) as directory:
        for name in args.parts:
            limit = min(args.patience * SECONDS[name], end - time.monotonic())
            if limit < LEAST:
                parts.append(Part(name=name, state=f"{LEFT_OUT}: no time was left"))
            else:
                parts.append(run_part(name, args, limit, Path(directory)))
            print(f"{name}: {parts[-1].state} ({parts[-1].seconds} s)", flush=True)
            write_results(args, parts)
    print((args.out / "summary.txt").read_text("utf-8"))
    return int(any(part.is_failed for part in parts))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    add = flags.add_argument
    add("out", type=Path, nargs="?", metavar="OUT_DIR", help="the directory of the results")
    add("ids", type=Path, nargs="?", metavar="IDS.npz", help="real token ids [drawn ones]")
    add("--small", action="store_true", help="in small, to try the program")
    add("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS), help="[all parts]")
    add("--patience", type=positive, default=1, help="multiply all time limits by this [1]")
    add("--make_ids", type=Path, metavar="IDS.npz", help="only encode ROCStories to this file")
    add("--data_dir", type=Path, default=Path("data"), help="the real CSVs [data]")
    add("--model_dir", type=Path, default=Path("model"), help="vocabulary and merges [model]")
    return report_errors("benchmarks.gpu", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
