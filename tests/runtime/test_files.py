"""A written file is complete, or the old file stays, whatever fails; errors become messages."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faults
import numpy as np
import pytest

from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import Gpt1Error, InputError, report_errors
from gpt1.runtime.files import (
    atomic_write,
    iter_lines,
    read_bytes,
    read_errors,
    read_lines,
    read_text,
)
from gpt1.weights import jl, parameters
from gpt1.weights.released import save_released


class Crash(Exception):
    """Any failure while a file is written."""


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
def test_permissions_follow_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, mode: int
) -> None:
    path = tmp_path / "file"
    with umask(mask):
        # To read the umask means to set it: a file of another thread would get the wrong one.
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        with atomic_write(path) as file:
            file.write(b"new")
        monkeypatch.undo()
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("name", ["file/below", "file/below/further"])
def test_a_directory_that_cannot_be_made_is_one_clear_message(tmp_path: Path, name: str) -> None:
    """A file is in the place of the directory. Permissions would not stop the superuser."""
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


LONG = [np.zeros(10_000, np.float32)]
MODEL = ModelConfig(n_vocab=20, n_ctx=8, n_embd=16, n_head=2, n_layer=1)
PARAMS = [np.zeros(shape, np.float32) for shape in parameters.parameter_shapes(MODEL).values()]


def by_write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(bytes(50_000))


def by_text(path: Path) -> None:
    with atomic_write(path, "w") as file:
        file.writelines("line\n" for _ in range(10_000))


def by_small_writes(path: Path) -> None:
    """Write so little that the bytes are still in the buffer when the block ends."""
    with atomic_write(path) as file:
        file.write(bytes(3_500))


def by_safetensors(path: Path) -> None:
    parameters.write_safetensors(path, PARAMS, MODEL)


def by_shards(path: Path) -> None:
    """Write with NumPy, which bypasses the file object if it can and would miss the error."""
    params = dict(zip(parameters.parameter_shapes(MODEL), PARAMS, strict=True))
    save_released(path.parent, params, n_vocab=20, n_head=2)


WRITERS: list[tuple[Callable[[Path], None], str]] = [
    (by_write, "file"),
    (by_text, "file"),
    (by_small_writes, "file"),
    (lambda path: jl.write_jl(path, LONG), "file"),
    (by_safetensors, "file"),
    (by_shards, "params_0.npy"),
]


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with faults.short_files(1_000), pytest.raises(Gpt1Error) as caught:
        write(path)
    assert str(caught.value).startswith(f"{path}: cannot be written: ")
    assert caught.value.exit_status == 1
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "another file"),
        OSError(5, "Input/output error"),  # of reading: the system gives no name then
        OSError("libfoo.so: cannot open shared object file"),
    ],
)
def test_a_failure_of_the_block_itself_is_not_blamed_on_the_file(
    tmp_path: Path, error: OSError
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError) as caught, atomic_write(path) as file:  # noqa: PT011, PT012
        file.write(b"new")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_failed_sync_is_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems report a failed write only when the file is synced."""

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Gpt1Error, match=r"file: cannot be written: Input/output error"):
        by_write(tmp_path / "file")
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from gpt1.runtime.files import atomic_write

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


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\n", [""]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"\xef\xbb\xbfa\xef\xbb\xbf\n\xef\xbb\xbfb\n", ["a\ufeff", "\ufeffb"]),
        ("a\u2028b\x85c\x0bd\re\n".encode(), ["a\u2028b\x85c\x0bd\re"]),
    ],
)
def test_lines_end_at_newlines_only(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    assert list(iter_lines(path, "the text")) == read_lines(path, "the text") == lines


def test_lines_come_before_a_later_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"a\nb\n\xff\n")
    lines = iter_lines(path, "the text")
    assert [next(lines), next(lines)] == ["a", "b"]
    with pytest.raises(InputError, match="line 3: the text must be UTF-8 text, but byte 0xff"):
        next(lines)


@pytest.mark.parametrize("read", [read_text, read_bytes])
@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_what_cannot_be_read_is_an_input_error(tmp_path: Path, read: object, kind: str) -> None:
    path = tmp_path / "missing" if kind == "missing" else tmp_path
    with pytest.raises(InputError) as caught:
        read(path, "the merges")  # type: ignore[operator]
    assert str(caught.value).startswith(f"{path}: the merges cannot be read: ")


@pytest.mark.parametrize(
    ("error", "kind", "reason", "remedy"),
    [
        (OSError(errno.ENOENT, "No such file"), InputError, "No such file", "name another file"),
        (OSError(errno.EACCES, "Permission denied"), InputError, "Permission", "name another"),
        (OSError(errno.EIO, "Input/output error"), Gpt1Error, "Input/output error", "disk"),
        (OSError(errno.EMFILE, "Too many open files"), Gpt1Error, "Too many", "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Gpt1Error, "Cannot", "ulimit -v"),
        (MemoryError("Unable to allocate"), Gpt1Error, "does not fit into memory", "ulimit -v"),
    ],
)
def test_a_machine_in_trouble_is_told_from_a_wrong_file(
    error: Exception, kind: type[Gpt1Error], reason: str, remedy: str
) -> None:
    with pytest.raises(Gpt1Error) as caught, read_errors("a.txt", "the merges"):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith("a.txt: the merges cannot be read: ")
    assert reason in str(caught.value)
    assert remedy in str(caught.value).split("; ")[1]


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


@pytest.mark.parametrize(
    "error",
    [
        Crash(),
        OSError("libfoo.so: cannot open shared object file"),
        OSError(5, "Input/output error"),
        FileNotFoundError(2, "No such file or directory", "a file"),
        BrokenPipeError(32, "Broken pipe"),  # of a socket: standard output is not concerned
    ],
)
def test_other_errors_are_ours_and_stay_visible(error: Exception) -> None:
    def body() -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        report_errors("program", body)
    assert caught.value is error
    assert report_errors("program", lambda: 5) == 5


# Python's own setting: output waits in a buffer, as it does for most users.
BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


def run_with_output(end: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``gpt1`` in a shell with ``end``, a redirection of standard output, after it."""
    words = (sys.executable, "-m", "gpt1", *words)
    command = f"{shlex.join(words)} {end}"
    return subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, env=BUFFERED)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (">/dev/full", "standard output cannot be written: No space left on device; free space"),
        (">&-", "standard output is closed; send the output to a file"),
    ],
)
@pytest.mark.parametrize(
    ("words", "program"), [(["--version"], "gpt1"), (["train", "--help"], "gpt1 train")]
)
def test_output_that_cannot_be_written_is_one_message(
    end: str, message: str, words: list[str], program: str
) -> None:
    done = run_with_output(end, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{program}: error: {message}")
    assert done.stderr.count("\n") == 1


FAILS_AFTER_OUTPUT = """
import sys
from gpt1.runtime.errors import InputError, report_errors

def body():
    print("so far")
    raise InputError("what")

sys.exit(report_errors("program", body))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_an_error_counts_more_than_output_that_cannot_be_written() -> None:
    """Python must not write the output again at its end, which would change the exit status."""
    command = [sys.executable, "-c", FAILS_AFTER_OUTPUT]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert (done.returncode, done.stderr) == (2, "program: error: what\n")


def test_the_output_is_the_callers_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    report_errors("program", lambda: print("text") or 0)
    assert sys.stdout is before
    assert capsys.readouterr().out == "text\n"
