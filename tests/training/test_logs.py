"""A log: lines are written whole, and cut back when a run is resumed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import faults
import pytest

from gpt1.runtime.errors import Gpt1Error
from gpt1.training.logs import JsonLines


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in lines(path)]


def written(path: Path, *numbers: int) -> None:
    """Write a log with a line of settings and a line for each number of updates."""
    log = JsonLines(path)
    log.write(desc="run")
    for n in numbers:
        log.write(n_updates=n)
    log.close()


# ------------------------------------------------------------------------------- JsonLines


def test_a_line_is_whole_in_the_file_at_once(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "new" / "log.jsonl")
    assert log.is_new
    log.write(desc="grün", n=1)
    first = (tmp_path / "new" / "log.jsonl").read_bytes()
    assert first.endswith(b"\n")
    log.write(n=2)
    log.close()
    assert (tmp_path / "new" / "log.jsonl").read_bytes().startswith(first)
    assert without_time(log.path) == [{"desc": "grün", "n": 1}, {"n": 2}]


def test_each_line_ends_with_its_time(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    before = time.time()
    log.write(n=1)
    log.write(n=2, time=3.0)
    first, second = lines(log.path)
    assert list(first) == ["n", "time"]
    assert before <= first["time"] <= time.time()
    assert second == {"n": 2, "time": 3.0}


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path, 1, 2)
    assert JsonLines(path).is_new
    assert path.read_bytes() == b""


def test_a_resumed_run_keeps_what_its_checkpoint_has_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path, 5, 10, 15)
    log = JsonLines(path, keep=10)
    assert not log.is_new
    assert without_time(path) == [{"desc": "run"}, {"n_updates": 5}, {"n_updates": 10}]
    log.write(n_updates=11)
    assert without_time(path)[2:] == [{"n_updates": 10}, {"n_updates": 11}]


@pytest.mark.parametrize(
    "end", ['{"n_updates": 2, "ti', '{"n_updates": 2', "{", "nu", '"n_updates"\n', "3\n"]
)
def test_a_last_line_cut_off_by_a_crash_goes(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.jsonl"
    written(path, 1)
    with open(path, "a") as file:
        file.write(end)
    log = JsonLines(path, keep=9)
    log.write(n_updates=2)
    assert without_time(path) == [{"desc": "run"}, {"n_updates": 1}, {"n_updates": 2}]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"n_updates": 1}')
    log = JsonLines(path, keep=1)
    log.write(n_updates=2)
    assert without_time(path) == [{"n_updates": 1}, {"n_updates": 2}]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n"])
def test_a_resumed_run_without_a_log_begins_one(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert JsonLines(path, keep=3).is_new
    assert path.read_bytes() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc")
@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (faults.closed, "Permission denied"),
        (lambda path: faults.no_more_open_files(), "Too many open files"),
    ],
)
def test_a_log_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, trouble: Callable[[Path], AbstractContextManager[None]], cause: str
) -> None:
    path = tmp_path / "log.jsonl"
    written(path, 1, 2)
    before = path.read_bytes()
    with trouble(path), pytest.raises(Gpt1Error, match=rf"log\.jsonl: .* cannot be read: {cause}"):
        JsonLines(path, keep=2)
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_made_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Gpt1Error, match=r"log\.jsonl: cannot be written"):
        JsonLines(tmp_path / "file" / "log.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(Gpt1Error, match=r"log\.jsonl: cannot be written: No space left"):
        log.write(n=1)


@pytest.mark.parametrize("kind", [None, 3, ["diverging"], {"diverging": 1}])
def test_an_event_that_was_damaged_by_hand_is_none_of_ours(tmp_path: Path, kind: object) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"n_updates": 1, "event": kind}) + "\n")
    assert JsonLines(path, keep=1).events == set()
