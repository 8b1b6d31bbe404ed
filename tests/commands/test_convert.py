"""``gpt1 convert``: it keeps bits, names losses, overwrites nothing; results in transformers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import torch
from padded import padded

from gpt1.commands import convert as command
from gpt1.commands import train
from gpt1.inference import prediction as predict
from gpt1.inference.language_model import open_model
from gpt1.results.submissions import read_submission
from gpt1.runtime.errors import InputError
from gpt1.runtime.ranks import Ranks
from gpt1.training import prepare
from gpt1.weights.conversion import convert
from gpt1.weights.jl import read_jl, write_jl
from gpt1.weights.locate import read_n_head
from gpt1.weights.parameters import read_params
from gpt1.weights.released import load_released, read_shapes

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(task: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of a short fine-tuning run."""
    out = tmp_path_factory.mktemp("run")
    kinds = ("log", "save", "submission")
    places = [word for kind in kinds for word in (f"--{kind}_dir", str(out / kind))]
    flags = [*task.flags, *places, "--device", "cpu", "--submit", "--lr", "5e-3"]
    assert train.main([*flags, "--n_batch", "2", "--n_iter", "2"]) == 0
    return out


@pytest.fixture
def best(run: Path) -> Path:
    """The parameters of a fine-tuned model."""
    return run / "save" / "rocstories" / "best_params.jl"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory, so that targets have short names and there is no other model."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(".*"))  # No temporary file is left.


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def same_bits(one: Path, other: Path) -> bool:
    """Return whether two full parameter lists hold the same arrays."""
    lists = [read_params(path) for path in (one, other)]
    return len(lists[0]) == len(lists[1]) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(*lists, strict=True)
    )


# --------------------------------------------------------------------------- bits are kept


def test_released_to_hub_and_back(out: Path) -> None:
    """Every file is the same byte for byte, including vocabulary, merges and number of heads."""
    convert(DEMO, "hub", "hub")
    _, notes = convert("hub", "back", "released")
    assert files_of(out / "back") == files_of(DEMO)
    assert notes == []


def test_a_fine_tuned_list_through_all_layouts(task: tiny.Tiny, best: Path, out: Path) -> None:
    convert(best, "a.safetensors", vocabulary=task.model_dir)
    convert("a.safetensors", "hub", "hub", vocabulary=task.model_dir)
    convert("hub", "hub2", "hub")
    convert("hub2", "b.jl")
    convert("b.jl", "c.safetensors", vocabulary="hub")  # A .jl list has no record of the task.
    convert("hub2", "d.safetensors")
    for name in ("a.safetensors", "b.jl", "c.safetensors"):
        assert same_bits(best, Path(name)), name
    assert files_of(out / "hub") == files_of(out / "hub2")
    assert Path("a.safetensors").read_bytes() == Path("d.safetensors").read_bytes()


def test_a_fine_tuned_list_to_released_keeps_all_but_special_rows_and_choice_head(
    task: tiny.Tiny, best: Path, out: Path
) -> None:
    written, notes = convert(best, "released", "released", vocabulary=task.model_dir)
    arrays, n_vocab = read_jl(best), read_shapes(task.model_dir).n_vocab
    sizes = read_shapes("released")
    special = np.full((3, tiny.N_EMBD), 7, np.float32)
    found = load_released("released", special=special, n_ctx=sizes.n_ctx, n_transfer=sizes.n_layer)
    expected = arrays[0].copy()
    expected[n_vocab : n_vocab + 3] = 7
    np.testing.assert_array_equal(found["we"], expected)
    for array, name in zip(arrays[1:-2], list(found)[1:], strict=True):
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert read_n_head("released") == tiny.N_HEAD
    assert any("no place for rows of special tokens and a choice head" in note for note in notes)
    assert "special" not in written


def test_the_demo_is_converted_and_loads(out: Path) -> None:
    """The first example of the help works."""
    assert command.main([str(DEMO), "demo_hub", "--to", "hub"]) == 0
    ours, theirs = open_model(DEMO), open_model("demo_hub")
    for name, parameter in ours.module.named_parameters():
        assert torch.equal(parameter, theirs.module.get_parameter(name)), name


# ------------------------------------------------------------------- fine-tuned, in transformers


def test_a_fine_tuned_model_in_transformers_makes_the_same_choices(
    transformers: ModuleType, task: tiny.Tiny, run: Path, best: Path, out: Path
) -> None:
    """The logits of all test stories agree within 1e-5, and the submission is that of the run."""
    words = [str(best), "hub", "--to", "hub", "--model_dir", str(task.model_dir)]
    assert command.main(words) == 0
    theirs, info = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(
        "hub", output_loading_info=True
    )
    assert not any(info.values())
    data = prepare.load_data(task.settings(), task.sources(), verbose=False)
    assert theirs.config.n_positions == data.n_ctx  # fewer than were pretrained
    assert theirs.config.n_positions < tiny.N_POSITIONS

    test = data.predicted["ROCStories"]
    X, M, _ = padded(test, data.n_vocab + 3)
    with torch.no_grad():
        found = theirs.eval()(
            input_ids=torch.from_numpy(X[..., 0]).long(),
            mc_token_ids=torch.from_numpy(M.sum(-1)).long() - 1,
        ).mc_logits
    ours = open_model(best, vocabulary=task.model_dir)
    pretrained = open_model(task.model_dir).module
    assert not torch.equal(ours.module.h[0].mlp.c_fc.w, pretrained.h[0].mlp.c_fc.w)  # was trained
    expected = predict.predict_logits(ours.module, test, ALONE, n_batch=8)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-2  # much more than the tolerance
    submission = np.array(read_submission(run / "submission" / "ROCStories.tsv"))
    clear = abs(expected[:, 0] - expected[:, 1]) > 2e-5
    assert clear.sum() > 0.8 * len(clear)
    assert (found.argmax(-1).numpy() == submission)[clear].all()
    assert set(submission[clear]) == {0, 1}


def test_a_converted_model_is_used_by_model_dir_alone(
    task: tiny.Tiny, best: Path, out: Path
) -> None:
    """The results are those of the full parameter list with its vocabulary."""
    convert(best, "hub", "hub", vocabulary=task.model_dir)
    from_list, from_hub = open_model(best, vocabulary=task.model_dir), open_model("hub")
    assert from_hub.has_choice_head
    assert from_hub.module.config == from_list.module.config
    for name, parameter in from_list.module.named_parameters():
        assert torch.equal(parameter, from_hub.module.get_parameter(name)), name


def test_python_in_the_docs_runs(
    transformers: ModuleType,
    task: tiny.Tiny,
    best: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each Python block of docs/hub.md runs in the directories that its commands make."""
    convert(DEMO, "out/demo_hub", "hub")
    convert(best, "out/finetuned", "hub", vocabulary=task.model_dir)
    capsys.readouterr()
    printed = []
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/hub.md").read_text(), re.S):
        exec(compile(block, "docs/hub.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    text, probabilities = printed
    assert text.startswith("anna wanted to bake a cake .")
    assert len(text.split()) >= 15
    assert re.fullmatch(r"tensor\(\[\[0\.\d+, 0\.\d+\]\].*\n", probabilities)


# --------------------------------------------------------------------------- what is said


def test_the_hub_lacks_things_and_notes_say_so(
    task: tiny.Tiny, best: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(best), "hub", "--to", "hub", "--model_dir", str(task.model_dir)]
    assert command.main(words) == 0
    said = capsys.readouterr()
    n_vocab = read_shapes(task.model_dir).n_vocab
    rows = len(read_jl(best)[0]) - n_vocab - 3
    assert said.out == (
        f"hub: hub layout, 2 layers of width 16, {n_vocab} tokens, 3 special tokens, "
        f"{rows} positions, choice head\n"
    )
    for words in ("softmax over token rows alone", "dropout applies to sums", "docs/hub.md"):
        assert words in said.err  # type: ignore[operator]
    assert "token 0 of the vocabulary is 'a' and not '<unk>'" in said.err
    assert all(line.startswith("gpt1 convert: note: ") for line in said.err.splitlines())


def test_a_list_does_not_record_heads_and_activation(
    task: tiny.Tiny, best: Path, out: Path
) -> None:
    _, notes = convert(best, "x.jl", vocabulary=task.model_dir, afn="swish")
    assert notes == ["the target does not record everything: use it with n_head=4 and afn='swish'"]
    _, notes = convert(best, "hub", "hub", vocabulary=task.model_dir, afn="swish")
    assert not any("--afn" in note for note in notes)
    assert json.loads((out / "hub" / "config.json").read_text())["afn"] == "silu"
    _, notes = convert("hub", "y.jl")
    assert notes == ["the target does not record everything: use it with n_head=4 and afn='swish'"]
    _, notes = convert("hub", "released", "released")
    assert notes[-1] == "the target does not record everything: use it with afn='swish'"


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DEMO", "x"], "x: give --to hub or --to released for a directory"),
        (["DEMO", "x.jl"], "no rows of special tokens and no choice head, which a full"),
        (["DEMO", "x", "--to", "jl"], "--to jl: the target must end in .jl, but is x"),
        (["DEMO", "x.jl", "--to", "safetensors"], "--to safetensors: the target must end in"),
        (["DEMO", "x.jl", "--to", "hub"], "--to hub: the target is a directory, but x.jl"),
        (["DEMO", "x", "--to", "zip"], "--to zip: must be one of hub, released, jl, safetensors"),
        (["DEMO", "x", "--to", "hub", "--n_head", "0"], "--n_head 0: must be at least 1"),
        (["DEMO", "x", "--to", "hub", "--n_head", "8"], "--n_head 8: DEMO/gpt1_config.json has 4"),
        (["DEMO", "x", "--to", "hub", "--afn", "tanh"], "--afn tanh: must be one of gelu"),
        (["DEMO"], "TARGET: must be given"),
        (["nowhere", "x", "--to", "hub"], "nowhere: there is no such file or directory"),
        (
            ["DEMO/params_0.npy", "x.jl"],
            "params_0.npy: a parameter file ends in .jl or .safetensors, and",
        ),
        (["DEMO", "x", "--to", "hub", "--model_dir", "y"], "is missing: name the directory of"),
        (
            ["DEMO", "x", "--to", "hub", "--model_dir", "TINY"],
            "TINY/encoder_bpe_40000.json has 100 tokens, but DEMO/params_sh",
        ),
        (["LIST", "x", "--to", "hub"], "126 rows of we are too few for the 3592 tokens of"),
        (
            ["BEST", "x", "--to", "hub", "--model_dir", "DEMO"],
            "too few for the 3592 tokens of DEMO/enc",
        ),
        (["BEST", "x", "--to", "hub", "--model_dir", "TINY", "--n_head", "5"], "not divide the"),
        (["HUB/model.safetensors", "x", "--to", "hub"], "is part of a hub model; name the dir"),
        (
            ["HUB", "x", "--to", "released", "--afn", "relu"],
            "HUB/config.json has gelu; give --afn gelu",
        ),
        (["HUB", "x", "--to", "released", "--n_head", "2"], "HUB/config.json has 4; leave"),
        (["HUB", "HUB", "--to", "released", "--force"], "HUB: is the source, too; name another"),
        (["BEST", "BEST", "--force"], "BEST: is the source, too; name another"),
        (["DEMO", "HUB", "--to", "hub"], "HUB: is there already (README.md, config.json, gen"),
        (["BEST", "HUB", "--to", "hub"], "HUB: is there already"),
        (["HUB", "LIST"], "LIST: is there already (list.jl); name another"),
        (["HUB", "folder.jl"], "folder.jl: is a directory; the jl layout is a file"),
        (["DEMO", "file", "--to", "hub"], "file: is a file; the hub layout is a directory"),
        (["DEMO", "other", "--to", "hub"], "other: is there already (notes.txt)"),
        (["DEMO", "other", "--to", "hub", "--force"], "are no part of a model (notes.txt);"),
        (
            ["DEMO", "HUB", "--to", "released", "--force"],
            "are no part of a model (README.md, config.json",
        ),
    ],
)
def test_refused_with_one_message_and_nothing_written(
    task: tiny.Tiny,
    best: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    convert(best, "hub", "hub", vocabulary=task.model_dir)
    shutil.copy(best, "list.jl")
    Path("folder.jl").mkdir()
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    before = files_of(out), best.read_bytes()
    names = {"DEMO": DEMO, "TINY": task.model_dir, "BEST": best, "HUB": "hub", "LIST": "list.jl"}

    def real(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, str(path))
        return text

    assert command.main([real(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert real(message) in said.err
    assert said.err.startswith("gpt1 convert: error: ")
    assert said.err.count("\n") == 1
    assert (files_of(out), best.read_bytes()) == before
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "x"}, "x: give to='hub' or to='released' for a directory"),
        ({"target": "x", "to": "jl"}, "to='jl': the target must end in .jl, but is x"),
        ({"target": "x", "to": "hub", "n_head": 8}, "n_head=8: DEMO/gpt1_config.json has 4; leave"),
        ({"target": "x", "to": "hub", "afn": "tanh"}, "afn='tanh': must be one of gelu"),
        ({"target": "x", "to": "hub", "vocabulary": "y"}, "vocabulary with vocabulary='DIR'"),
        ({"target": "there", "to": "hub"}, "name another target, or give force=True to replace"),
        ({"target": "x.jl"}, "convert it to a directory (to='hub' or to='released'), or fine-tune"),
    ],
)
def test_python_is_told_of_arguments(out: Path, arguments: dict[str, object], message: str) -> None:
    Path("there").mkdir()
    Path("there/config.json").touch()
    with pytest.raises(InputError) as caught:
        convert(DEMO, **arguments)  # type: ignore[arg-type]
    assert message.replace("DEMO", str(DEMO)) in str(caught.value)
    assert not Path("x").exists()


def test_the_vocabulary_of_a_list_that_nobody_named_is_told(
    task: tiny.Tiny, best: Path, out: Path
) -> None:
    """A list that stands alone; in the directory of a run its vocabulary lies beside it."""
    shutil.copytree(task.model_dir, "model/demo")
    _, notes = convert(best, "own.safetensors")
    assert notes == []
    shutil.copy(best, "list.jl")
    _, notes = convert("list.jl", "x.safetensors")
    assert notes == ["the vocabulary is the one in model/demo/"]
    for file in Path("model/demo").iterdir():
        shutil.copy(file, "model")
    _, notes = convert("list.jl", "y.safetensors")
    assert notes == ["the vocabulary is the one in model/"]


def test_an_earlier_conversion_is_replaced_by_force(task: tiny.Tiny, best: Path, out: Path) -> None:
    convert(best, "fresh", "hub", vocabulary=task.model_dir)
    convert(DEMO, "target", "hub")
    convert(best, "target", "hub", vocabulary=task.model_dir, force=True)
    assert files_of(out / "target") == files_of(out / "fresh")
    convert("fresh", "x.jl")
    Path("y.jl").write_bytes(b"old")
    convert("fresh", "y.jl", force=True)
    assert Path("x.jl").read_bytes() == Path("y.jl").read_bytes()
    Path("empty").mkdir()
    convert("fresh", "empty", "hub")  # needs no force
    assert files_of(out / "empty") == files_of(out / "fresh")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("index", [0, 5, -2])
def test_a_damaged_list_is_refused(
    task: tiny.Tiny, best: Path, out: Path, index: int, value: float
) -> None:
    arrays = read_jl(best)
    arrays[index].flat[3] = value
    write_jl("bad.jl", arrays)
    with pytest.raises(InputError, match=r"bad\.jl: array \S+ holds NaN or infinity"):
        convert("bad.jl", "x", "hub", vocabulary=task.model_dir)
    write_jl("double.jl", [array.astype(np.float64) for array in read_jl(best)])
    with pytest.raises(InputError, match=r"double\.jl: array we has dtype float64"):
        convert("double.jl", "x", "hub", vocabulary=task.model_dir)
    assert not Path("x").exists()


def test_help_needs_no_torch() -> None:
    code = "import sys\nfrom gpt1.commands import convert\nconvert.COMMAND.help()\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
