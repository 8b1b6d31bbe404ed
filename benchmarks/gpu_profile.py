"""Find out from a trace of torch's profiler what a device did, and when it did nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

N_SHOWN = 10
_ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
_ON_CPU = {"cpu_op"}

Span = tuple[float, float, str]
"""Beginning and end in microseconds, and the name."""


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Return the events with a duration in a trace of ``export_chrome_trace``."""
    events = json.loads(path.read_text("utf-8"))["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "dur" in event]


def spans_of(events: Iterable[dict[str, Any]], kinds: set[str]) -> list[Span]:
    """Return the events of these kinds, by their beginnings."""
    return sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]), str(event["name"]))
        for event in events
        if event.get("cat") in kinds
    )


def busy_and_gaps(spans: list[Span]) -> tuple[float, list[Span]]:
    """Return the microseconds in which at least one span ran, and the gaps between spans.

    A gap has the name of the span that ended it.
    """
    busy, gaps, end = 0.0, list[Span](), spans[0][0] if spans else 0.0
    for begin, stop, name in spans:
        if begin > end:
            gaps.append((end, begin, name))
        busy += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return busy, gaps


def summarize(
    path: Path, n_updates: int, *, seconds_per_update: float, on_gpu: bool
) -> dict[str, Any]:
    """Summarize a trace of some updates.

    Args:
        path: the trace.
        n_updates: the number of updates in it.
        seconds_per_update: the seconds of an update without the profiler, which slows the program
            down, but not a GPU's kernels.
        on_gpu: whether the device is a GPU; otherwise the operations of the CPU are looked at, in
            which the inner ones are counted with the outer ones, too.

    Returns:
        Figures, and ``text``, lines for people.
    """
    events = read_trace(path)
    spans = spans_of(events, _ON_GPU if on_gpu else _ON_CPU)
    if not spans:
        raise RuntimeError("the trace has no event of the device: the profiler cannot see it")
    busy, gaps = busy_and_gaps(spans)
    wall = max(end for _, end, _ in spans) - spans[0][0]
    waits: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") in {"cuda_runtime", "cuda_driver"} and "Synchronize" in event["name"]:
            waits[event["name"]] += 1
    busy_seconds = busy / 1e6 / n_updates
    figures: dict[str, Any] = {
        "updates": n_updates,
        "seconds per update": seconds_per_update,
        "seconds per update in which the device was busy": busy_seconds,
        "share of time without work, without the profiler": 1 - busy_seconds / seconds_per_update,
        "share of time without work, under the profiler": 1 - busy / wall,
        "kernels per update": len(spans) / n_updates,
        "waits of the program for the GPU (the last one is the profiler's)": dict(waits),
    }
    return {**figures, "text": _text(figures, spans, gaps, n_updates)}


def _text(figures: dict[str, Any], spans: list[Span], gaps: list[Span], n_updates: int) -> str:
    """Show the figures, the kernels that took longest in total, and the longest gaps."""
    total: dict[str, list[float]] = defaultdict(list)
    for begin, end, name in spans:
        total[name].append(end - begin)
    lines = [f"{name}: {value}" for name, value in figures.items()]
    lines.append(f"\n{'ms per update':>14}{'calls':>8}  the kernels that take longest")
    longest = sorted(total.items(), key=lambda item: -sum(item[1]))[:N_SHOWN]
    for name, times in longest:
        ms = sum(times) / 1e3 / n_updates
        lines.append(f"{ms:14.3f}{len(times) / n_updates:8.0f}  {name[:120]}")
    lines.append(f"\n{'ms':>14}  the longest gaps, and the kernel that ended each")
    for begin, end, name in sorted(gaps, key=lambda gap: gap[0] - gap[1])[:N_SHOWN]:
        lines.append(f"{(end - begin) / 1e3:14.3f}  {name[:120]}")
    return "\n".join(lines)
