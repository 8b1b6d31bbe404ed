"""Texts encoded in several processes and kept in a cache: the ids are those of one process."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from faults import short_files
from leftovers import running_descendants
from processes import SIGINT, SIGKILL, SIGTERM, Change, Run, before, sends_itself, set_constant
from waiting import wait_until

from gpt1.batches import cache as cache_module
from gpt1.batches import encoding as encoding_module
from gpt1.batches.cache import Cache, find_cache, key_of
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.encoding import Encoding, Texts, encode_examples
from gpt1.batches.task_data import load_task_data
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.tasks import Entailment, Example, Similarity, Splits
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is used")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    directory = tmp_path_factory.mktemp("vocabulary")
    tiny.write_vocabulary(directory)
    return TextEncoder(directory / "encoder_bpe_40000.json", directory / "vocab_40000.bpe")


@pytest.fixture
def encoding(encoder: TextEncoder) -> Encoding:
    return Encoding(encoder, Similarity(), SpecialTokens.after(len(encoder.encoder)), 16)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of a few examples, and count every text as many."""
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(encoding_module, "WORTH_A_PROCESS", 1)


def pairs(n: int) -> list[Texts]:
    """Return pairs of texts of 0 to 12 words."""
    rng = random.Random(0)
    words = ["had", "it", "was", "so", "big", "ran", "xyz", "don't", "世", "."]
    return [
        tuple(" ".join(rng.choices(words, k=rng.randrange(13))) for _ in range(2)) for _ in range(n)
    ]


def plainly(encoding: Encoding, examples: list[Texts]) -> EncodedSplit:
    """Encode text by text, as it is done without parts, processes and cache."""
    layout, special = encoding.layout, encoding.special
    texts = [[encoding.encoder._encode_directly(text) for text in each] for each in examples]
    return EncodedSplit.of((layout.sequences(each, special, 16) for each in texts), special)


def assert_equal(found: EncodedSplit, expected: EncodedSplit) -> None:
    for name in ("ids", "lengths"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


# ------------------------------------------------------------------------------- processes


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("n", "n_processes"), [(0, 3), (1, 1), (300, 1), (300, 3)])
def test_the_ids_are_those_of_one_process(encoding: Encoding, n: int, n_processes: int) -> None:
    examples = pairs(n)
    found = encode_examples(encoding, examples, n_processes=n_processes)
    assert_equal(found, plainly(encoding, examples))


@pytest.mark.usefixtures("small_parts")
def test_other_processes_do_a_part_of_the_work_and_end(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, by_helpers = pairs(300), []
    finish = encoding_module._Work.finish

    def noting(work: Any, number: int, found: Any) -> None:
        by_helpers.append(found)
        finish(work, number, found)

    def waiting(own: Encoding, part: Any) -> EncodedSplit:
        wait_until(lambda: bool(by_helpers), "the first part of another process")
        return plainly(own, part)

    monkeypatch.setattr(encoding_module._Work, "finish", noting)
    monkeypatch.setattr(Encoding, "__call__", waiting)
    found = encode_examples(encoding, examples, n_processes=2)
    assert_equal(found, plainly(encoding, examples))
    assert isinstance(by_helpers[0], EncodedSplit)
    assert running_descendants(os.getpid()) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("command", ["raise SystemExit(1)", "import time; time.sleep(1000)"])
def test_this_process_does_the_work_of_one_that_fails(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A process that hangs never gets more than one part; it is killed from outside here."""
    started = []
    start = encoding_module._start

    def note() -> Any:
        started.append(start())
        if "sleep" in command:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr(encoding_module, "_START", command)
    monkeypatch.setattr(encoding_module, "_start", note)
    examples = pairs(100)
    found = encode_examples(encoding, examples, n_processes=3)
    assert_equal(found, plainly(encoding, examples))
    assert [process.returncode is not None for process in started] == [True, True]


@pytest.mark.usefixtures("small_parts")
def test_an_error_in_a_text_is_raised_here(encoding: Encoding) -> None:
    examples: list[Any] = [*pairs(50), ("a text", 7)]
    with pytest.raises(TypeError, match="int"):
        encode_examples(encoding, examples, n_processes=2)
    assert running_descendants(os.getpid()) == []


def test_few_texts_start_no_process(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "_start", lambda: pytest.fail("a process was started"))
    encode_examples(encoding, pairs(50), n_processes=8)


# ----------------------------------------------------------------------------------- cache


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> Cache:
    return Cache(tmp_path / "cache", notes.append)


def test_a_split_comes_back_whole(cache: Cache, encoding: Encoding, notes: list[str]) -> None:
    split = encoding(pairs(40))
    key = key_of(encoding, pairs(40))
    assert cache.load(key) is None
    cache.save(key, split)
    found = cache.load(key)
    assert found is not None
    assert_equal(found, split)
    assert notes == []


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "longer"])
def test_a_damaged_file_is_not_taken(
    cache: Cache, encoding: Encoding, notes: list[str], damage: str
) -> None:
    split, key = encoding(pairs(40)), "k"
    cache.save(key, split)
    (path,) = cache.directory.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    changed = {"cut": data[:-1], "empty": data[:0], "one bit": data, "longer": data + b"x"}
    path.write_bytes(changed[damage])
    assert cache.load(key) is None
    assert notes == [f"{path}: damaged; the texts are encoded again"]
    cache.save(key, split)
    assert cache.load(key) is not None


def test_the_key_depends_on_all_that_the_ids_depend_on(
    encoding: Encoding, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = pairs(5)
    own = key_of(encoding, examples)
    assert key_of(encoding, [tuple(each) for each in examples]) == own
    one, *rest = examples
    tiny.write_vocabulary(tmp_path)
    files = tmp_path / "encoder_bpe_40000.json", tmp_path / "vocab_40000.bpe"
    merges = files[1].read_text().splitlines(keepends=True)
    files[1].write_text("".join(merges[:-1]))
    other_rules = TextEncoder(*encoder.files, spacy_rules="installed")
    keys = [
        own,
        key_of(encoding, [(one[1], one[0]), *rest]),
        key_of(encoding, [(one[0] + one[1], ""), *rest]),
        key_of(encoding, rest),
        key_of(replace(encoding, n_ctx=17), examples),
        key_of(replace(encoding, layout=Entailment()), examples),
        key_of(replace(encoding, encoder=other_rules), examples),
        key_of(replace(encoding, encoder=TextEncoder(*files)), examples),
    ]
    monkeypatch.setattr(cache_module, "_source", lambda name: "another program")
    keys.append(key_of(encoding, examples))
    assert len(set(keys)) == len(keys)


def test_the_oldest_files_make_room(
    cache: Cache, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = encoding(pairs(40))
    for age, key in enumerate("abc"):
        cache.save(key, split)
        os.utime(cache._path(key), (age, age))
    size = cache._path("a").stat().st_size
    monkeypatch.setattr(cache_module, "MOST_BYTES", 3 * size)
    assert cache.load("a") is not None  # now "b" is the one that was used least recently
    cache.save("d", split)
    assert sorted(path.stem for path in cache.directory.iterdir()) == ["a", "c", "d"]
    monkeypatch.setattr(cache_module, "MOST_BYTES", size // 2)
    cache.save("e", split)
    assert cache.load("e") is None


def test_a_cache_that_cannot_be_written_is_a_note(
    tmp_path: Path, encoding: Encoding, notes: list[str]
) -> None:
    split = encoding(pairs(40))
    (tmp_path / "file").touch()
    Cache(tmp_path / "file" / "cache", notes.append).save("k", split)
    with short_files(100):
        Cache(tmp_path, notes.append).save("k", split)
    assert all("The run goes on without it" in note for note in notes)
    assert len(notes) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def place(cache_dir: str | None = None) -> Path | None:
        cache = find_cache(cache_dir, print)
        return cache.directory if cache else None

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert place() == tmp_path / "own/gpt1"
    assert place("here") == Path("here")
    assert place("none") is None
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert place() == tmp_path / ".cache/gpt1"


def test_a_second_start_encodes_nothing_and_small_splits_are_not_kept(
    encoder: TextEncoder, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [Example(texts, 0, f"a.tsv, line {n}") for n, texts in enumerate(pairs(60))]
    splits = Splits(examples[:50], examples[50:], {"test": examples[50:]})
    task = replace(ROCSTORIES, layout=Similarity(), read=lambda folder: splits)
    monkeypatch.setattr(cache_module, "WORTH_CACHING", 1)
    monkeypatch.setattr("gpt1.batches.task_data.WORTH_CACHING", 1000)
    first = load_task_data(task, "", encoder, n_ctx=16, cache=cache)
    assert len(list(cache.directory.iterdir())) == 1
    parts: list[int] = []
    encode = Encoding.__call__

    def noting(own: Encoding, texts: Any) -> EncodedSplit:
        parts.append(len(texts))
        return encode(own, texts)

    monkeypatch.setattr(Encoding, "__call__", noting)
    second = load_task_data(task, "", encoder, n_ctx=16, cache=cache)
    assert parts == [10, 10]
    assert second.sha256() == first.sha256()
    assert first.sources[:2] == ["a.tsv, line 0", "a.tsv, line 1"]


# --------------------------------------------------------------------------- whole programs


def large(directory: Path) -> list[Change]:
    """Return changes by which the tiny texts count as many, for the cache in ``directory``."""
    module = "gpt1.batches.encoding"
    return [
        partial(set_constant, module, "CHUNK_CHARACTERS", 100),
        partial(set_constant, module, "WORTH_A_PROCESS", 1),
        partial(set_constant, "gpt1.batches.task_data", "WORTH_CACHING", 1),
        partial(set_constant, "gpt1.training.prepare", "_n_processes", partial(int, 2)),
    ]


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("number", "target"),
    [
        (SIGTERM, "gpt1.batches.encoding:Encoding.__call__"),
        pytest.param(SIGINT, "gpt1.batches.encoding:Encoding.__call__", marks=pytest.mark.slow),
        pytest.param(SIGKILL, "gpt1.batches.encoding:Encoding.__call__", marks=pytest.mark.slow),
        pytest.param(SIGTERM, "gpt1.runtime.files:os.replace", marks=pytest.mark.slow),
        pytest.param(SIGKILL, "gpt1.runtime.files:os.replace", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_while_it_encodes_leaves_no_process_and_no_part_of_a_file(
    task: tiny.Tiny, tmp_path: Path, number: int, target: str
) -> None:
    run, place = Run(task, tmp_path / "run"), tmp_path / "cache"
    matching = ".ids" if "replace" in target else ""
    stop = before(target, sends_itself(number), call=2, matching=matching)
    words = ("--cache_dir", str(place), "--n_iter", "0")
    done = run.do(*words, changes=[*large(place), stop])
    assert done.status == (-SIGKILL if number == SIGKILL else 128 + number)
    wait_until(lambda: not running_descendants(os.getpid()), "the end of its processes")
    whole = {path.name for path in place.glob("[!.]*")}
    assert len(whole) == ("replace" in target)
    assert run.do(*words, changes=large(place)[:-1]).status == 0
    for path in place.glob("[!.]*"):
        data = path.read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
    assert {path.name for path in place.iterdir()} > whole
    assert not list(place.glob(".*"))
