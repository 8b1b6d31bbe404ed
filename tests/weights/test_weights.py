"""Parameter files are read and written bit for bit; damaged and hostile files are refused."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import faults
import joblib
import joblib.numpy_pickle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from released import released_layout, write_released

from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.weights import jl, locate, parameters, released

CONFIG = ModelConfig(n_vocab=11, n_special=3, n_ctx=7, n_embd=8, n_head=2, n_layer=2)
SIZES = {"n_embd": 8, "n_layer": 3, "n_ctx": 7, "n_vocab": 11}
SPECIAL = np.arange(24, dtype=np.float32).reshape(3, 8)


def random_list(config: ModelConfig = CONFIG, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = parameters.parameter_shapes(config).values()
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def random_model(config: ModelConfig = CONFIG) -> DoubleHeadsModel:
    model = DoubleHeadsModel(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Check that lists are equal in number, shape, dtype and every bit."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def refusal(read, *args, **kwargs) -> str:
    """Return the message of the InputError that the call must raise."""
    with pytest.raises(InputError) as caught:
        read(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def attempt(read, path: Path, *args, **kwargs):
    """Return the result of the call, or None if it reports a mistake in ``path``."""
    try:
        return read(*args, **kwargs)
    except InputError as error:
        message = str(error)
    assert message.startswith(str(path))
    return None


# The table


def test_table_has_the_originals_names_order_and_shapes(golden_dir):
    steps = np.load(golden_dir / "steps.npz")
    cfg = json.loads(str(steps["base/cfg"]))
    sizes = {k: cfg[k] for k in ("n_vocab", "n_special", "n_ctx", "n_embd", "n_head", "n_layer")}
    table = parameters.parameter_shapes(ModelConfig(**sizes))
    names = json.loads(str(steps["base/names"]))
    assert [f"model/{name}:0" for name in table] == names
    assert list(table.values()) == [steps[f"base/init/{name}"].shape for name in names]


def test_table_is_the_released_one(released_dir):
    sizes = released.read_shapes(released_dir)
    assert sizes == released.ReleasedShapes(n_ctx=512, n_vocab=40478, n_embd=768, n_layer=12)
    table = list(parameters.parameter_shapes(ModelConfig()).values())
    layout = [(512, 768), (40478, 768), *table[1:-2]]
    found = json.loads((released_dir / "params_shapes.json").read_text())
    assert [tuple(shape) for shape in found] == layout
    assert released_layout(768, 12, 512, 40478) == found


def test_sizes_come_from_a_list():
    sizes = parameters.list_sizes(random_list(), "a file")
    assert sizes == (21, 8, 2, 1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda a: a[:-1], "26 arrays"),
        (lambda a: a[:3], "3 arrays"),
        (lambda a: [a[0].ravel(), *a[1:]], "(we)"),
        (lambda a: [*a[:1], a[1][0], *a[2:]], "h0/attn/c_attn/w has shape [8, 24]"),
        (lambda a: [*a[:-2], a[-2].T, a[-1]], "clf/w"),
        (lambda a: [a[0], *a[13:25], *a[1:12], a[-3][:4], *a[-2:]], "h1/ln_2/b"),
    ],
)
def test_a_list_of_other_shapes_has_no_sizes(damage, named):
    message = refusal(parameters.list_sizes, damage(random_list()), "some.jl")
    assert named in message
    assert message.startswith("some.jl")


# To and from a model


def test_list_enters_and_leaves_the_model_bit_for_bit():
    model, arrays = random_model(), random_list()
    parameters.from_list(model, arrays, "a list")
    assert_same(parameters.to_list(model), arrays)


def test_original_initial_parameters_enter_the_model(golden_dir):
    steps = np.load(golden_dir / "steps.npz")
    names = json.loads(str(steps["base/names"]))
    arrays = [steps[f"base/init/{name}"] for name in names]
    config = ModelConfig(n_vocab=50, n_special=3, n_ctx=14, n_embd=24, n_head=4, n_layer=2)
    model = DoubleHeadsModel(config)
    parameters.from_list(model, arrays, "steps.npz")
    kernel = steps["base/init/model/h1/mlp/c_fc/w:0"]
    assert torch.equal(model.get_parameter("h.1.mlp.c_fc.w"), torch.tensor(kernel[0]))
    assert torch.equal(model.get_parameter("clf.w"), torch.tensor(arrays[-2]))
    assert_same(parameters.to_list(model), arrays)


def test_model_and_lists_share_no_memory():
    model, arrays = random_model(), random_list()
    storage = {name: p.data_ptr() for name, p in model.named_parameters()}
    expected = [array.copy() for array in arrays]
    parameters.from_list(model, arrays, "a list")
    taken = parameters.to_list(model)
    for array in arrays + taken:
        array += 1
    assert_same(parameters.to_list(model), expected)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == storage


def test_read_only_arrays_enter_the_model():
    model, arrays = random_model(), random_list()
    for array in arrays:
        array.flags.writeable = False
    parameters.from_list(model, arrays, "a list")
    assert_same(parameters.to_list(model), arrays)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda a: a[:-1], "26 arrays, but the model has 27"),
        (lambda a: [a[0][:-1], *a[1:]], "array we has shape [20, 8], expected [21, 8]"),
        (lambda a: [*a[:-1], a[-1].astype(np.float64)], "clf/b has dtype float64"),
        (lambda a: [*a[:-1], a[-1].astype(">f4")], "clf/b has dtype >f4"),
        (lambda a: [*a[:-1], a[-1] * np.float32(np.nan)], "clf/b holds NaN"),
        (lambda a: [*a[:-2], a[-2] / np.float32(0), a[-1]], "clf/w holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_wrong_list_leaves_the_model_untouched(damage, named):
    model = random_model()
    before = parameters.to_list(model)
    assert named in refusal(parameters.from_list, model, damage(random_list()), "some.jl")
    assert_same(parameters.to_list(model), before)


def test_set_parameters_sets_what_it_names_and_nothing_else():
    model = random_model()
    before = dict(zip(parameters.parameter_shapes(CONFIG), parameters.to_list(model), strict=True))
    new = {"h1/mlp/c_fc/w": np.ones((1, 8, 32), np.float32), "h0/ln_1/g": SPECIAL[1]}
    parameters.set_parameters(model, new)
    assert_same(parameters.to_list(model), list({**before, **new}.values()))


def test_set_parameters_refuses_a_layer_the_model_lacks():
    message = refusal(
        parameters.set_parameters, random_model(), {"h2/ln_1/g": SPECIAL[1]}, "model/"
    )
    assert "h2/ln_1/g" in message


# Full lists in files


def test_jl_goes_out_and_in_and_plain_joblib_reads_it(tmp_path):
    path, arrays = tmp_path / "made" / "best_params.jl", random_list()
    jl.write_jl(path, arrays)
    loaded = joblib.load(path)
    assert type(loaded) is list
    assert_same(loaded, arrays)
    assert_same(jl.read_jl(path), arrays)
    assert os.listdir(path.parent) == [path.name]


def test_jl_keeps_unusual_arrays(tmp_path):
    (tmp_path / "raw").write_bytes(SPECIAL.tobytes())
    mapped = np.memmap(tmp_path / "raw", np.float32, "r", shape=(3, 8))
    arrays = [mapped, SPECIAL.T, SPECIAL[::2, 1:5], np.zeros((0, 4), np.float32), np.float32([[1]])]
    jl.write_jl(tmp_path / "a.jl", arrays)
    assert_same(jl.read_jl(tmp_path / "a.jl"), [np.array(a, order="C") for a in arrays])
    assert_same(joblib.load(tmp_path / "a.jl"), [np.array(a, order="C") for a in arrays])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("compress", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
def test_reads_what_joblib_writes(tmp_path, protocol, compress):
    arrays = [*random_list(), np.asfortranarray(SPECIAL), np.array(3, np.float32)]
    arrays += [np.arange(3), np.array([True, False]), np.zeros((0, 2), np.float16)]
    joblib.dump(arrays, tmp_path / "a.jl", compress=compress, protocol=protocol)
    assert_same(jl.read_jl(tmp_path / "a.jl"), arrays)


def test_byte_orders_and_strides_do_not_change_values(tmp_path):
    """Arrays of one dtype share its description in the file, byte order included."""
    big = np.arange(24, dtype=">f4").reshape(4, 6)
    arrays = [big, big.T, big[::2, 1:5], big[:, 0], np.array(3, ">i2"), np.asfortranarray(SPECIAL)]
    joblib.dump(arrays, tmp_path / "a.jl")
    native = [np.array(array, array.dtype.newbyteorder("=")) for array in arrays]
    found = jl.read_jl(tmp_path / "a.jl")
    assert_same(found, native)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in found)


def test_reads_joblib_files_from_before_alignment(tmp_path, monkeypatch):
    init = joblib.numpy_pickle.NumpyArrayWrapper.__init__

    def old_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        del self.numpy_array_alignment_bytes

    monkeypatch.setattr(joblib.numpy_pickle.NumpyArrayWrapper, "__init__", old_init)
    joblib.dump(random_list(), tmp_path / "old.jl", protocol=3)
    assert b"alignment" not in (tmp_path / "old.jl").read_bytes()
    assert_same(jl.read_jl(tmp_path / "old.jl"), random_list())


def test_reads_joblib_as_scikit_learn_carried_it(tmp_path):
    data = io.BytesIO()
    joblib.dump(random_list(), data, protocol=2)
    renamed = data.getvalue().replace(b"cjoblib.", b"csklearn.externals.joblib.")
    assert len(renamed) > len(data.getvalue())
    (tmp_path / "a.jl").write_bytes(renamed)
    assert_same(jl.read_jl(tmp_path / "a.jl"), random_list())


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_arrays_pickled_without_joblib(tmp_path, package, protocol):
    arrays = [*random_list(), np.asfortranarray(SPECIAL)]
    data = pickle.dumps(arrays, protocol)
    for known in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        new = package + b".multiarray"
        data = data.replace(bytes([len(known)]) + known, bytes([len(new)]) + new)
        data = data.replace(b"c" + known, b"c" + new)
    assert package + b".multiarray" in data
    (tmp_path / "a.jl").write_bytes(data)
    for found, expected in zip(jl.read_jl(tmp_path / "a.jl"), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_safetensors_goes_out_and_in_under_the_originals_names(tmp_path):
    path, arrays = tmp_path / "made" / "a.safetensors", random_list()
    arrays[1] = np.asfortranarray(arrays[1])
    parameters.write_safetensors(path, arrays, CONFIG)
    from safetensors.numpy import load_file

    named = load_file(path)
    assert named.keys() == parameters.parameter_shapes(CONFIG).keys()
    assert named["h1/attn/c_attn/w"].tobytes() == arrays[13].tobytes()
    metadata, found = parameters.read_safetensors(path)
    assert_same(found, arrays)
    assert metadata == {"config": '{"n_head": 2, "afn": "gelu"}'}
    assert os.listdir(path.parent) == [path.name]


def test_safetensors_of_another_size_is_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    assert "array we" in refusal(parameters.write_safetensors, path, [SPECIAL] * 27, CONFIG)
    assert "3 arrays" in refusal(parameters.write_safetensors, path, [SPECIAL] * 3, CONFIG)
    one_more = [*random_list(), SPECIAL]
    assert f"{len(one_more)} arrays" in refusal(
        parameters.write_safetensors, path, one_more, CONFIG
    )
    assert not path.exists()


def test_safetensors_with_other_names_are_refused(tmp_path):
    from safetensors.numpy import save_file

    named = dict(zip(parameters.parameter_shapes(CONFIG), random_list(), strict=True))
    path = tmp_path / "a.safetensors"
    save_file({**named, "zzz": SPECIAL}, path)
    assert "'zzz' is unknown" in refusal(parameters.read_safetensors, path)
    named.pop("clf/b")
    save_file(named, path)
    assert "'clf/b' is missing" in refusal(parameters.read_safetensors, path)
    save_file({}, path)
    assert "missing" in refusal(parameters.read_safetensors, path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, b"not one of these"])
def test_damaged_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert str(path) in refusal(parameters.read_params, path)


def test_bfloat16_safetensors_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    named = dict(zip(parameters.parameter_shapes(CONFIG), random_list(), strict=True))
    save_file({k: torch.tensor(v).bfloat16() for k, v in named.items()}, path)
    try:
        arrays = parameters.read_params(path)
    except InputError:
        return
    assert "bfloat16" in refusal(parameters.from_list, random_model(), arrays, path)


def test_suffix_says_the_format(tmp_path):
    arrays = random_list()
    jl.write_jl(tmp_path / "a.jl", arrays)
    parameters.write_safetensors(tmp_path / "a.safetensors", arrays, CONFIG)
    assert_same(parameters.read_params(tmp_path / "a.jl"), arrays)
    assert_same(parameters.read_params(str(tmp_path / "a.safetensors")), arrays)
    message = refusal(parameters.read_params, tmp_path / "a.pt")
    assert ".jl" in message
    assert ".safetensors" in message


@pytest.mark.parametrize("name", ["none.jl", "none.safetensors"])
def test_missing_and_unreadable_parameter_files_are_named(tmp_path, name):
    assert name in refusal(parameters.read_params, tmp_path / name)
    (tmp_path / name).mkdir()
    assert name in refusal(parameters.read_params, tmp_path / name)


# Hostile and damaged .jl files


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def qualified(function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def hostile(tmp_path: Path) -> dict[str, tuple[object, str]]:
    """Return objects that make a file named canary when unpickled, and the name to be refused."""
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')"
    touch = Calls(os.system, f"touch {canary}")
    wrapper = joblib.numpy_pickle.NumpyArrayWrapper
    bad_class = wrapper(os.system, (1,), "C", np.dtype("f4"))
    bad_dtype = wrapper(np.ndarray, (1,), "C", touch)
    return {
        "system": (touch, qualified(os.system)),
        "eval": (Calls(eval, code), "builtins.eval"),
        "exec": (Calls(exec, code), "builtins.exec"),
        "open": (Calls(open, str(canary), "w"), qualified(open)),
        "getattr": (Calls(getattr, np.ndarray, "tofile"), "builtins.getattr"),
        "partial": (functools.partial(eval, code), "functools.partial"),
        "numpy.load": (Calls(np.load, str(canary), None, True), "numpy.load"),
        "memmap": (Calls(np.memmap, str(canary), "f4", "w+", 0, (4,)), "numpy.memmap"),
        "argument": (Calls(np.dtype, touch), qualified(os.system)),
        "nested": (Calls(np.ndarray, Calls(tuple, (touch,))), "builtins.tuple"),
        "wrapped class": (bad_class, qualified(os.system)),
        "wrapped dtype": (bad_dtype, qualified(os.system)),
        "model": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    }


@pytest.mark.parametrize("which", hostile(Path()))
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", [0, 1])
def test_hostile_pickles_are_refused_by_name_and_not_run(tmp_path, which, protocol, place):
    payload, name = hostile(tmp_path)[which]
    items = [SPECIAL, SPECIAL]
    items.insert(place, payload)
    path = tmp_path / "a.jl"
    with path.open("wb") as file:
        joblib.dump(items, file, protocol=protocol)
    name = name.replace("builtins.", "__builtin__.") if protocol == 2 else name
    message = refusal(jl.read_jl, path)
    assert f"'{name}'" in message
    assert os.listdir(tmp_path) == ["a.jl"]


def test_the_hostile_pickles_really_do_harm(tmp_path):
    """Otherwise the test before would show nothing."""
    joblib.dump([hostile(tmp_path)["system"][0]], tmp_path / "a.jl")
    joblib.load(tmp_path / "a.jl")
    assert (tmp_path / "canary").exists()


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


DTYPE = b"cnumpy\ndtype\n"
NDARRAY = b"cnumpy\nndarray\n"
F4 = DTYPE + text("f4") + b"\x85R(K\x03" + text("<") + b"NNNK\x00K\x00K\x00tb"
WRAPPER = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"


def wrapped(shape: bytes, dtype: bytes = F4, order: str = "C") -> bytes:
    state = text("subclass") + NDARRAY + text("shape") + shape
    state += text("order") + text(order) + text("dtype") + dtype
    return WRAPPER + b"}(" + state + b"ub"


def long8(n: int) -> bytes:
    return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


HANDMADE = {
    "names by memo": (
        text("posix") + b"\x94" + text("system") + b"\x94h\x01h\x02\x93",
        "posix.system",
    ),
    "memo swapped": (DTYPE + b"q\x00cos\nsystem\nq\x00h\x00" + text("f4") + b"\x85R", "os.system"),
    "inst": (b"(" + text("id") + b"ios\nsystem\n", "operations"),
    "inst of an admitted name": (b"(inumpy\nndarray\n", "operations"),
    "obj": (b"(" + NDARRAY + b"K\x01o", "operations"),
    "newobj_ex": (NDARRAY + b")}\x92", "operations"),
    "extension": (b"\x82\x01", "operations"),
    "persistent": (b"P1\n", "operations"),
    "dotted name": (b"cnumpy\nndarray.tofile\n", "numpy.ndarray.tofile"),
    "called array": (NDARRAY + b"K\x05\x85R", "something else than a list"),
    "called string": (text("f4") + b")R", "operations"),
    "class polluted": (DTYPE + b"}" + text("num") + b"K\x01sb", "operations"),
    "array state twice": (wrapped(b"K\x00\x85") + b"}b", "state"),
    "structured": (DTYPE + text("f4,O") + b"\x85R" + b"0", "else than numbers"),
    "structured dtype": (
        wrapped(b"K\x01\x85", DTYPE + text("f4,O") + b"\x85R"),
        "else than numbers",
    ),
    "object dtype": (wrapped(b"K\x01\x85", DTYPE + text("O") + b"\x85R"), "else than numbers"),
    "no dtype": (wrapped(b"K\x01\x85", b"N"), "state"),
    "dtype with fields": (
        DTYPE + text("f4") + b"\x85R(K\x03" + text("|") + b"NN}K\x00K\x00K\x00tb",
        "dtype",
    ),
    "odd order": (wrapped(b"K\x01\x85", order="K"), "state"),
    "negative": (wrapped(b"J\xff\xff\xff\xff\x85"), "sizes"),
    "a true axis": (wrapped(b"\x88\x85"), "sizes"),
    "not a shape": (wrapped(b"K\x01"), "shape"),
    "many axes": (wrapped(b"(" + b"K\x01" * 99 + b"t"), "shape"),
    "2^40 values": (wrapped(long8(1 << 40) + b"\x85"), "sizes"),
    "2^62 values": (wrapped(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "too early"),
    "0 of 2^93 values": (wrapped(b"(K\x00" + b"J\xff\xff\xff\x7f" * 3 + b"t"), "a.jl"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 1 << 62), "too early"),
    "long text": (b"X\xff\xff\xff\xff", "too early"),
    "long bytearray": (b"\x96" + struct.pack("<Q", 1 << 40), "operations"),
    "long number": (b"\x8b\xff\xff\xff\x7f", "operations"),
    "long frame": (b"\x95" + struct.pack("<Q", 1 << 60), "something else than a list"),
    "far memo": (b"Nr\xff\xff\xff\xff", "something else than a list"),
    "empty memo": (b"h\x07", "index 7"),
    "number": (b"K\x01", "something else than a list"),
    "unhashable": (b"}(]K\x01u", "dict"),
    "to the list itself": (b"h\x00", "something else than a list"),
    "long index": (b"g" + b"9" * 4000 + b"\n", "operations"),
    "huge shape": (wrapped(b"(" + b"J\xff\xff\xff\x7f" * 32 + b"t"), "too early"),
    "long string": (b"S" + b"x" * 9999 + b"\n", "operations"),
    "long name": (b"c" + b"x" * 9999 + b"\n", "refused"),
    "nothing": (b"\xff", "operations"),
}


def peak_and_refusal(path: Path) -> tuple[int, str]:
    """Return the peak of used bytes until the file was refused, and the message."""
    tracemalloc.start()
    try:
        message = refusal(jl.read_jl, path)
        return tracemalloc.get_traced_memory()[1], message
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("which", HANDMADE)
def test_handmade_pickles_are_refused_without_memory(tmp_path, which):
    operations, named = HANDMADE[which]
    path = tmp_path / "a.jl"
    path.write_bytes(b"\x80\x04]\x94(" + operations + b"N" * (which == "long frame") + b"e.")
    peak, message = peak_and_refusal(path)
    assert named in message.replace(str(tmp_path), "")
    assert len(message) < 500
    assert peak < 1 << 20


def test_handmade_wrapper_is_otherwise_right(tmp_path):
    """The parts that the test before damages make an array if they are undamaged."""
    path = tmp_path / "a.jl"
    path.write_bytes(b"\x80\x04](" + wrapped(b"K\x02\x85") + np.float32([1, 2]).tobytes() + b"e.")
    assert_same(jl.read_jl(path), [np.float32([1, 2])])


def test_doubled_tuples_cost_no_time(tmp_path):
    """Hashing, comparing or printing 2**64 nested references would never end."""
    doubled = b")" + b"q\x00h\x00\x86" * 64
    for operations in (b"}(" + doubled + b"K\x01u", doubled, DTYPE + doubled + b"R"):
        (tmp_path / "a.jl").write_bytes(b"\x80\x04](" + operations + b"e.")
        refusal(jl.read_jl, tmp_path / "a.jl")


def test_operations_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jl, "_MAX_READS", 1000)
    (tmp_path / "a.jl").write_bytes(b"\x80\x04](" + b"N" * 2000 + b"e.")
    assert "claims more" in refusal(jl.read_jl, tmp_path / "a.jl")


def test_object_arrays_are_refused(tmp_path):
    with (tmp_path / "a.jl").open("wb") as file:
        joblib.dump([np.array([None, {}], dtype=object)], file)
    assert "else than numbers" in refusal(jl.read_jl, tmp_path / "a.jl")


@pytest.mark.parametrize(
    "value",
    [{"we": SPECIAL}, {"we": SPECIAL, "b": 1}, (SPECIAL,), SPECIAL, [[SPECIAL]], [SPECIAL, None]],
)
def test_other_things_than_a_list_of_arrays_are_refused(tmp_path, value):
    joblib.dump(value, tmp_path / "a.jl")
    assert "a list of arrays" in refusal(jl.read_jl, tmp_path / "a.jl")


@pytest.mark.parametrize("compress", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_compressed_bombs_are_refused(tmp_path, monkeypatch, compress):
    joblib.dump([np.zeros(1 << 23, np.float32)], tmp_path / "a.jl", compress=compress)
    assert len(jl.read_jl(tmp_path / "a.jl")) == 1
    monkeypatch.setattr(jl, "_INFLATION", (1, 1 << 16))
    peak, message = peak_and_refusal(tmp_path / "a.jl")
    assert "more than is allowed" in message
    assert peak < 1 << 24  # xz itself uses half of this memory; the array would need twice as much


def test_an_lzma_stream_may_not_ask_for_any_memory(tmp_path):
    joblib.dump(random_list(), tmp_path / "a.jl", compress="lzma")
    data = bytearray((tmp_path / "a.jl").read_bytes())
    data[1:5] = b"\0\0\0\x40"  # the dictionary of the decoder: a gigabyte
    (tmp_path / "a.jl").write_bytes(data)
    assert "compressed" in refusal(jl.read_jl, tmp_path / "a.jl")


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("byte_order", [b"<", b">"])
def test_bytes_that_many_arrays_share_are_not_multiplied(tmp_path, fortran, byte_order):
    """Plain pickles may name the same bytes for any number of arrays; 64 here, of 64 KiB each."""
    values, n = bytes(1 << 16), 64
    state = b"(K\x01M\x80\x00M\x80\x00\x86" + F4.replace(b"<", byte_order)
    state += (b"\x88" if fortran else b"\x89") + b"B" + struct.pack("<I", len(values)) + values
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + NDARRAY + b"K\x00\x85C\x01b\x87R"
    first, others = array + state + b"tq\x05b", (array + b"h\x05b") * (n - 1)
    (tmp_path / "a.jl").write_bytes(b"\x80\x04](" + first + others + b"e.")
    tracemalloc.start()
    try:
        assert len(jl.read_jl(tmp_path / "a.jl")) == n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(values)


def test_old_joblib_compression_is_refused(tmp_path):
    (tmp_path / "a.jl").write_bytes(b"ZF0x10               " + bytes(50))
    refusal(jl.read_jl, tmp_path / "a.jl")


@pytest.mark.parametrize("compress", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
def test_every_truncation_is_refused(tmp_path, compress):
    path = tmp_path / "a.jl"
    joblib.dump([SPECIAL, SPECIAL[0]], path, compress=compress)
    data = path.read_bytes()
    # The last bytes of a compressed file may be a checksum or an end mark: the list is whole.
    for length in range(0, len(data) - (16 if compress else 0), 5 if compress else 1):
        path.write_bytes(data[:length])
        assert str(path) in refusal(jl.read_jl, path)
    path.write_bytes(data + b"more")
    assert ("damaged" if compress else "after the list's end") in refusal(jl.read_jl, path)


def damaged(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Return ``data`` with some bytes replaced; places are taken modulo the length."""
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize("compress", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
@given(changes=CHANGES)
def test_damaged_jl_gives_arrays_or_one_message(tmp_path, compress, changes):
    buffer = io.BytesIO()
    joblib.dump([SPECIAL, SPECIAL[0]], buffer, compress=compress)
    path = tmp_path / "a.jl"
    path.write_bytes(damaged(buffer.getvalue(), changes))
    arrays = attempt(jl.read_jl, path, path)
    assert all(type(array) is np.ndarray for array in arrays or [])


@given(operations=st.binary(max_size=60))
def test_random_operations_give_one_message(tmp_path, operations):
    path = tmp_path / "a.jl"
    path.write_bytes(b"\x80\x04](" + F4 + operations + b"e.")
    assert str(path) in refusal(jl.read_jl, path)


# The released layout


def test_released_arrays_are_cut_from_the_flat_vector(tmp_path):
    flat = write_released(tmp_path, **SIZES)
    loaded = released.load_released(tmp_path, special=SPECIAL, n_ctx=5, n_transfer=3)
    assert list(loaded) == list(parameters.parameter_shapes(ModelConfig(**SIZES, n_head=2)))[:-2]
    positions, tokens = flat[:56].reshape(7, 8), flat[56:144].reshape(11, 8)
    assert_same([loaded.pop("we")], [np.concatenate([tokens, SPECIAL, positions[:5]])])
    assert np.concatenate([a.ravel() for a in loaded.values()]).tobytes() == flat[144:].tobytes()
    shapes = [list(array.shape) for array in loaded.values()]
    assert shapes == released_layout(**SIZES)[2:]


def test_reference_checkpoint_loads_as_it_was_drawn(tmp_path, references_dir):
    flags = {"n_embd": 12, "n_layer": 2, "n_ctx": 9, "n_vocab": 31, "seed": 5, "scale": 0.08}
    arguments = [str(item) for name, value in flags.items() for item in (f"--{name}", value)]
    script = references_dir / "make_checkpoint.py"
    subprocess.run([sys.executable, script, tmp_path / "out", *arguments], check=True)

    rng, drawn = np.random.RandomState(5), []
    for i, shape in enumerate(released_layout(12, 2, 9, 31)):
        array = (rng.randn(*shape) * 0.08).astype(np.float32)
        drawn.append(array + np.float32(1) if i >= 2 and i % 12 in (6, 0) else array)
    special = rng.randn(3, 12)
    loaded = released.load_released(tmp_path / "out", special=special, n_ctx=9, n_transfer=2)
    we = np.concatenate([drawn[1], special.astype(np.float32), drawn[0]])
    assert_same(list(loaded.values()), [we, *drawn[2:]])


@pytest.mark.parametrize("n_transfer", [0, 1, 2, 3])
def test_n_transfer_is_not_ignored(tmp_path, n_transfer):
    write_released(tmp_path, **SIZES)
    everything = released.load_released(tmp_path, special=SPECIAL, n_ctx=7, n_transfer=3)
    loaded = released.load_released(tmp_path, special=SPECIAL, n_ctx=7, n_transfer=n_transfer)
    assert list(loaded) == list(everything)[: 1 + 12 * n_transfer]
    assert_same(list(loaded.values()), list(everything.values())[: len(loaded)])

    model = random_model(ModelConfig(**SIZES, n_head=2))
    before = parameters.to_list(model)
    parameters.set_parameters(model, loaded)
    assert_same(parameters.to_list(model), [*loaded.values(), *before[len(loaded) :]])


def test_n_transfer_minus_one_takes_and_reads_nothing(tmp_path):
    empty = released.load_released(tmp_path / "none", special=SPECIAL, n_ctx=7, n_transfer=-1)
    assert empty == {}


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"n_transfer": 4}, "n_transfer=4"),
        ({"n_transfer": -2}, "n_transfer=-2"),
        ({"n_ctx": 8}, "n_ctx=8"),
        ({"n_ctx": 0}, "n_ctx=0"),
    ],
)
def test_asking_for_more_than_there_is_names_the_argument(tmp_path, request_, named):
    write_released(tmp_path, **SIZES)
    arguments = {"special": SPECIAL, "n_ctx": 7, "n_transfer": 3, **request_}
    assert named in refusal(released.load_released, tmp_path, **arguments)


def test_loading_holds_the_parameters_once(tmp_path):
    flat = write_released(tmp_path, n_embd=64, n_layer=4, n_ctx=64, n_vocab=8000)
    tracemalloc.start()
    try:
        released.load_released(tmp_path, special=np.zeros((3, 64)), n_ctx=64, n_transfer=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * flat.nbytes


def released_params() -> dict[str, np.ndarray]:
    return dict(zip(parameters.parameter_shapes(CONFIG), random_list(), strict=True))


def test_saved_checkpoint_loads_bit_for_bit(tmp_path):
    params = released_params()
    params["we"][0, 0] = -0.0
    released.save_released(tmp_path / "made", params, n_vocab=11, n_head=2)
    assert locate.read_n_head(tmp_path / "made") == 2
    special = params["we"][11:14]
    loaded = released.load_released(tmp_path / "made", special=special, n_ctx=7, n_transfer=2)
    assert list(loaded) == list(params)[:-2]
    assert_same(list(loaded.values()), list(params.values())[:-2])
    shards = [np.load(tmp_path / "made" / f"params_{i}.npy") for i in range(10)]
    assert len({shard.size for shard in shards}) <= 2
    files = {f"params_{i}.npy" for i in range(10)} | {"params_shapes.json", "gpt1_config.json"}
    assert set(os.listdir(tmp_path / "made")) == files


def test_saving_with_twelve_heads_removes_an_older_setting(tmp_path):
    released.save_released(tmp_path, released_params(), n_vocab=11, n_head=2)
    released.save_released(tmp_path, released_params(), n_vocab=11, n_head=12)
    assert locate.read_n_head(tmp_path) is None


def test_saving_refuses_what_would_not_load(tmp_path):
    for name, array, named in [
        ("h0/ln_1/g", np.full(8, np.nan, np.float32), "NaN"),
        ("h0/ln_1/g", np.ones(8), "float64"),
        ("h1/mlp/c_fc/w", np.ones((8, 32), np.float32), "h1/mlp/c_fc/w"),
    ]:
        params = {**released_params(), name: array}
        assert named in refusal(released.save_released, tmp_path, params, n_vocab=11, n_head=2)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="0 position rows"):
        released.save_released(tmp_path, released_params(), n_vocab=18, n_head=2)


def load(directory: Path) -> dict[str, np.ndarray]:
    return released.load_released(directory, special=SPECIAL, n_ctx=7, n_transfer=3)


def resave(change):
    """Return a damage that rewrites the array of a shard."""
    return lambda path: np.save(path, change(np.load(path)))


def rewrite(change):
    """Return a damage that rewrites the bytes of a shard."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def save_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros(3, np.float32))


DAMAGES = {
    "missing": (Path.unlink, "no params_3.npy"),
    "directory": (lambda p: (p.unlink(), p.mkdir()), "no params_3.npy"),
    "double": (resave(lambda a: a.astype(np.float64)), "float64"),
    "half": (resave(lambda a: a.astype(np.float16)), "float16"),
    "big-endian": (resave(lambda a: a.astype(">f4")), "params_3.npy: holds >f4"),
    "matrix": (resave(lambda a: a[:4].reshape(2, 2)), "[2, 2]"),
    "objects": (resave(lambda a: a.astype(object)), "params_3.npy: not a whole"),
    "short": (resave(lambda a: a[:-1]), "shards hold"),
    "long": (resave(lambda a: np.append(a, a[:1])), "shards hold"),
    "empty array": (resave(lambda a: a[:0]), "hold"),
    "NaN": (resave(lambda a: a * np.float32(np.nan)), "params_3.npy: holds NaN"),
    "infinity": (resave(lambda a: a + np.float32(np.inf)), "params_3.npy: holds NaN or infinity"),
    "truncated": (rewrite(lambda b: b[:-1]), "params_3.npy"),
    "appended": (rewrite(lambda b: b + b"1234"), "4 bytes follow"),
    "empty": (rewrite(lambda b: b""), "params_3.npy"),
    "header alone": (rewrite(lambda b: b[:128]), "params_3.npy"),
    "half a header": (rewrite(lambda b: b[:64]), "params_3.npy"),
    "text": (rewrite(lambda b: b"version https://git-lfs.github.com/spec/v1\n"), "params_3.npy"),
    "npz": (save_npz, "params_3.npy"),
    "huge": (rewrite(lambda b: b.replace(b"(", b"(9" + b"9" * 11, 1)), "params_3.npy"),
}


@pytest.mark.parametrize("which", DAMAGES)
def test_damaged_shards_are_refused_by_name(tmp_path, which):
    damage, named = DAMAGES[which]
    write_released(tmp_path, **SIZES)
    damage(tmp_path / "params_3.npy")
    message = refusal(load, tmp_path)
    assert named in message
    assert message.startswith(str(tmp_path))


def test_pickled_shards_are_not_run(tmp_path):
    write_released(tmp_path, **SIZES)
    payload = np.array([Calls(os.system, f"touch {tmp_path / 'canary'}")], dtype=object)
    np.save(tmp_path / "params_0.npy", payload, allow_pickle=True)
    refusal(load, tmp_path)
    (tmp_path / "params_0.npy").write_bytes(pickle.dumps(payload))
    refusal(load, tmp_path)
    assert not (tmp_path / "canary").exists()


def test_a_message_names_all_missing_shards_and_both_totals(tmp_path):
    flat = write_released(tmp_path, **SIZES)
    np.save(tmp_path / "params_9.npy", np.load(tmp_path / "params_9.npy")[:-5])
    message = refusal(load, tmp_path)
    assert f"hold {flat.size - 5} values" in message
    assert f"describes {flat.size}" in message
    (tmp_path / "params_2.npy").unlink()
    (tmp_path / "params_8.npy").unlink()
    message = refusal(load, tmp_path)
    assert "params_2.npy, params_8.npy" in message
    assert "--model_dir" in message
    shutil.rmtree(tmp_path)
    assert "no params_shapes.json" in refusal(load, tmp_path)


def test_shards_cut_anywhere_load_alike(tmp_path):
    flat = write_released(tmp_path, **SIZES)
    expected = load(tmp_path)
    cuts = [0, 1, 55, 56, 60, 61, 500, 501, flat.size - 1, flat.size - 1, flat.size]
    for i in range(10):
        np.save(tmp_path / f"params_{i}.npy", flat[cuts[i] : cuts[i + 1]])
    assert_same(list(load(tmp_path).values()), list(expected.values()))


@pytest.fixture
def checkpoint(tmp_path) -> tuple[Path, bytes]:
    """The directory of a checkpoint, and the bytes of its params_5.npy."""
    write_released(tmp_path, **SIZES)
    return tmp_path, (tmp_path / "params_5.npy").read_bytes()


@given(changes=CHANGES)
def test_damaged_shard_gives_finite_arrays_or_one_message(checkpoint, changes):
    directory, data = checkpoint
    # Mostly in the header, where an .npy file describes itself.
    (directory / "params_5.npy").write_bytes(damaged(data[:140], changes) + data[140:])
    loaded = attempt(load, directory, directory)
    assert all(np.isfinite(array).all() for array in (loaded or {}).values())


TABLE = released_layout(**SIZES)
TABLES = {
    "an object": ({"shapes": TABLE}, "found something else"),
    "a number": (3, "found something else"),
    "no layer": (TABLE[:2], "found a list of 2"),
    "one too few": (TABLE[:-1], "found a list of 37"),
    "one too many": ([*TABLE, [8]], "found a list of 39"),
    "a number for a shape": ([*TABLE[:5], 8, *TABLE[6:]], "shape 5"),
    "a true size": ([[True, 8], *TABLE[1:]], "shape 0"),
    "a broken size": ([[7.0, 8], *TABLE[1:]], "shape 0"),
    "no rows": ([[0, 8], *TABLE[1:]], "shape 0"),
    "flat positions": ([[56], *TABLE[1:]], "first two"),
    "flat tokens": ([TABLE[0], [11, 8, 1], *TABLE[2:]], "first two"),
    "another width": ([TABLE[0], [11, 9], *TABLE[2:]], "tokens: has shape [11, 9]"),
    "kernel transposed": ([*TABLE[:2], [1, 24, 8], *TABLE[3:]], "h0/attn/c_attn/w: has shape"),
    "kernel without its 1": ([*TABLE[:2], [8, 24], *TABLE[3:]], "h0/attn/c_attn/w: has shape"),
    "later layer": ([*TABLE[:-1], [9]], "h2/ln_2/b: has shape [9], expected [8]"),
}


@pytest.mark.parametrize("which", TABLES)
def test_a_table_of_other_shapes_is_refused(tmp_path, which):
    table, named = TABLES[which]
    (tmp_path / "params_shapes.json").write_text(json.dumps(table))
    message = refusal(released.read_shapes, tmp_path)
    assert named in message
    assert "params_shapes.json" in message


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_table_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "params_shapes.json").write_bytes(content)
    assert "params_shapes.json" in refusal(released.read_shapes, tmp_path)


@given(changes=CHANGES)
def test_damaged_table_gives_sizes_or_one_message(tmp_path, changes):
    path = tmp_path / "params_shapes.json"
    path.write_bytes(damaged(json.dumps(TABLE).encode(), changes))
    sizes = attempt(released.read_shapes, path, tmp_path)
    assert sizes is None or (sizes.n_embd, sizes.n_layer) == (8, 3)


def test_a_huge_table_sets_no_memory_aside(tmp_path):
    write_released(tmp_path, **SIZES)
    (tmp_path / "params_shapes.json").write_text(
        json.dumps(released_layout(1 << 20, 3, 1 << 20, 1 << 30))
    )
    special = np.zeros((3, 1 << 20), np.float32)
    tracemalloc.start()
    try:
        refusal(released.load_released, tmp_path, special=special, n_ctx=1 << 20, n_transfer=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("content", ["4", "{}", '{"n_head": 0}', '{"n_head": "4"}', "", "{"])
def test_a_wrong_head_count_is_refused(tmp_path, content):
    (tmp_path / "gpt1_config.json").write_text(content)
    assert "gpt1_config.json" in refusal(locate.read_n_head, tmp_path)


@pytest.mark.parametrize(
    "content", ['{"n_head": true}', '{"n_head": 4, "n_layer": 2}', "[]", '{"n_head": 4.0}']
)
def test_a_head_count_with_anything_else_is_refused(tmp_path, content):
    (tmp_path / "gpt1_config.json").write_text(content)
    assert '{"n_head": N}' in refusal(locate.read_n_head, tmp_path)


def test_head_count_comes_from_beside_the_checkpoint(tmp_path):
    assert locate.read_n_head(tmp_path) is None
    write_released(tmp_path, **SIZES, n_head=4)
    assert locate.read_n_head(tmp_path) == 4


def test_helper_writes_what_it_returns(tmp_path):
    flat = write_released(tmp_path, **SIZES)
    assert flat.size == sum(math.prod(shape) for shape in TABLE)
    shards = [np.load(tmp_path / f"params_{i}.npy") for i in range(10)]
    assert np.concatenate(shards).tobytes() == flat.tobytes()


# A machine in trouble

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc")


@linux
@pytest.mark.parametrize("suffix", [".jl", ".safetensors"])
def test_a_machine_in_trouble_is_not_blamed_on_a_parameter_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write = {
        ".jl": jl.write_jl,
        ".safetensors": lambda *a: parameters.write_safetensors(*a, CONFIG),
    }
    write[suffix](path, random_list())
    parameters.read_params(path)  # Import late imports before the test.
    with faults.no_more_open_files(), pytest.raises(Gpt1Error) as caught:
        parameters.read_params(path)
    assert type(caught.value) is Gpt1Error  # It is not the user's mistake.
    assert str(caught.value).startswith(f"{path}: the parameters cannot be read: Too many open")
    with faults.closed(path):
        assert "Permission denied; name another file" in refusal(parameters.read_params, path)


@linux
@pytest.mark.parametrize("compress", [False, ("zlib", 1), ("gzip", 1), ("bz2", 1), ("xz", 1)])
def test_a_disk_that_fails_in_the_middle_is_no_damage(tmp_path, monkeypatch, compress):
    """Decompressors report damage by errors of the same kind."""
    path = tmp_path / "a.jl"
    joblib.dump([np.random.default_rng(0).standard_normal(200_000)], path, compress)

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= 100_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(memoryview(buffer)[: 100_000 - self.tell()])

    def opened(path, mode):
        return io.BufferedReader(Failing(path, mode))

    monkeypatch.setattr(jl, "open", opened, raising=False)
    with pytest.raises(Gpt1Error, match=r"a\.jl: the parameters cannot be read: Input") as caught:
        jl.read_jl(path)
    assert type(caught.value) is Gpt1Error


@linux
def test_a_failing_disk_is_not_blamed_on_the_shards(tmp_path):
    write_released(tmp_path, **SIZES)
    (tmp_path / "params_3.npy").unlink()
    (tmp_path / "params_3.npy").symlink_to(faults.FAILING_FILE)
    with pytest.raises(
        Gpt1Error, match=r"params_3\.npy: the weights cannot be read: Input"
    ) as caught:
        released.load_released(tmp_path, special=SPECIAL, n_ctx=7, n_transfer=0)
    assert type(caught.value) is Gpt1Error


@linux
def test_trouble_while_values_are_read_names_the_shard(tmp_path, monkeypatch):
    write_released(tmp_path, **SIZES)
    checked = released._open_shards
    with contextlib.ExitStack() as trouble:

        def then_no_more_files(*args):
            shards = checked(*args)
            trouble.enter_context(faults.no_more_open_files())
            return shards

        monkeypatch.setattr(released, "_open_shards", then_no_more_files)
        with pytest.raises(Gpt1Error, match=r"params_0\.npy: the weights cannot be read: Too many"):
            released.load_released(tmp_path, special=SPECIAL, n_ctx=7, n_transfer=0)
