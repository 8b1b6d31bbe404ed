"""No file runs code, hangs the program or does harm: hostile pickles, files of the wrong kind.

Each payload makes a directory when it runs. A first test shows this with a reader that trusts it.
Then every reader gets it under the name of the file that it reads.
"""

from __future__ import annotations

import ast
import contextlib
import copyreg
import functools
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pytest
import tiny
import torch
from released import released_layout, write_released
from test_fuzz import READERS, SIZES

import gpt1
from gpt1.commands import analysis as command
from gpt1.commands import train
from gpt1.datasets import story_cloze as datasets
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.text_utils import encoder as text_utils
from gpt1.training import checkpoint
from gpt1.weights import jl, parameters
from gpt1.weights.released import load_released

pytestmark = pytest.mark.skipif(os.name != "posix", reason="posix.mkdir, pipes and devices")

# ------------------------------------------------------------------------------- payloads


class Harm:
    """An object whose unpickling makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def text(value: str | Path) -> bytes:
    """Return the operation that puts a string on a pickle's stack."""
    data = str(value).encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def by_hand(operations: bytes) -> bytes:
    """Return a pickle of a list with the object that the operations leave on the stack."""
    return b"\x80\x04](" + operations + b"e."


MKDIR = b"cposix\nmkdir\n"
EXTENSION = 0xF7  # a code in copyreg's registry, while a test runs
WRAPPER = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
MEMMAP = text("u1") + text("w+") + b"K\x00K\x01\x85t"  # the arguments with which a file is made
# Ways to run something from a pickle's operations, given the operation that puts a path there.
OPERATIONS: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL": lambda path: MKDIR + path + b"\x85R",
    "STACK_GLOBAL": lambda path: text("posix") + text("mkdir") + b"\x93" + path + b"\x85R",
    "names by memo": lambda path: (
        text("mkdir") + b"q\x01" + text("posix") + b"q\x02h\x02h\x01\x93" + path + b"\x85R"
    ),
    "an admitted name's memo taken": lambda path: (
        b"cnumpy\ndtype\nq\x05" + MKDIR + b"q\x05h\x05" + path + b"\x85R"
    ),
    "INST": lambda path: b"(" + path + b"iposix\nmkdir\n",
    "OBJ": lambda path: b"(" + MKDIR + path + b"o",
    "NEWOBJ": lambda path: b"cnumpy\nmemmap\n(" + path + MEMMAP + b"\x81",
    "NEWOBJ_EX": lambda path: b"cnumpy\nmemmap\n(" + path + MEMMAP + b"}\x92",
    "BUILD": lambda path: (
        b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + MKDIR + b"sb" + path + b"b"
    ),
    "BUILD of an admitted class": lambda path: (
        WRAPPER + b"}" + text("__setstate__") + MKDIR + b"sb" + path + b"b"
    ),
    "EXT1": lambda path: b"\x82" + bytes([EXTENSION]) + path + b"\x85R",
    "EXT2": lambda path: b"\x83" + bytes([EXTENSION, 0]) + path + b"\x85R",
    "EXT4": lambda path: b"\x84" + bytes([EXTENSION, 0, 0, 0]) + path + b"\x85R",
    "a dotted name": lambda path: (
        text("joblib.numpy_pickle") + text("os.mkdir") + b"\x93" + path + b"\x85R"
    ),
    "a tuple's item": lambda path: MKDIR + path + b"\x85R\x85\x85",
    "a dict's key": lambda path: b"}" + MKDIR + path + b"\x85RNs",
    "an argument of dtype": lambda path: b"cnumpy\ndtype\n" + MKDIR + path + b"\x85R0N\x85",
    "before a good list": lambda path: MKDIR + path + b"\x85R0",
    "dropped": lambda path: b"(" + MKDIR + path + b"\x85R1",
}


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def objects(marker: Path) -> np.ndarray:
    return np.array([Harm(marker), None], dtype=object)


class Payload(NamedTuple):
    """A hostile file: its bytes, which make a given directory, and the reader that is harmed."""

    make: Callable[[Path], bytes]
    trusting: Callable[[io.BytesIO], object]


def load_torch(file: io.BytesIO) -> object:
    return torch.load(file, weights_only=False)


def load_numpy(file: io.BytesIO) -> object:
    loaded = np.load(file, allow_pickle=True)
    return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded


def evaluate_header(file: io.BytesIO) -> object:
    return eval(file.read()[10:])


def npy_with_code(marker: Path) -> bytes:
    code = f"{{'descr': __import__('os').mkdir({str(marker)!r}), 'shape': (1,)}}\n"
    return b"\x93NUMPY\x01\x00" + len(code).to_bytes(2, "little") + code.encode()


def record_of_objects(marker: Path) -> np.ndarray:
    return np.array([(1.0, Harm(marker))], dtype=[("a", "<f4"), ("b", "O")])


class Persistent(pickle.Unpickler):
    """A reader of pickles whose objects are stored elsewhere under names."""

    def persistent_load(self, name: str) -> None:
        os.mkdir(name)


PAYLOADS = {
    "PERSID": Payload(
        lambda marker: by_hand(b"P" + str(marker).encode() + b"\n"),
        lambda file: Persistent(file).load(),
    ),
    "BINPERSID": Payload(
        lambda marker: by_hand(text(marker) + b"Q"), lambda file: Persistent(file).load()
    ),
    **{
        f"pickle protocol {n}": Payload(
            lambda marker, n=n: pickle.dumps([Harm(marker)], n), pickle.load
        )
        for n in range(6)
    },
    **{
        name: Payload(lambda marker, do=do: by_hand(do(text(marker))), pickle.load)
        for name, do in OPERATIONS.items()
    },
    "joblib": Payload(
        lambda marker: saved(lambda f: joblib.dump([np.zeros(3), Harm(marker)], f)), joblib.load
    ),
    **{
        f"joblib in {kind}": Payload(
            lambda marker, kind=kind: saved(
                lambda f: joblib.dump([np.zeros(3), Harm(marker)], f, (kind, 3))
            ),
            joblib.load,
        )
        for kind in ("zlib", "gzip", "bz2", "xz", "lzma")
    },
    "a pickle inside an array of joblib's": Payload(
        lambda marker: saved(lambda f: joblib.dump([objects(marker)], f)), joblib.load
    ),
    "an array of objects, pickled": Payload(
        lambda marker: pickle.dumps([objects(marker)]), pickle.load
    ),
    "npy of objects": Payload(
        lambda marker: saved(lambda f: np.save(f, objects(marker), allow_pickle=True)), load_numpy
    ),
    "npy of records with objects": Payload(
        lambda marker: saved(lambda f: np.save(f, record_of_objects(marker), allow_pickle=True)),
        load_numpy,
    ),
    "npy with code for a header": Payload(npy_with_code, evaluate_header),
    "npz": Payload(lambda marker: saved(lambda f: np.savez(f, objects(marker))), load_numpy),
    "torch": Payload(lambda marker: saved(lambda f: torch.save([Harm(marker)], f)), load_torch),
    "torch before 1.6": Payload(
        lambda marker: saved(
            lambda f: torch.save([Harm(marker)], f, _use_new_zipfile_serialization=False)
        ),
        load_torch,
    ),
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def _extension() -> Iterator[None]:
    """Register an extension code for mkdir: a reader that admits codes admits all of them."""
    copyreg.add_extension("posix", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("posix", "mkdir", EXTENSION)


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_harms_who_trusts_it(name: str, marker: Path) -> None:
    """Otherwise the next test would show nothing."""
    payload = PAYLOADS[name]
    file = io.BytesIO(payload.make(marker))
    assert not marker.exists()
    with contextlib.suppress(Exception):  # The result of mkdir is not an array, but mkdir has run.
        payload.trusting(file)
    assert marker.exists()


SHARD = "params_5.npy"


def read_shards(path: Path) -> object:
    special = np.zeros((3, SIZES["n_embd"]), np.float32)
    return load_released(
        path.parent, special=special, n_ctx=SIZES["n_ctx"], n_transfer=SIZES["n_layer"]
    )


READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    kind: (reader.name, reader.read)
    for kind, reader in READERS.items()
    if " " not in kind and kind != "text"  # A payload may be text, which no rule of text refuses.
} | {"shard": (SHARD, read_shards)}


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_reader_runs_a_payload(name: str, kind: str, tmp_path: Path, marker: Path) -> None:
    """Each kind of hostile file is tried under the name of each kind of file."""
    file_name, read = READ[kind]
    if kind == "shard":
        write_released(tmp_path, **SIZES)
    path = tmp_path / file_name
    path.write_bytes(PAYLOADS[name].make(marker))
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert not marker.exists()


# ------------------------------------------------------------------------------- the source

# Functions that run or unpickle what they read. `compile` and `getattr` do not read.
RUNS_CODE = {"eval", "exec", "__import__", "joblib.load", "runpy.run_path", "np.fromregex"}
RUNS_CODE |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler"}
RUNS_CODE_MODULES = {"cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"}
RUNS_CODE_MODULES |= {"yaml", "code", "imp", "jsonpickle"}
# Functions that do so unless an argument forbids it.
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}


def code_runners(source: str) -> list[str]:
    """Return the calls in a module's source that may run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name == "pickle" and name.asname]
            found += [name.name for name in node.names if name.name in RUNS_CODE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
            found += [name for name in names if name.startswith("pickle.")]
            found += [name for name in names if name in RUNS_CODE or name in SAFE_WITH]
            found += [name for name in names if name.split(".")[0] in RUNS_CODE_MODULES]
        elif isinstance(node, ast.ClassDef):
            found += unrestricted_unpicklers(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {(word.arg, ast.unparse(word.value)) for word in node.keywords}
            needed = SAFE_WITH.get(name)
            if name in RUNS_CODE or (needed and (needed[0], str(needed[1])) not in given):
                found.append(name)
    return found


def unrestricted_unpicklers(node: ast.ClassDef) -> list[str]:
    """Return the unpicklers that a class inherits from without restricting names and operations."""
    bases = [ast.unparse(base) for base in node.bases]
    assigned = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    own = methods | {ast.unparse(target) for target in assigned}
    return [base for base in bases if "Unpickler" in base and not {"find_class", "dispatch"} <= own]


MODULES = sorted(Path(gpt1.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_runs_what_it_reads(path: Path) -> None:
    # These pickles come through pipes from processes that the module itself has started.
    own = ["pickle.load"] * 3 if path.match("batches/encoding.py") else []
    assert code_runners(path.read_text("utf-8")) == own


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.load(file)",
        "import pickle; pickle.Unpickler(file).load()",
        "import pickle; pickle._Unpickler(file).load()",
        "import pickle as plain",
        "import pickle\nclass A(pickle.Unpickler):\n    def find_class(self, *name): pass",
        "class A(NumpyUnpickler):\n    dispatch: dict = {}",
        "from pickle import loads as parse",
        "from joblib import load",
        "import joblib; joblib.load(path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "from numpy import load",
        "def f():\n    return [eval(line) for line in lines]",
        "exec(open(path).read())",
        "import yaml",
    ],
)
def test_what_runs_code_is_seen_in_source(source: str) -> None:
    assert code_runners(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "re.compile(pattern)",
        "import pickle\nclass A(pickle._Unpickler):\n    dispatch: dict = {}\n"
        "    def find_class(self, *name): pass",
        "json.load(file)",
    ],
)
def test_what_runs_nothing_is_left_alone(source: str) -> None:
    assert code_runners(source) == []


# ------------------------------------------------------------------------------- the matrix


class Case(NamedTuple):
    """A file of the user, and the program that reads it."""

    path: str
    main: Callable[[list[str]], int] = train.main
    words: tuple[str, ...] = ("--submit",)
    is_text: bool = True


RESULTS = ("log", "save", "submission")
BEST = "save/rocstories/best_params.jl"
SUBMISSION, RECORD = (f"submission/rocstories/ROCStories.{end}" for end in ("tsv", "run.json"))
LOG = "log/rocstories.jsonl"
CASES = {
    "validation": Case(f"data/{datasets.VALIDATION_CSV}"),
    "test": Case(f"data/{datasets.TEST_CSV}"),
    "vocabulary": Case("model/encoder_bpe_40000.json"),
    "merges": Case("model/vocab_40000.bpe"),
    "shapes": Case("model/params_shapes.json"),
    "heads": Case("model/gpt1_config.json"),
    "shard": Case("model/params_3.npy", is_text=False),
    "jl": Case("start.jl", words=("--submit", "--init_params", "start.jl"), is_text=False),
    "safetensors": Case(
        "start.safetensors",
        words=("--submit", "--init_params", "start.safetensors"),
        is_text=False,
    ),
    "checkpoint": Case(
        "save/rocstories/checkpoint-00000004.safetensors",
        words=("--submit", "--resume"),
        is_text=False,
    ),
    "submission": Case(SUBMISSION, command.main, (SUBMISSION, "--data_dir", "data")),
    "record": Case(RECORD, command.main, (SUBMISSION, "--data_dir", "data", "--log", LOG)),
    "log": Case(LOG, command.main, (SUBMISSION, "--data_dir", "data", "--log", LOG)),
}


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a damage that changes a file's bytes."""

    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a damage that puts something else in place of a file."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def middle(data: bytes, insertion: bytes) -> bytes:
    return data[: len(data) // 2] + insertion + data[len(data) // 2 :]


def make_sparse(path: Path) -> None:
    """Extend a good file to a terabyte, which takes no space on the disk."""
    os.truncate(path, 1 << 40)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": replaced(lambda data: b""),
    "half": replaced(lambda data: data[: len(data) // 2]),
    "first byte alone": replaced(lambda data: data[:1]),
    "random bytes": replaced(lambda data: random.Random(0).randbytes(500)),
    "zeros": replaced(lambda data: bytes(len(data))),
    "NUL inside": replaced(lambda data: middle(data, b"\0")),
    "a gigantic line": replaced(lambda data: middle(data, b"x" * 200_000)),
    "a web page": replaced(lambda data: b"<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    "a pointer of Git LFS": replaced(lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
    "packed twice": replaced(lambda data: gzip.compress(gzip.compress(data))),
    "nested brackets": replaced(lambda data: b"[" * 100_000),
    "gigantic number": replaced(lambda data: b"9" * 100_000),
    "a terabyte": make_sparse,
    "a directory": instead(Path.mkdir),
    "a dangling link": instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
    "a pipe": instead(lambda path: os.mkfifo(path)),
    "endless": instead(lambda path: path.symlink_to("/dev/zero")),
    "nothing": instead(lambda path: path.symlink_to("/dev/null")),
    "unreadable": lambda path: path.chmod(0),
    "UTF-16": replaced(lambda data: data.decode().encode("utf-16")),
    "Latin-1": replaced(lambda data: middle(data, b"\xe9")),
}
FOR_TEXT = ("UTF-16", "Latin-1")
# The content of the checkpoint is unknown then: the run must end, and not use an older one.
UNKNOWN_IN_A_CHECKPOINT = ("a dangling link", "a link to itself", "unreadable")
HARMLESS_THERE = {
    ("checkpoint", "missing"),  # The run starts anew, and says so.
    ("heads", "missing"),  # the original's twelve heads
    ("log", "a gigantic line"),  # longer text in its settings
    ("record", "missing"),  # The analysis says that the run is unknown.
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task, the results of a run on it, and parameters from which another run can start."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        tiny.write_tiny(Path())
        assert train.main([*FLAGS, "--submit"]) == 0
        shutil.copy(BEST, "start.jl")
        arrays = jl.read_jl(BEST)
        sizes = {"n_embd": tiny.N_EMBD, "n_head": tiny.N_HEAD, "n_layer": tiny.N_LAYER}
        rows = len(arrays[0])
        config = ModelConfig(n_vocab=rows - 4, n_ctx=1, **sizes)
        parameters.write_safetensors("start.safetensors", arrays, config)
    return directory


FLAGS = ["--data_dir", "data", "--model_dir", "model", "--device", "cpu"]
FLAGS += ["--n_batch", "2", "--n_iter", "1", "--quiet"]


@pytest.fixture
def task(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished task to damage; it is the current directory."""
    shutil.copytree(finished, tmp_path / "task")
    monkeypatch.chdir(tmp_path / "task")
    # spaCy's rules take a tenth of a second to compile, and depend on none of these files.
    monkeypatch.setattr(text_utils, "EnglishWords", ENGLISH)
    return tmp_path / "task"


ENGLISH = functools.cache(text_utils.EnglishWords)


def contents(directory: Path) -> dict[str, bytes | str]:
    """Return the content of all files below a directory; of special or large files, their kind.

    Locks are left out, and a damaged checkpoint has the name that it had before.
    """
    found: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        if path.name.endswith(".lock"):
            continue
        plain = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30
        readable = plain and os.access(path, os.R_OK)
        status = path.lstat()
        kind = f"{status.st_mode} {status.st_ino}"
        name = str(path).removesuffix(checkpoint.DAMAGED)
        found[name] = path.read_bytes() if readable else kind
    return found


def run(case: Case) -> int:
    return case.main([*(FLAGS if case.main is train.main else ()), *case.words])


REMEDIES = re.compile(
    r"\b(name|names|get|put|copy|copied|use|save|give|delete|mend|make|write|run|close|rename|"
    r"correct|number|add|fill|remove|look|ask|leave)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_message(
    kind: str, damage: str, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the file and a remedy; no result of an earlier run changes."""
    case = CASES[kind]
    if (kind, damage) in HARMLESS_THERE or (damage in FOR_TEXT and not case.is_text):
        pytest.skip("no damage to this kind of file")
    DAMAGES[damage](Path(case.path))
    if damage == "unreadable" and os.access(case.path, os.R_OK):
        pytest.skip("root can read everything")
    before = contents(task)
    unknown = kind == "checkpoint" and damage in UNKNOWN_IN_A_CHECKPOINT
    assert run(case) == (1 if unknown else 2)
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    if kind == "checkpoint" and not unknown:  # the file, and that there is no other
        note, stderr = stderr.split("\n", 1)
        assert note.startswith(f"--resume: {case.path}: ")
        assert "checkpoint" in stderr
    else:
        assert Path(case.path).name in stderr
    assert re.match(r"gpt1 \w+: error: ", stderr)
    assert stderr.count("\n") == 1
    assert len(stderr) < 700
    assert REMEDIES.search(stderr.split("error: ")[1].replace(case.path, ""))
    assert contents(task) == before
    if unknown:
        assert os.path.lexists(case.path)  # under its own name, not renamed


HARMLESS: dict[str, Callable[[Path], None]] = {
    "nothing at all": lambda path: None,
    "a byte-order mark": replaced(lambda data: b"\xef\xbb\xbf" + data),
    "lines ended as on Windows": replaced(
        lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    ),
    "a link": lambda path: (
        path.rename("elsewhere") and path.symlink_to(Path("elsewhere").resolve())
    ),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_no_damage_is_read(
    kind: str, change: str, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[kind]
    if not case.is_text and change not in ("nothing at all", "a link"):
        pytest.skip("no text")
    HARMLESS[change](Path(case.path))
    assert run(case) == 0
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "result",
    [LOG, "log/rocstories.updates.jsonl", BEST, SUBMISSION, RECORD, "submission/ROCStories.tsv"],
)
def test_a_directory_in_a_results_place_is_one_message(
    result: str, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(result).unlink()
    Path(result).mkdir()
    assert run(CASES["validation"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"gpt1 train: error: {result}: cannot be written: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--n_embd", str(2**40)], ["--n_embd", "memory"]),
        (["--n_layer", str(10**9)], ["--n_layer", "memory"]),
        (["--n_head", "5"], ["--n_head 5", "16"]),
        (["--data_dir", "x" * 5000], ["--data_dir"]),
        (["--model_dir", "x" * 300 + "/y"], ["--model_dir"]),
        (["--desc", "x" * 300], ["--desc"]),
        (["--seed", "x", "--lr", "--submit=yes", "word"], ["--seed", "--lr", "--submit", "word"]),
        (["--seed=--"], ["--seed --"]),
        (["--lr", "-1e-3"], ["--lr -0.001"]),
    ],
)
def test_a_wrong_flag_is_one_message(
    words: list[str], parts: list[str], task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(task)
    assert train.main([*FLAGS, "--submit", "--n_transfer", "-1", *words]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("gpt1 train: error: ")
    assert all(part in stderr for part in parts)
    assert contents(task) == before


def test_a_table_of_impossible_sizes_is_named(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no layer is transferred, no shard contradicts the table, and its sizes would be used."""
    table = released_layout(2**20, tiny.N_LAYER, tiny.N_POSITIONS, 2**20)
    Path("model/params_shapes.json").write_text(json.dumps(table))
    assert train.main([*FLAGS, "--n_transfer", "-1"]) == 2
    stderr = capsys.readouterr().err
    assert f"--n_embd {2**20} --n_layer {tiny.N_LAYER} (where not given, from model/)" in stderr
    assert "memory" in stderr
