"""Opening a model: every layout gives the same model; messages name arguments or flags."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gpt1.commands import running
from gpt1.inference.language_model import LanguageModel, open_model
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.settings.groups import OpenSettings
from gpt1.weights import locate
from gpt1.weights.conversion import convert
from gpt1.weights.jl import write_jl
from gpt1.weights.parameters import to_list, write_safetensors

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"
N_CTX = 9


@pytest.fixture(scope="module")
def config(task: tiny.Tiny) -> ModelConfig:
    """The configuration of a fine-tuned model with the tiny task's vocabulary."""
    n_vocab = open_model(task.model_dir).module.config.n_vocab
    return ModelConfig(n_vocab=n_vocab, n_ctx=N_CTX, n_embd=16, n_head=4, n_layer=3)


@pytest.fixture(scope="module")
def module(config: ModelConfig) -> DoubleHeadsModel:
    """A model whose parameters all differ from freshly initialised ones."""
    model = DoubleHeadsModel(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1, generator=generator)
    return model


@pytest.fixture
def run(module: DoubleHeadsModel, tmp_path: Path) -> Path:
    """The directory of a run, which holds only the best parameters."""
    write_jl(tmp_path / "save" / "mine" / "best_params.jl", to_list(module))
    return tmp_path / "save" / "mine"


def assert_same(found: LanguageModel, expected: DoubleHeadsModel) -> None:
    """Check that two models have the same configuration and the same parameters, bit for bit."""
    assert found.module.config == expected.config
    for name, parameter in expected.named_parameters():
        assert torch.equal(found.module.get_parameter(name), parameter), name


def message(*args: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_model(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------- layouts


def test_every_layout_of_a_fine_tuned_model_opens_as_the_same_model(
    task: tiny.Tiny, run: Path, module: DoubleHeadsModel, tmp_path: Path
) -> None:
    convert(run, tmp_path / "hub", "hub", vocabulary=task.model_dir)
    convert(tmp_path / "hub", tmp_path / "list.safetensors")
    for path in (run, run / "best_params.jl", tmp_path / "list.safetensors"):
        found = open_model(path, vocabulary=task.model_dir)
        assert_same(found, module)
        assert found.has_choice_head
        assert found.source == str(path)
    assert_same(open_model(tmp_path / "hub"), module)
    assert_same(open_model(str(tmp_path / "hub")), module)


def test_a_pretrained_model_has_no_choice_head(task: tiny.Tiny, tmp_path: Path) -> None:
    convert(task.model_dir, tmp_path / "hub", "hub")
    released = open_model(task.model_dir)
    assert not released.has_choice_head
    assert released.module.config.n_ctx == tiny.N_POSITIONS
    assert not released.module.training
    assert_same(open_model(tmp_path / "hub"), released.module)


def test_a_list_with_its_vocabulary_beside_needs_nothing_else(
    task: tiny.Tiny, run: Path, module: DoubleHeadsModel, tmp_path: Path
) -> None:
    for name in (locate.ENCODER_FILE, locate.BPE_FILE, locate.CONFIG_FILE):
        shutil.copy(task.model_dir / name, run)
    assert_same(open_model(run), module)
    assert_same(open_model(run / "best_params.jl"), module)


def test_the_files_of_a_vocabulary_may_be_named(
    task: tiny.Tiny, run: Path, module: DoubleHeadsModel
) -> None:
    files = locate.vocabulary_files(task.model_dir)
    assert_same(open_model(run, vocabulary=files, n_head=4), module)


def test_a_released_checkpoint_beside_the_best_parameters_comes_first(
    task: tiny.Tiny, tmp_path: Path
) -> None:
    directory = tmp_path / "both"
    shutil.copytree(task.model_dir, directory)
    (directory / "best_params.jl").write_bytes(b"not looked at")
    assert not open_model(directory).has_choice_head


# ------------------------------------------------------------------------- heads, activation


def test_a_safetensors_list_knows_its_heads_and_activation(
    task: tiny.Tiny, module: DoubleHeadsModel, tmp_path: Path
) -> None:
    """The list's values override those of the vocabulary's directory; the user's override both."""
    path = tmp_path / "list.safetensors"
    write_safetensors(path, to_list(module), replace(module.config, n_head=8, afn="relu"))
    found = open_model(path, vocabulary=task.model_dir).module.config
    assert (found.n_head, found.afn) == (8, "relu")
    found = open_model(path, vocabulary=task.model_dir, n_head=2, afn="swish").module.config
    assert (found.n_head, found.afn) == (2, "swish")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"n_head": 0}', '{"n_head": "8", "afn": ["relu"]}', "[" * 100_000]
)
def test_metadata_that_are_not_ours_are_passed_over(
    task: tiny.Tiny, module: DoubleHeadsModel, tmp_path: Path, text: str
) -> None:
    import safetensors.numpy

    from gpt1.weights.parameters import parameter_shapes

    named = dict(zip(parameter_shapes(module.config), to_list(module), strict=True))
    safetensors.numpy.save_file(named, tmp_path / "list.safetensors", {"config": text})
    assert_same(open_model(tmp_path / "list.safetensors", vocabulary=task.model_dir), module)


def test_the_released_number_of_heads_where_nothing_is_recorded(task: tiny.Tiny, run: Path) -> None:
    files = locate.vocabulary_files(task.model_dir)
    assert message(run, vocabulary=files).startswith("n_head=12: does not divide the width 16; ")


@pytest.mark.parametrize("layout", ["released", "hub"])
def test_heads_in_a_file_that_do_not_divide_the_width(
    task: tiny.Tiny, tmp_path: Path, layout: str
) -> None:
    convert(task.model_dir, tmp_path / "model", layout)
    file = tmp_path / "model" / (locate.HUB_CONFIG if layout == "hub" else locate.CONFIG_FILE)
    file.write_text(file.read_text().replace('"n_head": 4', '"n_head": 3'))
    assert message(tmp_path / "model").startswith(f"{file}: n_head 3: does not divide the width 16")
    assert open_model(tmp_path / "model", n_head=4).module.config.n_head == 4


# ------------------------------------------------------------------------------- messages


def open_by_flags(**flags: str | int) -> str:
    with pytest.raises(InputError) as caught:
        running.open_model(OpenSettings(**flags), "gpt1 x")  # type: ignore[arg-type]
    return str(caught.value)


def test_messages_speak_of_arguments_to_python_and_of_flags_to_the_command_line(
    task: tiny.Tiny, run: Path
) -> None:
    model_dir, params = str(task.model_dir), str(run / "best_params.jl")
    assert message(model_dir, n_head=5).startswith("n_head=5: does not divide the width 16")
    assert open_by_flags(model_dir=model_dir, n_head=5).startswith("--n_head 5: does not divide")
    encoder = run / "encoder_bpe_40000.json"
    remedy = "is missing: name the directory of the model's vocabulary with"
    assert message(params) == f"{encoder} {remedy} vocabulary='DIR'"
    assert open_by_flags(model_dir=str(run), params=params) == f"{encoder} {remedy} --model_dir DIR"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_head": 0}, "n_head=0: must be at least 1"),
        ({"n_head": -4}, "n_head=-4: must be at least 1"),
        ({"afn": "tanh"}, "afn='tanh': must be one of gelu, relu, swish"),
    ],
)
def test_a_value_that_cannot_be(task: tiny.Tiny, options: dict[str, object], expected: str) -> None:
    assert message(task.model_dir, **options) == expected


def test_a_path_without_a_model(task: tiny.Tiny, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    vocabulary = task.model_dir
    assert (
        message(nowhere, vocabulary=vocabulary) == f"{nowhere}: there is no such file or directory"
    )
    (tmp_path / "empty").mkdir()
    assert "there is no model in this directory" in message(
        tmp_path / "empty", vocabulary=vocabulary
    )
    (tmp_path / "weights.pt").touch()
    assert "ends in .jl or .safetensors" in message(tmp_path / "weights.pt", vocabulary=vocabulary)
    assert "too few for the 3592 tokens" in message(save_list(tmp_path), vocabulary=DEMO)
    assert "100 tokens, but" in message(DEMO, vocabulary=vocabulary)


def save_list(directory: Path) -> Path:
    """Save a full parameter list whose ``we`` has 30 rows."""
    small = DoubleHeadsModel(ModelConfig(n_vocab=20, n_ctx=7, n_embd=4, n_head=1, n_layer=1))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    write_jl(directory / "small.jl", to_list(small))
    return directory / "small.jl"


def test_a_part_of_a_hub_model_is_no_model(task: tiny.Tiny, tmp_path: Path) -> None:
    convert(task.model_dir, tmp_path / "hub", "hub")
    part = tmp_path / "hub" / "model.safetensors"
    assert message(part) == f"{part}: is part of a hub model; name the directory {part.parent}"


# ------------------------------------------------------------------------------- text


def test_a_text_gives_ids_and_texts_give_lists_of_them(task: tiny.Tiny) -> None:
    model = open_model(task.model_dir)
    one, two = model.encode(["Anna had a kite.", "Ben ran."])
    assert model.encode("Anna had a kite.") == one
    assert model.encode(("Ben ran.",)) == [two]
    assert model.decode(one) == "anna had a kite ."


def test_special_tokens_are_left_out_of_the_text(task: tiny.Tiny) -> None:
    model = open_model(task.model_dir)
    special = model.special
    ids = [special.start, *model.encode("Ben ran."), special.delimiter, special.classify]
    assert model.decode(np.array(ids)) == "ben ran ."


# ------------------------------------------------------------------------------- imports


def test_finding_files_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys\nfrom gpt1.weights import locate\nimport gpt1.settings.training\n"
        f"assert locate.list_file({str(DEMO)!r}) is None\n"
        "sys.exit(bool({'numpy', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_room_gives_its_public_functions_by_name() -> None:
    import gpt1.weights

    for name in gpt1.weights.__all__:
        assert getattr(gpt1.weights, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = gpt1.weights.nothing
