"""``gpt1 download``: its flags, its messages, and what a killed download leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import DEADLINE, wait_until
from web_server import (
    CONTENTS,
    FILES,
    HALF,
    LARGE,
    LAST,
    SMALL,
    Server,
    assert_there,
    part_of,
    serve,
    silence,
    stall_after,
)

from gpt1.commands import download as program
from gpt1.runtime.errors import Gpt1Error
from gpt1.weights import fetching
from gpt1.weights.fetching import download

pytestmark = pytest.mark.usefixtures("pauses")


# ------------------------------------------------------------------------------- processes


def start(server: Server, model_dir: Path, before: str = "") -> subprocess.Popen[str]:
    """Start the program with the test's table of files in a separate process."""
    code = (
        "import sys; from gpt1.commands import download; from gpt1.weights import fetching\n"
        f"{before}\n"
        f"fetching.RELEASED_FILES = {FILES!r}\n"
        f"sys.exit(download.main({['--base_url', server.url, '--model_dir', str(model_dir)]!r}))"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


def wait_for_bytes(part: Path) -> None:
    """Wait until a part of the file is on the disk."""
    wait_until(lambda: part.exists() and part.stat().st_size > 0, f"bytes in {part}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    server.scripts[LARGE] = [stall_after(HALF), serve]
    process = start(server, tmp_path)
    wait_for_bytes(part_of(tmp_path))
    process.send_signal(how)
    out, err = process.communicate(timeout=DEADLINE)
    assert out == ""
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in err
        assert "Traceback" not in err
    arrived = part_of(tmp_path).stat().st_size
    assert part_of(tmp_path).read_bytes() == CONTENTS[LARGE][:arrived]

    server.requests.clear()
    process = start(server, tmp_path)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    assert out == f"{tmp_path}: the released files, 2 fetched, 1 already there\n"
    assert server.requests == [(LARGE, f"bytes={arrived}-"), (LAST, None)]
    assert_there(tmp_path, list(FILES))


def test_two_downloads_at_once_do_not_meet(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [stall_after(HALF), serve]
    first = start(server, tmp_path)
    wait_for_bytes(part_of(tmp_path))
    arrived = part_of(tmp_path).read_bytes()
    with pytest.raises(Gpt1Error, match="another download into it is running"):
        download(FILES, server.url, tmp_path)
    assert part_of(tmp_path).read_bytes() == arrived
    assert len(server.ranges()) == 1
    first.kill()  # The lock ends with the process.
    first.communicate(timeout=DEADLINE)
    download(FILES, server.url, tmp_path)
    assert_there(tmp_path, list(FILES))


@pytest.mark.skipif(os.name != "posix", reason="the limit on file sizes is POSIX")
def test_a_full_disk_is_one_message(server: Server, tmp_path: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {HALF}))"
    process = start(server, tmp_path, limit)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert re.search(f"{LARGE}: cannot be written: File too large; .*same command goes on", err)
    server.requests.clear()
    download(FILES, server.url, tmp_path)
    assert server.requests == [(LARGE, f"bytes={HALF}-"), (LAST, None)]
    assert_there(tmp_path, list(FILES))


# ------------------------------------------------------------------------------- command line


@pytest.fixture
def main(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the program with the test's table, server and directory; it takes more flags."""
    monkeypatch.setattr(fetching, "RELEASED_FILES", FILES)
    flags = ["--base_url", server.url, "--model_dir", str(tmp_path)]
    return lambda *more: program.main([*flags, *more])


def test_result_on_stdout_and_silence_on_stderr(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    assert main() == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{tmp_path}: the released files, 3 fetched, 0 already there",
        f"{tmp_path}: the released files, 0 fetched, 3 already there",
    ]
    assert err == ""


def test_flags_reach_the_download(
    main: Callable[..., int], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.scripts[SMALL] = [silence]
    assert main("--timeout", "0.1", "--retries", "1") == 1
    wait_until(lambda: server.ranges(SMALL) == [None, None], "the server's thread")
    err = capsys.readouterr().err
    assert "trying again in 1 s" in err
    assert f"gpt1 download: error: {server.url}/{SMALL}: timed out; gave up (--retries 1)" in err

    server.scripts.clear()
    (tmp_path / SMALL).write_bytes(b"mine")
    assert main() == 2
    assert main("--force") == 0
    assert_there(tmp_path, list(FILES))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_url", "file:///x"], "--base_url 'file:///x': must be"),
        (["--timeout", "0"], "--timeout 0.0: must be from 0.1 to 86400"),
        (["--timeout", "nan"], "--timeout nan: must be a finite number"),
        (["--retries", "-1"], "--retries -1: must be at least 0"),
        (["--mirror", "x"], "--mirror"),
    ],
)
def test_wrong_flags(
    main: Callable[..., int],
    server: Server,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("gpt1 download: error: ")
    assert message in err
    assert server.requests == []


def test_heads_of_another_checkpoint_are_not_left_beside_the_weights(
    main: Callable[..., int], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gpt1_config.json"
    config.write_text('{"n_head": 4}')
    assert main("--force") == 2
    assert f"{config}: belongs to another checkpoint" in capsys.readouterr().err
    assert server.requests == []
    config.write_text('{"n_head": 12}')
    assert main() == 0
