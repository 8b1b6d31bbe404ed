"""A real HTTP server that misbehaves according to a script, and the files that it serves."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from waiting import wait_until

SMALL, LARGE, LAST = "small.json", "large.npy", "last.npy"
SIZES = {SMALL: 100, LARGE: 200_000, LAST: 5_000}
CONTENTS = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}
FILES = {
    name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for name, content in CONTENTS.items()
}
ONE = {LARGE: FILES[LARGE]}
HALF = SIZES[LARGE] // 2


class Handler(BaseHTTPRequestHandler):
    """Answers a request by the next entry of the file's script; the last entry is repeated."""

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
    """A server on this machine, its scripts, and the (name, Range) of all requests."""

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
    """Return how many bytes the client has not received yet; a reset would discard them."""
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
    """Ignore the requested range, and send the whole file."""
    handler.head(200, len(content))
    handler.wfile.write(content)


def without_range_cut(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content))
    handler.wfile.write(content[:HALF])


def without_length(handler: Handler, content: bytes) -> None:
    """Send no length: the end of the connection is the end of the file."""
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
    """Answer 206 with this Content-Range, whatever range was requested."""

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


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that answers until the end of the block."""
    server = Server()
    # By default the loop checks twice per second whether to end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def part_of(model_dir: Path, name: str = LARGE) -> Path:
    return model_dir / f".{name}.part"


def assert_there(model_dir: Path, names: Sequence[str]) -> None:
    """Check that a directory holds these files, complete, and nothing else but the lock file."""
    found = {path.name for path in model_dir.iterdir()} - {".download.lock"}
    assert found == set(names)
    for name in names:
        assert (model_dir / name).read_bytes() == CONTENTS[name]
