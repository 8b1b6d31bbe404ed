"""Documents of text files, folders and JSON lines, piece by piece, from any place on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from faults import FAILING_FILE
from hypothesis import given
from hypothesis import strategies as st

from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.text_utils import documents, pieces
from gpt1.text_utils.documents import find_sources, read_pieces


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few bytes at a time, and cut after a few characters."""
    monkeypatch.setattr(documents, "_BLOCK", 7)
    monkeypatch.setattr(pieces, "PIECE", 12)


def texts_of(*names: Path, held_out: float = 0.0) -> list[str]:
    """Return the documents that the names stand for."""
    found = [""]
    for located in read_pieces(find_sources([str(name) for name in names]), held_out=held_out):
        found[-1] += located.piece.text
        if located.piece.ends_document:
            found.append("")
    assert found.pop() == ""
    return found


def lines_file(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    return path


def test_sources_are_files_folders_and_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    for name in ("z.txt", "a.txt", "b/c.txt", "b/notes.md"):
        (folder / name).write_text(name)
    single = tmp_path / "single"
    single.write_text("a\r\nbé\n")
    lines = lines_file(tmp_path / "x.jsonl", "one\ntwo", "", "é\ud83d")
    assert texts_of(single, folder, lines) == [
        *("a\r\nbé\n", "a.txt", "b/c.txt", "z.txt", "one\ntwo", "é\ud83d"),
    ]


def test_a_byte_order_mark_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    marked, lines = tmp_path / "a.txt", tmp_path / "b.json"
    marked.write_bytes(b"\xef\xbb\xbfone\n")
    lines.write_bytes(b'\xef\xbb\xbf{"text": "two"}\n\n \n{"text": "three"}')
    assert texts_of(marked, lines) == ["one\n", "two", "three"]


DOCUMENT = st.text(st.sampled_from("aé€😀\n< &"), max_size=60)


@given(texts=st.lists(DOCUMENT, max_size=4), data=st.data())
def test_reading_goes_on_from_any_place(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("d")
    for number, text in enumerate(texts):
        (directory / f"{number}.txt").write_bytes(text.encode())
    lines = lines_file(directory / "x.jsonl", *texts)
    sources = [*(find_sources([str(directory)]) if texts else []), *find_sources([str(lines)])]
    whole = list(read_pieces(sources))
    everything = "".join(located.piece.text for located in whole)
    assert everything == "".join([*texts, *texts])
    if whole:
        number = data.draw(st.integers(0, len(whole) - 1))
        assert list(read_pieces(sources, whole[number].after)) == whole[number + 1 :]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
def test_the_end_of_the_only_document_begins_after_a_newline(
    tmp_path: Path, suffix: str, share: float
) -> None:
    text = "".join(f"line {number} é\n" * (number % 4) for number in range(50))
    path = tmp_path / f"x{suffix}"
    path.write_text(text) if suffix == ".txt" else lines_file(path, text)
    found = list(read_pieces(find_sources([str(path)]), held_out=share))
    index = max(i for i, located in enumerate(found) if located.may_split)
    before = "".join(located.piece.text for located in found[: index + 1])
    target = round(len(text.encode()) * (1 - share))
    assert text.startswith(before)
    assert before.endswith("\n")
    assert target - len("line 49 é\n".encode()) < len(before.encode()) <= target
    later = list(read_pieces(find_sources([str(path)]), found[index].after, held_out=share))
    assert later == found[index + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo\nthr\0e", ", line 3: expected text in UTF-8, found a NUL byte; save"),
        ("a.txt", b"abc\ndef\xff", ", line 2: expected text in UTF-8, found byte 0xff, which is"),
        (
            "a.txt",
            b"1234567\n" * 9 + b"\xc3(",
            ", line 10: expected text in UTF-8, found byte 0xc3",
        ),
        ("a.txt", b"abcdef\xe2\x82(\n", ", line 1: expected text in UTF-8, found byte 0xe2, which"),
        ("a.txt", b"abc\n\xe2\x82", ", line 2: expected text in UTF-8, found an incomplete UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', ', line 2: expected a JSON object with a "te'),
        ("a.jsonl", b'{"text": "a"}\nabc', ", line 2: expected a JSON object"),
        ("a.jsonl", b'["text"]', ", line 1: expected a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}', ", line 1: expected text in UTF-8, found byte 0xff"),
        ("a.json", b"[" * 99999, ", line 1: expected a JSON object"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        texts_of(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the text cannot be read: No such file"):
        find_sources([str(tmp_path / "x")])
    with pytest.raises(InputError, match=r"no file in this directory ends in \.txt; name the"):
        find_sources([str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe or a device"):
        find_sources([str(tmp_path / "pipe")])


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n" * 10)
    found = read_pieces(find_sources([str(path)]))
    next(found)
    with path.open("a") as file:
        file.write("two\n")
    with pytest.raises(InputError, match="was changed while it was read; start the command again"):
        list(found)


def test_a_failing_disk_is_no_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.symlink_to(FAILING_FILE)
    with pytest.raises(Gpt1Error, match="Input/output error; see that the disk") as caught:
        texts_of(path)
    assert not isinstance(caught.value, InputError)
