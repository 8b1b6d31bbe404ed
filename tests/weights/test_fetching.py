"""Downloads from a real HTTP server that misbehaves: a file is either right or missing."""

from __future__ import annotations

import io
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_until
from web_server import (
    CONTENTS,
    FILES,
    HALF,
    LARGE,
    LAST,
    ONE,
    SIZES,
    SMALL,
    Answer,
    Server,
    assert_there,
    chunked,
    chunked_cut,
    content_range,
    cut_after,
    garbage,
    part_of,
    reset_after,
    serve,
    silence,
    stall_after,
    status,
    without_length,
    without_range,
    without_range_cut,
    wrong_bytes,
)

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.weights.fetching import RELEASED_FILES, download, git_object_id
from gpt1.weights.locate import BPE_FILE, ENCODER_FILE
from gpt1.weights.released import N_SHARDS, SHAPES_FILE

pytestmark = pytest.mark.usefixtures("pauses")


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
    assert download(FILES, "http://127.0.0.1:9/", tmp_path, retries=0) == []  # no server
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
    assert_there(tmp_path, [SMALL])  # The files before it stay.


def test_the_next_call_asks_for_the_rest_only(server: Server, tmp_path: Path) -> None:
    server.scripts[LARGE] = [cut_after(HALF), status(503), serve]
    with pytest.raises(Gpt1Error):
        download(FILES, server.url, tmp_path, retries=1)
    server.requests.clear()
    assert download(FILES, server.url, tmp_path) == [LARGE, LAST]
    assert server.requests == [(LARGE, f"bytes={HALF}-"), (LAST, None)]
    assert_there(tmp_path, list(FILES))


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENTS[LARGE])  # killed before the file was renamed
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
    expected = (
        rf"{LARGE}: not the released file, whose .* is {FILES[LARGE]}; the content was discarded"
    )
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
    with pytest.raises(InputError, match=rf"{LAST}: damaged, or .*--force"):
        download(FILES, server.url, tmp_path)
    assert (tmp_path / LAST).read_bytes() == CONTENTS[LAST][:-1]
    assert server.requests == []  # before any file is fetched


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
