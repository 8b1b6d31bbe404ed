"""Downloads against a real HTTP server that misbehaves: what arrives is right or is not there."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from waiting import DEADLINE, wait_until

from gpt1.commands import download as program
from gpt1.commands.download import RELEASED_FILES, download, git_object_id
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.weights.locate import BPE_FILE, ENCODER_FILE, N_SHARDS, SHAPES_FILE

SMALL, LARGE, LAST = "small.json", "large.npy", "last.npy"
SIZES = {SMALL: 100, LARGE: 200_000, LAST: 5_000}
CONTENTS = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}
FILES = {
    name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for name, content in CONTENTS.items()
}
ONE = {LARGE: FILES[LARGE]}
HALF = SIZES[LARGE] // 2


# ------------------------------------------------------------------------------- a server


class Handler(BaseHTTPRequestHandler):
    """Answers a request by the next entry of the script for that file, the last one for ever."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append((name, self.headers["Range"]))
        script = self.server.scripts.get(name, [serve])
        answer = script.pop(0) if len(script) > 1 else script[0]
        if name not in CONTENTS:
            answer = status(404)
        answer(self, CONTENTS.get(name, b""))

    def head(self, code: int, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


Answer = Callable[[Handler, bytes], None]


class Server(ThreadingHTTPServer):
    """A server on this machine, its scripts, and the (name, Range) of all that was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model"

    def handle_error(self, *args: object) -> None:
        pass  # clients that were killed

    def ranges(self, name: str = LARGE) -> list[str | None]:
        return [asked for found, asked in self.requests if found == name]


def serve(handler: Handler, content: bytes, stop: int | None = None) -> None:
    """Answer as a good server does, but send no byte after ``stop``."""
    match = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    if match is None:
        handler.head(200, len(content))
        handler.wfile.write(content[:stop])
        return
    start, n = int(match[1]), len(content)
    if start >= n:
        handler.head(416, 0, Content_Range=f"bytes */{n}")
        return
    handler.head(206, n - start, Content_Range=f"bytes {start}-{n - 1}/{n}")
    handler.wfile.write(content[start:stop])


def cut_after(count: int) -> Answer:
    """Send ``count`` bytes more than the client has, then close the connection."""

    def answer(handler: Handler, content: bytes) -> None:
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        serve(handler, content, start + count)

    return answer


def reset_after(count: int) -> Answer:
    """As :func:`cut_after`, but the connection breaks instead of ending."""

    def answer(handler: Handler, content: bytes) -> None:
        cut_after(count)(handler, content)
        handler.wfile.flush()
        wait_until(lambda: unsent(handler.connection) == 0, "the bytes to arrive")
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return answer


def unsent(connection: socket.socket) -> int:
    """How many bytes the other side has not received yet; a reset would discard them."""
    import fcntl
    import termios

    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def stall_after(count: int) -> Answer:
    """Send ``count`` bytes, and then nothing until the test is over."""

    def answer(handler: Handler, content: bytes) -> None:
        serve(handler, content, count)
        handler.wfile.flush()
        handler.server.over.wait()

    return answer


def silence(handler: Handler, content: bytes) -> None:
    """Do not answer."""
    handler.server.over.wait()


def without_range(handler: Handler, content: bytes) -> None:
    """Know no ranges: everything, whatever was asked for."""
    handler.head(200, len(content))
    handler.wfile.write(content)


def without_range_cut(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content))
    handler.wfile.write(content[:HALF])


def without_length(handler: Handler, content: bytes) -> None:
    """Say nothing of the length: the end of the connection is the end of the file."""
    handler.head(200)
    handler.wfile.write(content)


def chunked(handler: Handler, content: bytes, end: bytes = b"0\r\n\r\n") -> None:
    handler.head(200, Transfer_Encoding="chunked")
    for start in range(0, len(content), 3000):
        piece = content[start : start + 3000]
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    handler.wfile.write(end)


def chunked_cut(handler: Handler, content: bytes) -> None:
    chunked(handler, content[:HALF], end=b"")


def content_range(text: str) -> Answer:
    """Answer 206 with this Content-Range, whatever was asked for."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.head(206, HALF, Content_Range=text)
        handler.wfile.write(content[HALF:])

    return answer


def wrong_bytes(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content))
    handler.wfile.write(bytes(len(content)))


def status(code: int, **headers: str) -> Answer:
    return lambda handler, content: handler.head(code, 0, **headers)


def garbage(handler: Handler, content: bytes) -> None:
    handler.wfile.write(b"what is HTTP?\r\n\r\n")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    # The loop looks twice a second whether to end, unless told otherwise.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, not waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(program, "sleep", pauses.append)
    return pauses


def part_of(model_dir: Path, name: str = LARGE) -> Path:
    return model_dir / f".{name}.part"


def assert_there(model_dir: Path, names: Sequence[str]) -> None:
    """These files and no others are there, whole; nothing is left over but the lock's file."""
    found = {path.name for path in model_dir.iterdir()} - {".download.lock"}
    assert found == set(names)
    for name in names:
        assert (model_dir / name).read_bytes() == CONTENTS[name]


# ------------------------------------------------------------------------------- all is well


def test_files_arrive_whole_and_in_order(server: Server, tmp_path: Path) -> None:
    model_dir = tmp_path / "new" / "model"
    assert download(FILES, server.url, model_dir) == [SMALL, LARGE, LAST]
    assert_there(model_dir, list(FILES))
    assert server.requests == [(SMALL, None), (LARGE, None), (LAST, None)]


def test_right_files_are_kept_without_a_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / LARGE).write_bytes(CONTENTS[LARGE])
    assert download(FILES, server.url, tmp_path) == [SMALL, LAST]
    assert server.ranges() == []
    assert_there(tmp_path, list(FILES))


def test_nothing_is_asked_or_written_when_all_is_there(tmp_path: Path) -> None:
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    assert download(FILES, "http://127.0.0.1:9/", tmp_path, retries=0) == []  # no one listens
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_force_fetches_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / SMALL).write_bytes(b"old")
    (tmp_path / LARGE).write_bytes(CONTENTS[LARGE])
    assert download(FILES, server.url, tmp_path, force=True) == list(FILES)
    assert len(server.requests) == len(FILES)
    assert_there(tmp_path, list(FILES))


def test_the_slash_at_the_end_of_the_url_does_not_matter(server: Server, tmp_path: Path) -> None:
    download(ONE, server.url + "/", tmp_path)
    assert_there(tmp_path, [LARGE])


@pytest.mark.parametrize("answer", [without_length, chunked])
def test_a_length_need_not_be_given(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.scripts[LARGE] = [answer]
    download(ONE, server.url, tmp_path)
    assert_there(tmp_path, [LARGE])


def test_an_empty_file_arrives(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENTS, SMALL, b"")
    download({SMALL: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"}, server.url, tmp_path)
    assert_there(tmp_path, [SMALL])


# ------------------------------------------------------------------------------- broken transfers


@pytest.mark.parametrize("cut", [cut_after, reset_after])
def test_a_cut_transfer_goes_on_where_it_broke(
    server: Server, tmp_path: Path, cut: Callable[[int], Answer]
) -> None:
    server.scripts[LARGE] = [cut(HALF), serve]
    download(FILES, server.url, tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]
    assert_there(tmp_path, list(FILES))


def test_tries_that_bring_something_new_are_not_counted(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    server.scripts[LARGE] = [cut_after(SIZES[LARGE] // 10)]
    download(ONE, server.url, tmp_path, retries=1)
    assert len(server.ranges()) == 10
    assert pauses == [1.0] * 9
    assert_there(tmp_path, [LARGE])


@pytest.mark.parametrize("answer", [without_range_cut, chunked_cut])
def test_a_transfer_that_is_always_cut_at_one_place_ends(
    server: Server, tmp_path: Path, pauses: list[float], answer: Answer
) -> None:
    server.scripts[LARGE] = [answer]
    with pytest.raises(Gpt1Error, match=rf"{LARGE}: .*--retries 2.* same command goes on") as info:
        download(FILES, server.url, tmp_path, retries=2)
    assert info.value.exit_status == 1
    assert len(server.ranges()) == 3
    assert pauses == [1, 2]
    assert part_of(tmp_path).read_bytes() == CONTENTS[LARGE][:HALF]
    part_of(tmp_path).unlink()
    assert_there(tmp_path, [SMALL])  # what came before it stays


def test_the_next_call_asks_for_the_rest_only(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [cut_after(HALF), status(503), serve]
    with pytest.raises(Gpt1Error):
        download(FILES, server.url, tmp_path, retries=1)
    server.requests.clear()
    assert download(FILES, server.url, tmp_path) == [LARGE, LAST]
    assert server.requests == [(LARGE, f"bytes={HALF}-"), (LAST, None)]
    assert_there(tmp_path, list(FILES))


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE])  # killed before it took its name
    assert download(ONE, server.url, tmp_path) == [LARGE]
    assert server.requests == []
    assert_there(tmp_path, [LARGE])


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE][:HALF])
    server.scripts[LARGE] = [without_range]
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [f"bytes={HALF}-"]
    assert_there(tmp_path, [LARGE])


@pytest.mark.parametrize(
    "text",
    [
        f"bytes {HALF + 1}-{SIZES[LARGE] - 1}/{SIZES[LARGE]}",
        f"bytes 0-{HALF - 1}/{SIZES[LARGE]}",
        "pages 1-2/3",
        "",
    ],
)
def test_another_range_than_asked_for_is_not_appended(
    server: Server, tmp_path: Path, text: str
) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE][:HALF])
    server.scripts[LARGE] = [content_range(text), serve]
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [f"bytes={HALF}-", None]
    assert_there(tmp_path, [LARGE])


def test_a_range_of_unknown_total_is_appended(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE][:HALF])
    server.scripts[LARGE] = [content_range(f"bytes {HALF}-{SIZES[LARGE] - 1}/*")]
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [f"bytes={HALF}-"]
    assert_there(tmp_path, [LARGE])


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE] + b"more")
    download(ONE, server.url, tmp_path)  # the server answers 416
    assert server.ranges() == [f"bytes={SIZES[LARGE] + 4}-", None]
    assert_there(tmp_path, [LARGE])


def test_a_part_of_another_file_is_dropped(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(b"x" * HALF)
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [f"bytes={HALF}-", None]
    assert_there(tmp_path, [LARGE])


def test_a_silent_connection_is_given_up(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [stall_after(HALF), serve]
    download(ONE, server.url, tmp_path, timeout=1)
    first, *others = server.ranges()
    assert first is None
    assert others  # one, unless the machine was too busy to send HALF in time
    assert_there(tmp_path, [LARGE])


def test_no_answer_at_all_is_given_up(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [silence]
    with pytest.raises(Gpt1Error, match=f"{LARGE}: timed out; gave up"):
        download(ONE, server.url, tmp_path, timeout=0.2, retries=1)
    wait_until(lambda: len(server.ranges()) == 2, "the server's thread")


def test_no_server_is_one_message(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(Gpt1Error, match=f"{url}{LARGE}: Connection refused; gave up"):
            download(ONE, url, tmp_path, retries=0)


def test_what_is_not_http_is_one_message(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [garbage]
    with pytest.raises(Gpt1Error, match=r"BadStatusLine\('what is HTTP\?"):
        download(ONE, server.url, tmp_path, retries=0)


# ------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final_and_names_the_url(server: Server, tmp_path: Path, code: int) -> None:
    server.scripts[LARGE] = [status(code)]
    expected = f"{re.escape(server.url)}/{LARGE}: the server answered {code} .*--base_url"
    with pytest.raises(Gpt1Error, match=expected) as info:
        download(FILES, server.url, tmp_path)
    assert info.value.exit_status == 1
    assert len(server.ranges()) == 1
    assert_there(tmp_path, [SMALL])


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    server.scripts[LARGE] = [status(code), status(code), serve]
    download(ONE, server.url, tmp_path, retries=2)
    assert len(server.ranges()) == 3
    assert_there(tmp_path, [LARGE])


def test_a_server_that_stays_busy_is_given_up_after_growing_pauses(
    server: Server, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.scripts[LARGE] = [status(503)]
    with pytest.raises(Gpt1Error, match=r"the server answered 503 .*--retries 7"):
        download(ONE, server.url, tmp_path, retries=7)
    assert len(server.ranges()) == 8
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 7
    assert re.search(r"answered 503 .* trying again in 16 s$", err[4])


def test_wrong_content_is_asked_for_once_more(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [wrong_bytes, serve]
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [None, None]
    assert_there(tmp_path, [LARGE])


@pytest.mark.parametrize("answer", [wrong_bytes, status(204)])
def test_wrong_content_is_never_kept(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.scripts[LARGE] = [answer]
    expected = rf"{LARGE}: not the released file, whose .* is {FILES[LARGE]}; nothing .* is kept"
    with pytest.raises(Gpt1Error, match=expected):
        download(FILES, server.url, tmp_path)
    assert server.ranges() == [None, None]
    assert_there(tmp_path, [SMALL])


def test_a_redirect_is_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE][:HALF])
    server.scripts[LARGE] = [status(302, Location=f"{server.url}/elsewhere/{LARGE}"), serve]
    download(ONE, server.url, tmp_path)
    assert server.ranges() == [f"bytes={HALF}-"] * 2
    assert_there(tmp_path, [LARGE])


@pytest.mark.parametrize("scheme", ["file", "data"])
def test_a_redirect_does_not_leave_the_network(server: Server, tmp_path: Path, scheme: str) -> None:
    there = tmp_path / "elsewhere"
    there.write_bytes(CONTENTS[LARGE])
    server.scripts[LARGE] = [status(302, Location=f"{scheme}://127.0.0.1{there}")]
    with pytest.raises(Gpt1Error, match="the server answered 302"):
        download(ONE, server.url, tmp_path / "model", retries=0)
    assert_there(tmp_path / "model", [])


@pytest.mark.parametrize("place", ["http://a..b/", "http://127.0.0.1:port/"])
def test_a_redirect_to_nowhere_is_one_message(server: Server, tmp_path: Path, place: str) -> None:
    server.scripts[LARGE] = [status(302, Location=place)]
    with pytest.raises(Gpt1Error, match="gave up"):
        download(ONE, server.url, tmp_path, retries=0)


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [status(302, Location=f"{server.url}/{LARGE}")]
    with pytest.raises(Gpt1Error, match="the server answered 302"):
        download(ONE, server.url, tmp_path)


def test_an_untrusted_certificate_is_final(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the program openssl, which makes the certificate, is not here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    paths = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *make, *paths], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(Gpt1Error, match=r"certificate cannot be trusted: self.signed.*SSL_CERT_FI"):
        download(ONE, server.url.replace("http:", "https:"), tmp_path / "model")
    assert pauses == []


# ------------------------------------------------------------------------------- the directory


def test_another_file_of_that_name_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(CONTENTS[LAST][:-1])
    with pytest.raises(InputError, match=rf"{LAST}: there, but damaged .*--force"):
        download(FILES, server.url, tmp_path)
    assert (tmp_path / LAST).read_bytes() == CONTENTS[LAST][:-1]
    assert server.requests == []  # found out before anything is fetched


@pytest.mark.parametrize("answer", [status(404), status(503), cut_after(0), wrong_bytes])
def test_a_right_file_survives_a_failing_force(
    server: Server, tmp_path: Path, answer: Answer
) -> None:
    (tmp_path / LARGE).write_bytes(CONTENTS[LARGE])
    server.scripts[LARGE] = [answer]
    with pytest.raises(Gpt1Error):
        download(ONE, server.url, tmp_path, force=True, retries=1)
    assert (tmp_path / LARGE).read_bytes() == CONTENTS[LARGE]


def test_a_directory_of_that_name_is_one_message(server: Server, tmp_path: Path) -> None:
    (tmp_path / LARGE).mkdir()
    with pytest.raises(InputError, match=f"{LARGE}: the file cannot be read: this is a directory"):
        download(FILES, server.url, tmp_path)
    with pytest.raises(Gpt1Error, match=f"{LARGE}: cannot be written: Is a directory"):
        download(FILES, server.url, tmp_path, force=True)


def test_a_file_in_the_directorys_place_is_one_message(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.write_text("mine")
    with pytest.raises(Gpt1Error, match=f"{place}: cannot be written"):
        download(FILES, server.url, place)
    assert place.read_text() == "mine"
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///tmp/model",
            "file://host/model",
            "ftp://example.org/model",
            "/tmp/model",
            "example.org/model",
            "",
        ),
        *("http://", "http:///model", "http://host:port/", "http://host:99999/", "http://[::1/"),
        *("http://me:secret@host/", "http://host/?file=", "http://host/#top", "http://ho st/"),
        *("http://host/é", "http://höst/", "http://host/\nmodel"),
    ],
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"--base_url .*must be the http or https URL"):
        download(FILES, url, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_at_sign_in_the_path_is_no_user_name(server: Server, tmp_path: Path) -> None:
    download(ONE, f"{server.url}@a69b5c4/model", tmp_path)
    assert_there(tmp_path, [LARGE])


# ------------------------------------------------------------------------------- processes


def start(server: Server, model_dir: Path, before: str = "") -> subprocess.Popen[str]:
    """The program with our table, in a process of its own."""
    code = (
        f"import sys; from gpt1.commands import download; {before}\n"
        f"download.RELEASED_FILES = {FILES!r}\n"
        f"sys.exit(download.main({['--base_url', server.url, '--model_dir', str(model_dir)]!r}))"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


def wait_for_bytes(part: Path) -> None:
    """Until something of the file is on the disk."""
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
    first.kill()  # the lock goes with the process
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
    """The program with our table, server and directory; further flags follow."""
    monkeypatch.setattr(program, "RELEASED_FILES", FILES)
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
        (["--timeout", "0"], "--timeout: 0: must be a number from 0.1"),
        (["--timeout", "nan"], "--timeout: nan: must be"),
        (["--retries", "-1"], "--retries: -1: must be a whole number at least 0"),
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


def test_a_bar_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    part_of(tmp_path).write_bytes(CONTENTS[LARGE][:HALF])
    download(ONE, server.url, tmp_path)
    assert re.search(rf"{LARGE}:  50%.*{LARGE}: 100%.*200k/200k", terminal.getvalue(), re.S)


# ------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("content", "object_id"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_git_object_id_is_gits(tmp_path: Path, content: bytes, object_id: str) -> None:
    (tmp_path / "file").write_bytes(content)  # ids as `git hash-object` prints them
    assert git_object_id(tmp_path / "file") == object_id


def test_the_table_names_all_released_files() -> None:
    shards = [f"params_{index}.npy" for index in range(N_SHARDS)]
    assert set(RELEASED_FILES) == {ENCODER_FILE, BPE_FILE, SHAPES_FILE, *shards}
    assert all(re.fullmatch("[0-9a-f]{40}", object_id) for object_id in RELEASED_FILES.values())
    assert len(set(RELEASED_FILES.values())) == len(RELEASED_FILES)


@pytest.mark.parametrize("name", [ENCODER_FILE, BPE_FILE, SHAPES_FILE])
def test_the_tables_ids_are_those_of_the_released_files(released_dir: Path, name: str) -> None:
    assert git_object_id(released_dir / name) == RELEASED_FILES[name]
