"""For any content of a file, its reader reads it or refuses it with one message.

Files are damaged in two ways: bytes of a good one are changed, or a file is made of good
and hostile parts, so that the damage gets past lengths and checksums. How many inputs each reader
gets is set in ``tests/conftest.py``; they are the same in each run. The long run tries new
inputs each time, as many as this number says:

    GPT1_FUZZ_EXAMPLES=10000 python -m pytest tests/whole/test_fuzz.py
"""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import pickle
import re
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pytest
import task_files
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released import released_layout, write_released
from small_tasks import COLOURS, LIKENESS

from gpt1.batches.corpus import Corpus
from gpt1.batches.corpus_making import make_corpus
from gpt1.commands import train
from gpt1.datasets import TASKS, find_task
from gpt1.datasets import story_cloze as datasets
from gpt1.model.transformer import ModelConfig
from gpt1.opt.adam import OpenAIAdam
from gpt1.results import log_lines, submissions
from gpt1.runtime.errors import InputError
from gpt1.settings.training import Settings, parse
from gpt1.tasks import ChoiceIndex, Choices, Example, TaskRecord
from gpt1.tasks.record import read_record
from gpt1.text_utils import encoder as text_utils
from gpt1.text_utils.documents import find_sources, read_pieces
from gpt1.training import checkpoint, logs
from gpt1.weights import jl, locate, parameters
from gpt1.weights.released import load_released, read_shapes

FUZZ_RUNS = settings(  # a whole run takes a tenth of a second
    max_examples=max(settings.default.max_examples // 10, 1)
)
LONGEST_MESSAGE = 600  # characters besides the path, so that a user reads the whole message

CONFIG = ModelConfig(n_vocab=11, n_special=3, n_ctx=7, n_embd=4, n_head=2, n_layer=1)
SIZES = {"n_embd": 4, "n_layer": 1, "n_ctx": 7, "n_vocab": 11}


def read_or_refuse(read: Callable[[], Any], start: str | Path, lines: int = 1) -> Any:
    """Return the result of ``read``, or None after one short message that begins with ``start``."""
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # hidden from users
        try:
            result = read()
        except InputError as error:
            result, message = None, str(error)
            assert message.startswith(str(start))
            assert len(message) - len(str(start)) <= LONGEST_MESSAGE * lines
            assert all(line.isprintable() for line in message.split("\n"))
            assert message.count("\n") < lines
            assert not re.search("(of|into) memory|allocate", message)  # no file needs any warning
    assert not noise
    return result


# ------------------------------------------------------------------------------- damage

NUMBERS = [b"-1", b"0", b"1e999", b"NaN", b"2147483648", b"9" * 19, b"9" * 4300, b"9" * 5000]
HOSTILE_BYTES = [
    *(b"\0", b"\n", b"\r", b'"', b",", b"\t", b"{", b"[", b"(", b".", b"\xff", b"\xef\xbb\xbf"),
    *(b"\xff\xfe", b"\x80\x04", b"\x93NUMPY", b"\xff" * 8, b"\xed\xa0\x80", b"\\ud800", b"\\"),
    *(b"true", b"null", b"\x1b[2J", b"x" * 9999, *NUMBERS),
]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a file with changes in one to three places, more often near its beginning."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, min(len(data), 300)) | st.integers(0, len(data)))
        end = min(start + draw(st.integers(0, 9) | st.integers(0, 400)), len(data))
        part, rest = data[start:end], data[end:]
        match draw(st.sampled_from(["flip", "put", "noise", "repeat", "move", "cut", "number"])):
            case "flip":
                part = bytes([byte ^ 1 << draw(st.integers(0, 7)) for byte in part[:1]]) + part[1:]
            case "put":
                part = draw(st.sampled_from(HOSTILE_BYTES))
            case "noise":
                part = draw(st.binary(max_size=9))
            case "repeat":
                part *= draw(st.integers(0, 3))
            case "move":
                other = draw(st.integers(0, len(data)))
                part = data[other : other + len(part)]
            case "cut":
                rest = b""
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                rest = re.sub(rb"\d+", number, part + rest, count=1)
                part = b""
        data = data[:start] + part + rest
    return data


HOSTILE_JSON = [
    *("null", "true", "-1", "0", "1", "2.5", '""', "[]", "{}", "[[]]", "NaN", "-Infinity", "1e999"),
    *(str(2**31), str(2**63), str(-(2**63)), str(2**64), "9" * 40, "9" * 4300, "9" * 5000, "{"),
    *('"\\ud800"', '"\\n\\u0000\\u001b"', f'"{"x" * 5000}"', '"F32"', '"I32"', '"BF16"', '"F4"'),
    *('"F8_E4M3"', '"C64"', '"BOOL"', "[1,2]", "[0,16]", "[16,0]", "[-4,4]", f"[0,{2**63}]", "-0"),
    *(f"[{2**32},{2**31}]", '{"a":1,"a":2}', "[" * 970 + "]" * 970, "[" * 9999 + "]" * 9999),
    *('{"a":' * 970 + "1" + "}" * 970, '[{"params":[0]}]', "[-1]", "[true]", '["a"]', '"model.w"'),
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a JSON value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from places(value[key])


@st.composite
def edited_json(draw: st.DrawFn, value: Any) -> str:
    """Draw a JSON text with one to three parts replaced, removed, renamed or given twice."""
    box, new = [copy.deepcopy(value)], []
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(box))))
        match draw(st.sampled_from(["replace", "remove", "rename", "twice"])), container:
            case "remove", _ if container is not box:
                del container[key]
            case "rename", dict():
                names = ["", "x", "0", "model.0", "a\nb", "x" * 5000]
                container[draw(st.sampled_from(names))] = container.pop(key)
            case "twice", dict():
                container[f"{key}@"] = copy.deepcopy(container[key])
            case _:
                container[key] = f"@{len(new)}@"
                new.append(draw(st.sampled_from(HOSTILE_JSON)))
    text = json.dumps(box[0]).replace('@":', '":')
    for number, hostile in enumerate(new):
        text = text.replace(f'"@{number}@"', hostile)
    return text


# ------------------------------------------------------------------------------- the readers


def in_file(write: Callable[[Path], Any]) -> bytes:
    """Return the bytes of a file that ``write`` makes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        write(path)
        return path.read_bytes()


def full_list() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = parameters.parameter_shapes(CONFIG).values()
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def stories(path: Path) -> None:
    rows = [["s1", "A, b.", "B", "C", 'D "d"', "E\ne", "F", "1"], ["s2", *"ABCDEF", "2"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([datasets.COLUMNS, *rows])


def vocabulary_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        tiny.write_vocabulary(Path(directory))
        return (Path(directory) / name).read_bytes()


VOCABULARY, MERGES = "encoder_bpe_40000.json", "vocab_40000.bpe"


def encoder_beside(path: Path) -> list[list[int]]:
    """Encode with this file and a good second one, since an accepted file must be usable."""
    other = {VOCABULARY: MERGES, MERGES: VOCABULARY}[path.name]
    path.with_name(other).write_bytes(WHOLE({VOCABULARY: "vocabulary", MERGES: "merges"}[other]))
    encoder = text_utils.TextEncoder(path.with_name(VOCABULARY), path.with_name(MERGES))
    ids = encoder.encode(["anna ran. so big"], verbose=False)
    encoder.decode(ids[0])
    return ids


@pytest.fixture(autouse=True, scope="module")
def _words_once() -> Iterator[None]:
    """Compile spaCy's rules once, which takes a tenth of a second and depends on no file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_utils, "EnglishWords", functools.cache(text_utils.EnglishWords))
        yield


@pytest.fixture(autouse=True, scope="module")
def _little_memory() -> Iterator[None]:
    """Allow one gigabyte more, so that a reader that believes a header's terabytes fails."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def log_line(n: int) -> dict[str, Any]:
    costs = {"tr_cost": 0.5, "va_cost": 0.6, "tr_acc": 75.0, "va_acc": 62.5}
    return {"n_epochs": n, "n_updates": 4 * n, **costs, "time": 1.5e9}


CORRELATIONS = {"tr_pearson": 5.0, "va_pearson": -5.0, "tr_spearman": 4.0, "va_spearman": 0.0}
LOG_OF_CORRELATIONS = (
    b'{"seed": 42}\n'
    + json.dumps(
        {"n_epochs": 1, "n_updates": 4, "tr_cost": 0.5, "va_cost": 0.6, "time": 1.0} | CORRELATIONS
    ).encode()
)
LOG = "\n".join(map(json.dumps, ({"seed": 42}, log_line(1), log_line(2)))).encode()
_RECORD = {"desc": "a", "run_id": "1", "log": "log/a.jsonl", "sha256": "0" * 64}
OLD_RECORD = json.dumps({**_RECORD, "valid_accuracy": 50.0}).encode()
RECORD = json.dumps(
    {**_RECORD, "dataset": "cola", "split": "CoLA", "metric": "matthews", "valid_score": -1.0}
).encode()


def list_of_arrays(path: Path) -> None:
    parameters.list_sizes(parameters.read_params(path), path)


@functools.cache
def corpus_files() -> dict[str, bytes]:
    """Return the files of a corpus of two documents."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tiny.write_vocabulary(directory)
        (directory / "a.jsonl").write_text('{"text": "anna ran."}\n{"text": "so\\nbig"}\n')
        made = make_corpus(
            find_sources([str(directory / "a.jsonl")]),
            directory / "corpus",
            vocabulary=(directory / VOCABULARY, directory / MERGES),
            held_out=0.5,
        )
        return {path.name: path.read_bytes() for path in made.directory.iterdir()}


def open_corpus(path: Path) -> list[int]:
    """Open a corpus of which one file is there; an accepted corpus must be usable."""
    for name, data in corpus_files().items():
        if name != path.name:
            path.with_name(name).write_bytes(data)
    corpus = Corpus.open(path.parent)
    assert corpus.train.size + corpus.held_out.size == corpus.tokens.size == corpus.header.n_tokens
    return corpus.tokens.tolist()


def read_documents(path: Path) -> str:
    return "".join(located.piece.text for located in read_pieces(find_sources([str(path)])))


class Reader(NamedTuple):
    """A reader of files with a certain name, and a good file."""

    name: str
    whole: Callable[[], bytes]
    read: Callable[[Path], Any]
    is_part: bool = False  # of a directory: a message may name another file that does not fit it

    def start(self, path: Path) -> Path:
        """Return how a message about the file ``path`` begins."""
        return path.parent if self.is_part else path


RECORD_OF_TASK = TaskRecord(
    layout=Choices(), target=ChoiceIndex(("a", "b")), n_ctx=9, metrics=("accuracy",)
)
WITH_TASK = json.dumps({"n_head": 4, "gpt1_task": RECORD_OF_TASK.as_json()}).encode()
OWN_ROWS = [("a text", 'b "b", c', "0"), ("d", "e", "1"), ("f", "g", "0"), ("h", "i", "1")]
OWN_JSON = [{"text1": a, "text2": b, "label": label} for a, b, label in OWN_ROWS]


def own_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text1", "text2", "label"), *OWN_ROWS])


def own_examples(path: Path) -> list[Example]:
    """Read a user's examples; the task must be one that a model can be trained on."""
    words = ["--dataset", "own", "--shape", "entailment", "--train_file", str(path)]
    task = find_task(parse(words))
    found = task.read(path.parent)
    labels = [example.label for example in found.train + found.valid]
    assert set(labels) == set(range(task.target.n_outputs))
    assert all(text.strip() for example in found.train for text in example.texts)
    return found.train


READERS = {
    "own csv": Reader("a.csv", lambda: in_file(own_csv), own_examples),
    "own tsv": Reader(
        "a.tsv",
        lambda: "".join(
            "\t".join(row) + "\n" for row in [("text1", "text2", "label"), *OWN_ROWS]
        ).encode(),
        own_examples,
    ),
    "own jsonl": Reader(
        "a.jsonl", lambda: "\n".join(map(json.dumps, OWN_JSON)).encode(), own_examples
    ),
    "task": Reader(
        "gpt1_config.json",
        lambda: WITH_TASK,
        lambda path: read_record(
            locate.read_config_file(path.parent).get("gpt1_task"), f"{path}: gpt1_task"
        ),
    ),
    "stories": Reader("stories.csv", lambda: in_file(stories), datasets.read_cloze),
    "vocabulary": Reader(VOCABULARY, lambda: vocabulary_file(VOCABULARY), encoder_beside),
    "merges": Reader(MERGES, lambda: vocabulary_file(MERGES), encoder_beside),
    "shapes": Reader(
        "params_shapes.json",
        lambda: json.dumps(released_layout(**SIZES)).encode(),
        lambda path: read_shapes(path.parent),
    ),
    "heads": Reader(
        "gpt1_config.json", lambda: b'{"n_head": 4}', lambda path: locate.read_n_head(path.parent)
    ),
    "jl": Reader(
        "a.jl", lambda: in_file(lambda path: jl.write_jl(path, full_list())), list_of_arrays
    ),
    "jl without joblib": Reader("a.jl", lambda: pickle.dumps(full_list(), 4), list_of_arrays),
    **{
        f"jl in {kind}": Reader(
            "a.jl",
            lambda kind=kind: in_file(lambda path: joblib.dump(full_list(), path, (kind, 3))),
            list_of_arrays,
        )
        for kind in ("zlib", "gzip", "bz2", "xz", "lzma")
    },
    "safetensors": Reader(
        "a.safetensors",
        lambda: in_file(lambda path: parameters.write_safetensors(path, full_list(), CONFIG)),
        list_of_arrays,
    ),
    "checkpoint": Reader(
        "checkpoint-00000003.safetensors", lambda: checkpoint_file(), checkpoint.load
    ),
    "submission": Reader(
        "a.tsv", lambda: b"index\tprediction\n0\t1\n1\t0\n2\t1\n", submissions.read_submission
    ),
    "submission of classes": Reader(
        "a.tsv",
        lambda: b"index\tprediction\n0\tblue\n1\tred\n",
        lambda path: submissions.read_submission(path, COLOURS.target),
    ),
    "submission of grades": Reader(
        "a.tsv",
        lambda: b"index\tprediction\n0\t3.25\n1\t1e-05\n",
        lambda path: submissions.read_submission(path, LIKENESS.target),
    ),
    "probabilities of classes": Reader(
        "a.tsv",
        lambda: in_file(lambda path: submissions.write_probs(path, np.eye(3), COLOURS.target)),
        lambda path: submissions.read_probs(path, COLOURS.target),
    ),
    "probabilities of grades": Reader(
        "a.tsv",
        lambda: in_file(lambda path: submissions.write_probs(path, np.eye(6), LIKENESS.target)),
        lambda path: submissions.read_probs(path, LIKENESS.target),
    ),
    "record": Reader(
        "a.run.json",
        lambda: RECORD,
        lambda path: submissions.read_record(path.with_name("a.tsv")),
    ),
    "record of an earlier version": Reader(
        "a.run.json",
        lambda: OLD_RECORD,
        lambda path: submissions.read_record(path.with_name("a.tsv")),
    ),
    **{
        name: Reader(name, lambda name=name: corpus_files()[name], open_corpus, is_part=True)
        for name in ("corpus.json", "documents.npy", "tokens.bin")
    },
    "text": Reader("a.txt", lambda: "one\ntwo é\n".encode(), read_documents),
    "text in JSON lines": Reader(
        "a.jsonl", lambda: b'{"text": "a"}\n{"text": "b"}', read_documents
    ),
    "log": Reader("a.jsonl", lambda: LOG, log_lines.read_log),
    "log of correlations": Reader("a.jsonl", lambda: LOG_OF_CORRELATIONS, log_lines.read_log),
    "log to go on with": Reader("a.jsonl", lambda: LOG, lambda path: logs._lines_until(path, 4)),
}
WHOLE = functools.cache(lambda kind: READERS[kind].whole())


@pytest.mark.parametrize("kind", READERS)
def test_a_whole_file_is_read(kind: str, tmp_path: Path) -> None:
    """Otherwise the tests below could pass with readers that refuse every file."""
    path = tmp_path / READERS[kind].name
    path.write_bytes(WHOLE(kind))
    assert READERS[kind].read(path) != []


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_changed_bytes(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / READERS[kind].name
    path.write_bytes(data.draw(damaged(WHOLE(kind))))
    read_or_refuse(lambda: READERS[kind].read(path), READERS[kind].start(path))


@pytest.mark.parametrize("kind", ["vocabulary", "shapes", "heads", "record", "task", "corpus.json"])
@given(data=st.data())
def test_other_json(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / READERS[kind].name
    path.write_text(data.draw(edited_json(json.loads(WHOLE(kind)))))
    read_or_refuse(lambda: READERS[kind].read(path), READERS[kind].start(path))


@given(line=st.integers(0, 3), data=st.data())
def test_other_json_lines_of_own_data(tmp_path: Path, line: int, data: st.DataObject) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(each) for each in OWN_JSON]
    lines[line] = data.draw(edited_json(OWN_JSON[line]))
    path.write_text("\n".join(lines))
    read_or_refuse(lambda: own_examples(path), path)


@pytest.mark.parametrize("kind", ["log", "log to go on with"])
@given(line=st.integers(0, 2), data=st.data())
def test_other_json_lines(kind: str, tmp_path: Path, line: int, data: st.DataObject) -> None:
    path = tmp_path / READERS[kind].name
    lines = LOG.decode().splitlines()
    lines[line] = data.draw(edited_json(json.loads(lines[line])))
    path.write_text("\n".join(lines))
    read_or_refuse(lambda: READERS[kind].read(path), path)


CELL = st.text(max_size=4) | st.sampled_from(
    ['"', '"a', '"a"b', '"a,b"', '"a\nb"', '"a""b"', " ", "\0", "1", "2", "3", "x" * 140_000]
)


@given(
    rows=st.lists(st.lists(CELL, min_size=6, max_size=9), max_size=4),
    header=st.sampled_from([datasets.COLUMNS, datasets.COLUMNS[1:], datasets.COLUMNS[::-1]]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_other_rows(
    tmp_path: Path, rows: list[list[str]], header: tuple[str, ...], end: str, encoding: str
) -> None:
    path = tmp_path / "stories.csv"
    text = end.join(",".join(row) for row in [header, *rows]) + end
    path.write_bytes(text.encode(encoding, errors="replace"))
    read_or_refuse(lambda: datasets.read_cloze(path), path)


# ------------------------------------------------------------------------------- other data sets


def check_task(folder: Path, name: str, file: str, content: bytes) -> None:
    """Read a data set with other content in one file; what is read has texts and labels in order.

    Args:
        folder: where the data set is; it is written there at first, and whole again at the end.
        name: the data set.
        file: the file.
        content: its content.
    """
    if not any(folder.iterdir()):
        task_files.write_task(folder, name)
    (folder / file).write_bytes(content)
    splits = read_or_refuse(lambda: TASKS[name].read(folder), folder)
    (folder / file).write_bytes(task_files.FILES[name][file].encode())
    for examples in (splits.train, *splits.predicted.values()) if splits is not None else ():
        assert all(text.strip() and "\0" not in text for each in examples for text in each.texts)
        assert len({(len(each.texts), each.label is None) for each in examples}) == 1
    if splits is not None:
        TASKS[name].target.encode([each.label for each in splits.train])


@pytest.mark.parametrize("name", sorted(task_files.FILES.keys() - {"race", "race-high"}))
@given(data=st.data())
def test_changed_bytes_of_a_data_set(name: str, tmp_path: Path, data: st.DataObject) -> None:
    file, text = data.draw(st.sampled_from(sorted(task_files.FILES[name].items())))
    check_task(tmp_path, name, file, data.draw(damaged(text.encode())))


@pytest.mark.parametrize("name", ["race-middle", "snli"])
@given(data=st.data())
def test_other_json_of_a_data_set(name: str, tmp_path: Path, data: st.DataObject) -> None:
    file = {"race-middle": "dev/middle/1.txt", "snli": "snli_1.0_train.jsonl"}[name]
    first, *others = task_files.FILES[name][file].split("\n")
    lines = [data.draw(edited_json(json.loads(first))), *others]
    check_task(tmp_path, name, file, "\n".join(lines).encode())


FIELD = st.text(max_size=4) | st.sampled_from(
    ['"', '"a', " ", "", "\0", "0", "1", "5.0", "-1", "nan", "1e9", "9" * 5000, "neutral", "\u2028"]
)


@pytest.mark.parametrize("name", ["sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "rte", "scitail"])
@given(data=st.data(), end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
def test_other_rows_of_a_data_set(name: str, tmp_path: Path, data: st.DataObject, end: str) -> None:
    file, text = data.draw(st.sampled_from(sorted(task_files.FILES[name].items())))
    rows = [line.split("\t") for line in text.split("\n")]
    for row in data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=3)):
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(FIELD)
    other = end.join("\t".join(row) for row in rows)
    check_task(tmp_path, name, file, other.encode(errors="replace"))


# ------------------------------------------------------------------------------- parameter files


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    write_released(directory, **SIZES)
    return directory


def read_shards_with(shards: Path, shard: bytes) -> None:
    (shards / "params_5.npy").write_bytes(shard)

    def read() -> dict[str, np.ndarray]:
        special = np.zeros((3, SIZES["n_embd"]), np.float32)
        return load_released(
            shards, special=special, n_ctx=SIZES["n_ctx"], n_transfer=SIZES["n_layer"]
        )

    loaded = read_or_refuse(read, shards)
    assert all(np.isfinite(array).all() for array in (loaded or {}).values())


@functools.cache
def whole_shard() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        write_released(Path(directory), **SIZES)
        return (Path(directory) / "params_5.npy").read_bytes()


@given(data=st.data())
def test_changed_bytes_of_a_shard(shards: Path, data: st.DataObject) -> None:
    read_shards_with(shards, data.draw(damaged(whole_shard())))


DTYPES = [
    *("'<f4'", "'>f4'", "'|O'", "'O'", "'<f8'", "'V2147483648'", "'<U999999999'", "'f4,O'", "'m8'"),
    *("[('a','<f4'),('b','|O')]", "[('a','<f4',(2,3))]", "('<f4',(2,))", "{'a':1}", "''", "3"),
    "()",
    *("'<f4\\x00'", "'\\q'", "'<f4'*9", "[('a','O',(-1,))]", "None", "b'<f4'", "'4f4'", "'<f4L'"),
]
AXES = [
    *("({n},)", "{n}", "[{n}]", "({n})", "({n},1)", "(-{n},)", "(-1,)", "(True,)", "({n}.0,)"),
    *("()", "(", "({n}L,)", "(0,)", "(0,-1)", "(1e9,)", "(99999999999,)"),
    "(4611686018427387904,4)",
    *("(" + "9" * 4300 + ",)", "(" + "1," * 70 + ")", "(" * 300 + ")" * 300),
]


@given(
    dtype=st.just("'<f4'") | st.sampled_from(DTYPES),
    axes=st.just("({n},)") | st.sampled_from(AXES),
    fortran=st.sampled_from(["False", "True", "0", "None", "__import__('os')", "'False'"]),
    shape_name=st.sampled_from(["shape", "shape", "shape", "Shape"]),
    version=st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (9, 9)]),
    surplus=st.sampled_from([0, 0, 0, 1, -1, 9, 2**15, 2**31]),
)
def test_other_headers_of_a_shard(
    shards: Path,
    dtype: str,
    axes: str,
    fortran: str,
    shape_name: str,
    version: tuple[int, int],
    surplus: int,
) -> None:
    """An .npy file holds a length, then a Python expression, then the numbers."""
    values = np.load(io.BytesIO(whole_shard()))
    shape = axes.replace("{n}", str(values.size))
    header = f"{{'descr': {dtype}, 'fortran_order': {fortran}, '{shape_name}': {shape}, }}\n"
    form = "<H" if version == (1, 0) else "<I"
    length = (len(header) + surplus) % (2**16 if form == "<H" else 2**32)
    start = b"\x93NUMPY" + bytes(version) + struct.pack(form, length)
    read_shards_with(shards, start + header.encode() + values.tobytes())


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint"])
@given(data=st.data(), surplus=st.sampled_from([0, 0, 0, 0, 1, -1, 2**31, 2**62]))
def test_other_headers_of_safetensors(
    kind: str, tmp_path: Path, data: st.DataObject, surplus: int
) -> None:
    """A safetensors file holds a length, that many bytes of JSON, then the numbers."""
    whole = WHOLE(kind)
    end = 8 + int.from_bytes(whole[:8], "little")
    header = data.draw(edited_json(json.loads(whole[8:end]))).encode()
    path = tmp_path / READERS[kind].name
    path.write_bytes((len(header) + surplus).to_bytes(8, "little") + header + whole[end:])
    read_or_refuse(lambda: READERS[kind].read(path), path)


def test_more_after_a_zlib_stream_is_refused(tmp_path: Path) -> None:
    """joblib's own reader would double its memory without end here."""
    path = tmp_path / "a.jl"
    path.write_bytes(WHOLE("jl in zlib") + b"more")
    with pytest.raises(InputError, match="damaged"):
        jl.read_jl(path)


F4 = b"cnumpy\ndtype\n\x8c\x02f4\x85R(K\x03\x8c\x01<NNNK\0K\0K\0tb"
STATE = b"}(\x8c\x08subclasscnumpy\nndarray\n\x8c\x05shapeK\x02\x85\x8c\x05order\x8c\x01C"
WRAPPER = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
ARRAY = WRAPPER + STATE + b"\x8c\x05dtype" + F4 + b"ub" + b"\0" * 8
OPERATIONS = [
    *(F4, STATE, WRAPPER, ARRAY, ARRAY[:-9], F4[:-1], b"\x8c\x05dtype", b"\0" * 8, b"\0"),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cos\nsystem\n", b"(inumpy\ndtype\n", b"\x82\x01"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"X\x01\0\0\0C", b"C\x04abcd", b"U\x01<", b"V<\n"),
    *(b"\x8c\x02f4", b"\x8c\x01O", b"S'<'\n", b"K\x01", b"K\x00", b"J\xff\xff\xff\x7f", b"I01\n"),
    *(b"J\xff\xff\xff\xff", b"\x8a\x01\x7f", b"I" + b"9" * 5000 + b"\n", b"G" + b"\x7f" * 8, b"N"),
    *(b"(", b"]", b"}", b")", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"\x85", b"\x86", b"\x87"),
    *(b"R", b"b", b"o", b"\x81", b"\x92", b"\x93", b"\x94", b"q\0", b"h\0", b"p3\n", b"g3\n"),
    b"\x88",
    *(b"0", b"1", b"2", b".", b"P1\n", b"Q", b"\x96" + b"\xff" * 8, b"\x8d" + b"\x7f" * 8, b"\xff"),
]


@given(operations=st.lists(st.sampled_from(OPERATIONS), max_size=25), protocol=st.integers(0, 6))
def test_other_operations_of_a_jl(tmp_path: Path, operations: list[bytes], protocol: int) -> None:
    path = tmp_path / "a.jl"
    path.write_bytes(bytes([0x80, protocol]) + b"](" + b"".join(operations) + b"e." + b"\0" * 40)
    read_or_refuse(lambda: list_of_arrays(path), path)


# ------------------------------------------------------------------------------- checkpoints


class Run:
    """A small model and its optimizer after three updates."""

    def __init__(self, n_updates: int = 3) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = OpenAIAdam(
            self.model.parameters(), 0.01, "warmup_linear", warmup=0.1, t_total=8, l2=0.01
        )
        for _ in range(n_updates):
            self.model(torch.ones(1, 3)).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def state(self) -> checkpoint.RunState:
        return checkpoint.capture(self.model, self.optimizer, 3, 62.5)

    def bits(self) -> tuple[Any, ...]:
        """Everything that a resumed run depends on."""
        state = self.state()
        return bits(state.tensors, state.optimizer)


def bits(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> tuple[Any, ...]:
    by_name = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return by_name, copy.deepcopy(groups)


IDENTITY = {"seed": 3, "lr": 6.25e-5, "model": {"n_ctx": 77}}


def checkpoint_file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return checkpoint.save(Path(directory), Run().state(), IDENTITY).read_bytes()


def test_a_list_of_no_width_is_refused(tmp_path: Path) -> None:
    """Its shapes fit one another, but no model can have them."""
    path = tmp_path / "a.jl"
    shapes = parameters.list_shapes(rows=21, n_embd=0, n_layer=1).values()
    jl.write_jl(path, [np.zeros(shape, np.float32) for shape in shapes])
    with pytest.raises(InputError, match=r"array 0 \(we\)"):
        list_of_arrays(path)


# ------------------------------------------------------------------------------- flags

FLAGS = [f"--{name}" for name in Settings().as_flags()]
TEXTS = [
    *("", " ", "-", "--", "=", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e999", "-1e-3"),
    "1_0",
    *("9" * 5000, "9" * 400, "0x10", "\0", "\n", "\udcff", "é", "٣", "true", "adam", "gelu", "a/b"),
    *("fp32", "None", "[]", "-h", "--no", "--seed=", "--submit=yes", "@file", "x" * 9999),
]
WORDS = st.sampled_from(FLAGS) | st.sampled_from(TEXTS) | st.text(max_size=6)


@given(words=st.lists(WORDS | st.tuples(st.sampled_from(FLAGS), WORDS).map("=".join), max_size=9))
def test_any_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if {"-h", "--help"} & set(words):
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(words)
    else:
        result = read_or_refuse(lambda: parse(words), "", lines=len(words) + 1)
        assert result is None or isinstance(result, Settings)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task and the results of a run on it, its checkpoint included."""
    directory = tmp_path_factory.mktemp("finished")
    task = tiny.write_tiny(directory)
    assert train.main([*flags_of(task), "--submit"]) == 0
    return directory


def flags_of(task: tiny.Tiny) -> list[str]:
    kinds = ("log", "save", "submission")
    results = [word for kind in kinds for word in (f"--{kind}_dir", str(task.directory / kind))]
    return [*task.flags, *results, "--device", "cpu", "--n_batch", "2", "--n_iter", "1", "--quiet"]


def files_of(directory: Path) -> dict[str, bytes]:
    """Return all files except locks; a damaged checkpoint has the name that it had before."""
    return {
        str(path.relative_to(directory)).removesuffix(checkpoint.DAMAGED): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@FUZZ_RUNS
@given(data=st.data())
def test_a_run_on_a_damaged_file(
    finished: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    """It trains, or ends with a message; if a file is at fault, all earlier results stay."""
    name, whole = data.draw(st.sampled_from(sorted(files_of(finished).items())))
    how = data.draw(st.sampled_from([[], ["--resume"], ["--n_transfer", "-1"]]))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "task"
        shutil.copytree(finished, directory)
        (directory / name).write_bytes(data.draw(damaged(whole)))
        before = files_of(directory)
        status = train.main([*flags_of(tiny.Tiny(directory)), *how])
        after = files_of(directory)
    notes = capsys.readouterr().err.splitlines()
    if status:
        begin = next(i for i, line in enumerate(notes) if line.startswith("gpt1 train: error: "))
        assert all(line.startswith("  ") for line in notes[begin + 1 :])  # one problem per line
        notes = notes[:begin]
    assert all(note.startswith("--resume: ") for note in notes)
    assert status in (0, 1, 2)  # 1: the run diverged, although the damaged parameters were finite
    if status == 2:
        assert after == before
