"""A file is whole under its name, or it is the old one: whatever goes wrong on the way."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt1.errors import Gpt1Error, InputError, report_errors
from gpt1.files import atomic_write, read_bytes, read_text


class Crash(Exception):
    """Anything that may go wrong while a file is written."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


# ------------------------------------------------------------------------------- atomic_write


def test_a_file_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with atomic_write(str(path)) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [Crash, KeyboardInterrupt])
def test_the_old_file_stays_whole_when_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        file.flush()
        assert path.read_bytes() == b"old"
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_no_file_appears_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(Crash), atomic_write(tmp_path / "file"):
        raise Crash
    assert names(tmp_path) == []


def test_a_library_may_write_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        Path(file.name).write_bytes(b"by name")
        assert Path(file.name).parent == tmp_path  # a rename works within one file system only
    assert path.read_bytes() == b"by name"


def test_text_is_utf_8_with_plain_line_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("grün\n\u2028\r\n")
    assert (tmp_path / "file").read_bytes() == "grün\n\u2028\r\n".encode()


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "file"
    with umask(mask):
        with atomic_write(path) as file:
            file.write(b"new")
        assert os.umask(mask) == mask  # looked at, and put back
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("name", ["file/below", "file/below/further"])
def test_a_directory_that_cannot_be_made_is_one_clear_message(tmp_path: Path, name: str) -> None:
    """Not by permissions, which the superuser does not heed: a file stands in the way."""
    (tmp_path / "file").write_bytes(b"old")
    path = tmp_path / name
    with pytest.raises(Gpt1Error) as caught, atomic_write(path):
        pytest.fail("the block must not begin")
    assert str(caught.value).startswith(f"{path}: cannot be written: ")
    assert caught.value.exit_status == 1
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_directory_in_the_place_of_the_file_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(Gpt1Error, match="cannot be written"), atomic_write(path) as file:
        file.write(b"new")
    assert names(tmp_path) == ["file"]


FULL_DISK = """
import resource, sys
from gpt1.errors import report_errors
from gpt1.files import atomic_write

def body():
    with atomic_write(sys.argv[1], "wb") as file:
        file.write(b"x" * 1_000_000)
    return 0

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.exit(report_errors("test", body))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"test: error: {path}: cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from gpt1.files import atomic_write

with atomic_write(sys.argv[1]) as file:
    file.write(b"x" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_process_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_data_are_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert events[:2] == ["sync", "rename"]


# ------------------------------------------------------------------------------- reading


def test_text_comes_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn\r\n")
    assert read_text(path, "the text") == "grün\r\n"
    assert read_bytes(path, "the text") == b"\xef\xbb\xbfgr\xc3\xbcn\r\n"


@pytest.mark.parametrize(
    ("data", "line", "byte"),
    [(b"\xff", 1, "ff"), (b"one\ntwo\nth\xe9\nfour", 3, "e9"), (b"one\r\n\xc3", 2, "c3")],
)
def test_what_is_not_utf_8_is_named_with_its_line(
    tmp_path: Path, data: bytes, line: int, byte: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_text(path, "the merges")
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: the merges must be UTF-8")
    assert f"0x{byte}" in message


@pytest.mark.parametrize("read", [read_text, read_bytes])
@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_what_cannot_be_read_is_an_input_error(tmp_path: Path, read: object, kind: str) -> None:
    path = tmp_path / "missing" if kind == "missing" else tmp_path
    with pytest.raises(InputError) as caught:
        read(path, "the merges")  # type: ignore[operator]
    assert str(caught.value).startswith(f"{path}: the merges cannot be read: ")


# ------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("kind", "status"), [(InputError, 2), (Gpt1Error, 1)])
def test_an_error_for_people_is_a_message_and_a_status(
    capsys: pytest.CaptureFixture[str], kind: type[Gpt1Error], status: int
) -> None:
    def body() -> int:
        print("so far")
        raise kind("what, where, what to do")

    assert report_errors("program", body) == status
    assert capsys.readouterr() == ("so far\n", "program: error: what, where, what to do\n")


def test_other_errors_are_ours_and_stay_visible() -> None:
    def body() -> int:
        raise Crash

    with pytest.raises(Crash):
        report_errors("program", body)
    assert report_errors("program", lambda: 5) == 5
