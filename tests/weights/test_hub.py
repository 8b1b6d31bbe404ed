"""Hub directories are exchanged with transformers; damaged and hostile files are refused.

transformers is imported where it is used: it takes seconds.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import faults
import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from padded import Padded
from torch import Tensor

from gpt1.batches.packing import Batch, pack
from gpt1.commands import train
from gpt1.datasets import story_cloze as datasets
from gpt1.inference.language_model import open_model
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens
from gpt1.training import prepare
from gpt1.weights import hub, jl, locate, parameters
from gpt1.weights.released import load_released, read_shapes, save_released

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"
N_VOCAB, N_POSITIONS, N_EMBD, N_HEAD, N_LAYER = 50, 20, 16, 4, 3
SPECIAL = SpecialTokens.after(N_VOCAB)
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model's parameters, divided where the layouts differ; some models lack some of them."""

    tokens: np.ndarray
    special: np.ndarray | None
    positions: np.ndarray
    layers: dict[str, np.ndarray]
    classifier: dict[str, np.ndarray]
    n_head: int
    afn: str

    def params(self, special: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return parameters by the original's names; ``special`` replaces missing special rows."""
        own = [rows for rows in (self.special, special) if rows is not None][:1]
        we = np.concatenate([self.tokens, *own, self.positions])
        return {"we": we, **self.layers, **self.classifier}

    def write(self, directory: Path, vocabulary: tuple[Path, Path]) -> None:
        """Write a hub directory."""
        params = self.params()
        config = ModelConfig(
            n_vocab=len(self.tokens),
            n_special=0 if self.special is None else len(self.special),
            n_ctx=len(self.positions),
            n_embd=self.tokens.shape[1],
            n_head=self.n_head,
            n_layer=parameters.count_layers(params),
            afn=self.afn,
        )
        hub.write_hub(directory, params, vocabulary, config)


def read_parts(directory: Path) -> Parts:
    """Read the whole model in a hub directory."""
    config = hub.read_config(directory)
    params = hub.load_hub(
        directory,
        n_vocab=N_VOCAB,
        special=np.zeros((0, N_EMBD), np.float32),
        n_ctx=config.n_positions,
        n_transfer=config.n_layer,
        classifier=True,
    )
    we = params.pop("we")
    clf = {name: params.pop(name) for name in ("clf/w", "clf/b") if name in params}
    first = len(we) - config.n_positions
    return Parts(
        tokens=we[:N_VOCAB],
        special=we[N_VOCAB:first] if first > N_VOCAB else None,
        positions=we[first:],
        layers=params,
        classifier=clf,
        n_head=config.n_head,
        afn=config.afn,
    )


def random_parts(*, special: bool = True, classifier: bool = True, afn: str = "gelu") -> Parts:
    """Make random parameters, so large that each of them changes the output."""
    rng = np.random.default_rng(0)
    config = ModelConfig(
        n_vocab=N_VOCAB, n_ctx=N_POSITIONS, n_embd=N_EMBD, n_head=N_HEAD, n_layer=N_LAYER
    )
    params = {
        name: (rng.standard_normal(shape) * 0.3 + name.endswith("/g")).astype(np.float32)
        for name, shape in parameters.parameter_shapes(config).items()
    }
    we, clf = params.pop("we"), {name: params.pop(name) for name in ("clf/w", "clf/b")}
    return Parts(
        tokens=we[:N_VOCAB],
        special=we[N_VOCAB : N_VOCAB + 3] if special else None,
        positions=we[N_VOCAB + 3 :],
        layers=params,
        classifier=clf if classifier else {},
        n_head=N_HEAD,
        afn=afn,
    )


def our_model(parts: Parts) -> DoubleHeadsModel:
    config = ModelConfig(
        n_vocab=len(parts.tokens),
        n_ctx=len(parts.positions),
        n_embd=N_EMBD,
        n_head=parts.n_head,
        n_layer=N_LAYER,
        afn=parts.afn,
    )
    model = DoubleHeadsModel(config)
    model.init_parameters(torch.Generator().manual_seed(1))
    parameters.set_parameters(model, parts.params(np.zeros((3, N_EMBD), np.float32)))
    return model.eval()


def write_vocabulary(directory: Path) -> None:
    """Write a vocabulary of ``N_VOCAB`` tokens for transformers' tokenizer, and one merge."""
    letters = "abcdefghijklmnopqrstuvw"
    pieces = ["<unk>", *letters, *(letter + "</w>" for letter in letters), "ab", ".</w>", "'</w>"]
    assert len(pieces) == N_VOCAB
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\na b\n")


def write_directory(directory: Path, parts: Parts) -> Path:
    """A hub directory that gpt1 wrote."""
    vocabulary = directory.parent / "vocabulary"
    write_vocabulary(vocabulary)
    parts.write(directory, (vocabulary / "vocab.json", vocabulary / "merges.txt"))
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "hub", random_parts())


def random_choices(*, special: bool = True) -> tuple[Padded, Tensor]:
    """Make three stories with choices of different lengths; return also `_classify_` [B, C]."""
    rng = np.random.default_rng(1)
    lengths = np.array([[9, 12], [20, 7], [15, 15]])
    X = np.zeros((3, 2, N_POSITIONS, 2), np.int32)
    X[..., 1] = SPECIAL.classify + 1 + np.arange(N_POSITIONS)
    M = (np.arange(N_POSITIONS) < lengths[..., None]).astype(np.float32)
    X[..., 0] = rng.integers(0, N_VOCAB, X.shape[:3])
    if special:
        X[:, :, 0, 0], X[:, :, 4, 0] = SPECIAL.start, SPECIAL.delimiter
        np.put_along_axis(X[..., 0], lengths[..., None] - 1, SPECIAL.classify, -1)
    return Padded(X, M, None), torch.from_numpy(lengths - 1)


def our_lm_logits(model: DoubleHeadsModel, arrays: Padded, rows: int) -> Tensor:
    """Logits over the first ``rows`` rows of ``we`` for every token, [N, rows]."""
    batch: Batch = pack(arrays.encoded(), SPECIAL.classify, share_prefix=False)
    with torch.no_grad():
        return model.hidden_states(batch) @ model.we[:rows].T


def our_choice_logits(model: DoubleHeadsModel, arrays: Padded) -> Tensor:
    with torch.no_grad():
        return model.clf_logits(pack(arrays.encoded(), SPECIAL.classify, share_prefix=True))


def their_output(model: Any, arrays: Padded, **inputs: Tensor) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(arrays.X[..., 0]).long(), **inputs)


def their_lm_logits(model: Any, arrays: Padded) -> Tensor:
    """Return transformers' logits of all real tokens, [N, rows]."""
    logits = their_output(model, Padded(arrays.X.reshape(6, N_POSITIONS, 2), arrays.M, None))
    return logits.logits[torch.from_numpy(arrays.M).reshape(6, N_POSITIONS) > 0]


# ------------------------------------------------------------------------------- written by us


@pytest.mark.parametrize("afn", ["gelu", "relu", "swish"])
def test_lm_logits_in_transformers_are_ours(
    transformers: ModuleType, tmp_path: Path, afn: str
) -> None:
    parts = random_parts(afn=afn)
    write_directory(tmp_path / "hub", parts)
    theirs, info = transformers.OpenAIGPTLMHeadModel.from_pretrained(
        tmp_path / "hub", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    arrays, _ = random_choices()
    ours = our_lm_logits(our_model(parts), arrays, N_VOCAB + 3)
    assert ours.abs().mean() > 0.1  # The logits are not all 0.
    torch.testing.assert_close(their_lm_logits(theirs, arrays), ours, **TOLERANCE)
    other = replace(parts, afn="relu" if afn == "gelu" else "gelu")
    assert (our_lm_logits(our_model(other), arrays, N_VOCAB + 3) - ours).abs().max() > 1e-2


def test_choice_logits_in_transformers_are_ours(transformers: ModuleType, directory: Path) -> None:
    theirs, info = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(info.values())
    arrays, classify = random_choices()
    ours = our_choice_logits(our_model(random_parts()), arrays)
    assert ours.std() > 0.1
    found = their_output(theirs, arrays, mc_token_ids=classify)
    torch.testing.assert_close(found.mc_logits, ours, **TOLERANCE)


def test_a_pretrained_model_has_no_rows_of_special_tokens_and_no_choice_head(
    transformers: ModuleType, tmp_path: Path
) -> None:
    parts = random_parts(special=False, classifier=False)
    write_directory(tmp_path / "hub", parts)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hub", output_loading_info=True
    )
    assert type(theirs).__name__ == "OpenAIGPTLMHeadModel"
    assert not any(info.values())
    assert theirs.config.vocab_size == N_VOCAB
    arrays, _ = random_choices(special=False)
    ours = our_lm_logits(our_model(parts), arrays, N_VOCAB)
    torch.testing.assert_close(their_lm_logits(theirs, arrays), ours, **TOLERANCE)


def test_transformers_refuses_a_token_beyond_the_positions_carried(
    transformers: ModuleType, directory: Path
) -> None:
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(directory)
    assert theirs.config.n_positions == N_POSITIONS
    with pytest.raises((IndexError, RuntimeError)):
        theirs(input_ids=torch.zeros(1, N_POSITIONS + 1, dtype=torch.long))


def test_transformers_softmax_lacks_the_position_rows(
    transformers: ModuleType, directory: Path
) -> None:
    """As docs/hub.md says, the logits are equal and the probabilities are not."""
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(directory)
    arrays, _ = random_choices()
    model = our_model(random_parts())
    tokens = our_lm_logits(model, arrays, N_VOCAB + 3)
    all_rows = our_lm_logits(model, arrays, model.config.n_rows)
    ours, of_tokens = all_rows.logsumexp(-1), their_lm_logits(theirs, arrays).logsumexp(-1)
    torch.testing.assert_close(of_tokens, tokens.logsumexp(-1), **TOLERANCE)
    assert (ours - of_tokens).min() > 1e-3


# ------------------------------------------------------------------------ written by transformers


def their_directory(
    transformers: ModuleType, directory: Path, kind: str, file: str, **settings: Any
) -> Any:
    """A random model of transformers, saved with a vocabulary; its rows of special tokens too."""
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(
        vocab_size=N_VOCAB + 3,
        n_positions=N_POSITIONS,
        n_embd=N_EMBD,
        n_layer=N_LAYER,
        n_head=N_HEAD,
        initializer_range=0.3,
        **settings,
    )
    model = getattr(transformers, kind)(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "ln_" in name:  # Parameters of 0 and 1 would hide exchanged arrays.
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    write_vocabulary(directory)
    if file == "model.safetensors":
        model.save_pretrained(directory)
    else:
        config.save_pretrained(directory)
        torch.save(model.state_dict(), directory / file)
    return model.eval()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "kind", ["OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel"]
)
def test_models_saved_by_transformers_compute_the_same_here(
    transformers: ModuleType, tmp_path: Path, kind: str, file: str
) -> None:
    theirs = their_directory(transformers, tmp_path, kind, file)
    parts = read_parts(tmp_path)
    model, (arrays, classify) = our_model(parts), random_choices()
    assert bool(parts.classifier) == (kind == "OpenAIGPTDoubleHeadsModel")
    if kind == "OpenAIGPTModel":
        batch = pack(arrays.encoded(), SPECIAL.classify, share_prefix=False)
        flat = Padded(arrays.X.reshape(6, N_POSITIONS, 2), arrays.M, None)
        states = their_output(theirs, flat).last_hidden_state
        real = torch.from_numpy(arrays.M).reshape(6, N_POSITIONS) > 0
        with torch.no_grad():
            torch.testing.assert_close(model.hidden_states(batch), states[real], **TOLERANCE)
        return
    ours = our_lm_logits(model, arrays, N_VOCAB + 3)
    if kind == "OpenAIGPTLMHeadModel":
        torch.testing.assert_close(ours, their_lm_logits(theirs, arrays), **TOLERANCE)
        return
    found = their_output(theirs, arrays, mc_token_ids=classify)
    torch.testing.assert_close(ours, found.logits[torch.from_numpy(arrays.M) > 0], **TOLERANCE)
    torch.testing.assert_close(our_choice_logits(model, arrays), found.mc_logits, **TOLERANCE)


@pytest.mark.parametrize("afn", ["gelu", "relu", "silu", "swish"])
def test_activations_of_transformers_by_all_their_names(
    transformers: ModuleType, tmp_path: Path, afn: str
) -> None:
    theirs = their_directory(
        transformers, tmp_path, "OpenAIGPTLMHeadModel", "model.safetensors", afn=afn
    )
    arrays, _ = random_choices()
    ours = our_lm_logits(our_model(read_parts(tmp_path)), arrays, N_VOCAB + 3)
    torch.testing.assert_close(ours, their_lm_logits(theirs, arrays), **TOLERANCE)


def test_all_activations_of_transformers_are_known(transformers: ModuleType) -> None:
    from transformers.models.openai.modeling_openai import ACT_FNS

    assert set(ACT_FNS) == set(hub.AFN)


# --------------------------------------------------------------------------------- as files


def tensors_of(directory: Path) -> Tensors:
    return safetensors.torch.load_file(directory / "model.safetensors")


def save_tensors(directory: Path, tensors: Tensors) -> None:
    safetensors.torch.save_file(tensors, directory / "model.safetensors")


def assert_same(found: Parts, expected: Parts) -> None:
    """Check that two models are equal bit for bit."""
    ours, theirs = found.params(), expected.params()
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert (found.n_head, found.afn) == (expected.n_head, expected.afn)
    assert (found.special is None) == (expected.special is None)


@pytest.mark.parametrize("afn", ["gelu", "swish"])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_what_is_written_is_read_bit_for_bit(
    tmp_path: Path, special: bool, classifier: bool, afn: str
) -> None:
    parts = random_parts(special=special, classifier=classifier, afn=afn)
    assert_same(read_parts(write_directory(tmp_path / "hub", parts)), parts)


def test_the_hubs_historical_file_with_masks_and_without_prefix(directory: Path) -> None:
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in tensors_of(directory).items()
        if "multiple_choice_head" not in name
    }
    for i in range(N_LAYER):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, N_POSITIONS, N_POSITIONS).tril()
    tensors["position_ids"] = torch.arange(N_POSITIONS)
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    assert_same(read_parts(directory), random_parts(classifier=False))


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_of_both_kinds(directory: Path, zipped: bool) -> None:
    torch.save(
        tensors_of(directory),
        directory / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    (directory / "model.safetensors").unlink()
    assert_same(read_parts(directory), random_parts())


def test_safetensors_are_preferred(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_same(read_parts(directory), random_parts())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(directory: Path, dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in tensors_of(directory).items()}
    save_tensors(directory, halves)
    found = read_parts(directory)
    expected = halves["transformer.h.1.mlp.c_fc.weight"].double().numpy()
    np.testing.assert_array_equal(found.layers["h1/mlp/c_fc/w"][0], expected)
    assert found.positions.dtype == np.float32


def test_the_file_names_its_library(directory: Path) -> None:
    """Without it, transformers 4 does not open the file."""
    with safetensors.safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_settings_file_as_old_as_the_hubs(directory: Path) -> None:
    """It has keys of its time, and lacks later ones."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for name in ("tie_word_embeddings", "summary_activation"):
        del config[name]
    config |= {"n_special": 0, "predict_special_tokens": True, "task_specific_params": {}}
    path.write_text(json.dumps(config))
    assert_same(read_parts(directory), random_parts())


def test_a_released_checkpoint_beside_comes_first(directory: Path) -> None:
    assert locate.is_hub(directory)
    (directory / "params_shapes.json").write_text("[]")
    assert not locate.is_hub(directory)
    assert not locate.is_hub(directory / "nowhere")


# --------------------------------------------------------------------------------- load_hub


def load(directory: Path, special: np.ndarray, **request: Any) -> dict[str, np.ndarray]:
    wanted = {"n_vocab": N_VOCAB, "n_ctx": 7, "n_transfer": N_LAYER, **request}
    return hub.load_hub(directory, special=special, **wanted)


def test_load_hub_takes_what_is_asked_for(directory: Path) -> None:
    parts, special = random_parts(), np.full((3, N_EMBD), 9, np.float32)
    for n_transfer in (N_LAYER, 2, 0):
        found = load(directory, special, n_transfer=n_transfer)
        layers = {name: a for name, a in parts.layers.items() if int(name[1]) < n_transfer}
        assert list(found) == ["we", *layers]  # never the classifier
        for name, array in layers.items():
            np.testing.assert_array_equal(found[name], array)
        assert len(found["we"]) == N_VOCAB + 3 + 7
        np.testing.assert_array_equal(found["we"][N_VOCAB + 3 :], parts.positions[:7])
        np.testing.assert_array_equal(found["we"][N_VOCAB : N_VOCAB + 3], parts.special)


def test_load_hub_uses_the_rows_given_where_there_are_none(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "hub", random_parts(special=False))
    special = np.full((3, N_EMBD), 9, np.float32)
    np.testing.assert_array_equal(load(directory, special)["we"][N_VOCAB : N_VOCAB + 3], special)


def test_load_hub_reads_nothing_for_minus_one(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere", np.zeros((3, N_EMBD), np.float32), n_transfer=-1) == {}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n_ctx": N_POSITIONS + 1}, r"n_ctx=21: .* 20 position rows; give 1 to 20"),
        ({"n_ctx": 0}, r"n_ctx=0: .* give 1 to 20"),
        ({"n_transfer": 4}, r"n_transfer=4: .* 3 layers; give 0 to 3"),
        ({"n_transfer": -2}, r"n_transfer=-2: .* give 0 to 3"),
    ],
)
def test_load_hub_refuses_more_than_there_is(
    directory: Path, request_: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(directory, np.zeros((3, N_EMBD), np.float32), **request_)


# --------------------------------------------------------------------------- damaged and hostile


def set_config(**changes: object) -> Callable[[Path], None]:
    """Return a damage to ``config.json``; None removes a key."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config |= changes
        config = {key: value for key, value in config.items() if value is not ...}
        path.write_text(json.dumps(config))

    return damage


def set_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Return a damage to the arrays: ``change`` alters their dictionary."""

    def damage(directory: Path) -> None:
        tensors = tensors_of(directory)
        change(tensors)
        save_tensors(directory, tensors)

    return damage


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Return a damage to one array."""
    return set_tensors(lambda tensors: tensors.update({name: change(tensors[name])}))


def text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def cut(name: str) -> Callable[[Path], None]:
    """Return a damage: the file ends half way."""

    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return damage


def only_index(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text("{}")


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


C_FC = "transformer.h.1.mlp.c_fc.weight"
LN = "transformer.h.2.ln_1.weight"
TOKENS = "transformer.tokens_embed.weight"
CLF_W = "multiple_choice_head.summary.weight"
CONFIG_DAMAGES = [
    (text("config.json", b""), r"config\.json: not JSON"),
    (text("config.json", b"[" * 100_000), r"config\.json: not JSON"),
    (text("config.json", b"\xff{}"), r"config\.json, line 1: .* UTF-8"),
    (text("config.json", b"[1]"), r"config\.json: expected one JSON object"),
    (set_config(model_type="gpt2"), r'model_type is "gpt2", expected \'openai-gpt\''),
    (set_config(model_type=...), r"model_type is null, expected"),
    (set_config(n_embd=...), r"n_embd is missing, expected a positive whole number"),
    (set_config(n_layer=0), r"n_layer is 0, expected a positive whole number"),
    (set_config(n_head=True), r"n_head is true, expected a positive whole number"),
    (set_config(n_positions="x" * 90), r'n_positions is "x{39}\.\.\., expected'),
    (set_config(vocab_size=-5), r"vocab_size is -5, expected"),
    (set_config(afn="gelu_new"), r'afn is "gelu_new", expected one of gelu, relu, swish, silu'),
    (set_config(afn=["gelu"]), r"afn is \[.*\], expected one of"),
    (set_config(layer_norm_epsilon=1e-6), r"layer_norm_epsilon is 1e-06, but GPT-1 has 1e-05"),
    (set_config(vocab_size=N_VOCAB + 1), r"vocab_size is 51, but .* 50 tokens; expected 50, or 53"),
    (set_config(summary_activation="tanh"), r"choice head is another than GPT-1's"),
    (set_config(summary_use_proj=False), r"choice head is another than GPT-1's"),
    (set_config(n_layer=2), r'array "h\.2\..*" is not one of .* 2 layers'),
    (set_config(n_layer=4), r"array h\.3\.attn\.c_attn\.weight is missing"),
    (set_config(n_layer=10**15), r"holds \d+ arrays, too few for the 10{15} layers"),
    (set_config(n_embd=32), r"tokens_embed\.weight has shape \[53, 16\], .* \[53, 32\]"),
    (set_config(n_positions=10**9), r"positions_embed\.weight has shape \[20, 16\], .* \[10{9}"),
]
TENSOR_DAMAGES = [
    (no_weights, r"no model\.safetensors or pytorch_model\.bin; put the weights there"),
    (only_index, r"index\.json: weights in several files are not read; .*max_shard_size"),
    (text("model.safetensors", b""), r"model\.safetensors: not a whole safetensors file"),
    (text("model.safetensors", b"\xff" * 100), r"model\.safetensors: not a whole safetensors"),
    (cut("model.safetensors"), r"model\.safetensors: not a whole safetensors file"),
    (set_tensors(lambda t: t.pop(LN)), r"array h\.2\.ln_1\.weight is missing"),
    (set_tensors(lambda t: t.pop(TOKENS)), r"array tokens_embed\.weight is missing"),
    (set_tensors(lambda t: t.pop(CLF_W)), r"array multiple_choice_head\.summary\.weight is miss"),
    (set_tensors(lambda t: t.update(x=torch.ones(1))), r'array "x" is not one of GPT-1'),
    (
        set_tensors(lambda t: t.update({"score.weight": torch.ones(2, N_EMBD)})),
        r'"score\.weight" is not .*; of a model for another task, .*model\.transformer\.save',
    ),
    (
        set_tensors(lambda t: t.update({"h.2.ln_1.weight": t[LN].clone()})),
        r'"h\.2\.ln_1\.weight" is there twice, with and without the prefix',
    ),
    (
        set_tensors(lambda t: t.update({"lm_head.weight": t[TOKENS] + 1})),
        r"lm_head\.weight differs from tokens_embed\.weight, but GPT-1 has one",
    ),
    (
        set_tensors(lambda t: t.update({"lm_head.weight": t[TOKENS][1:].clone()})),
        r"lm_head\.weight has shape \[52, 16\], .* \[53, 16\]",
    ),
    (put(C_FC, lambda x: x.T.contiguous()), r"c_fc\.weight has shape \[64, 16\], .* \[16, 64\]"),
    (put(LN, lambda x: x[None].clone()), r"ln_1\.weight has shape \[1, 16\], .* \[16\]"),
    (put(CLF_W, lambda x: x.repeat(2, 1)), r"summary\.weight has shape \[2, 16\], .* \[1, 16\]"),
    (put(LN, lambda x: x.double()), r"ln_1\.weight has dtype float64, expected float32"),
    (put(LN, lambda x: x.long()), r"ln_1\.weight has dtype int64, expected float32"),
    (put(LN, lambda x: x.log() * torch.nan), r"ln_1\.weight holds NaN or infinity"),
    (put(C_FC, lambda x: x / 0), r"c_fc\.weight holds NaN or infinity"),
    (put(TOKENS, lambda x: (x * 1e9).half()), r"tokens_embed\.weight holds NaN or infinity"),
]


@pytest.mark.parametrize(("damage", "message"), CONFIG_DAMAGES + TENSOR_DAMAGES)
def test_damage_is_refused_in_one_message_with_its_place(
    directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory)
    with pytest.raises(InputError, match=message) as error:
        read_parts(directory)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_settings_file_itself_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: .* cannot be read"):
        read_parts(tmp_path)


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def as_pickle(directory: Path, value: object) -> None:
    """Replace the directory's safetensors file by a pickle of ``value``."""
    torch.save(value, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def test_a_payload_in_the_pickle_is_not_run(directory: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    as_pickle(directory, {**tensors_of(directory), "x": Payload(proof)})
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a whole file of torch") as error:
        read_parts(directory)
    assert not proof.exists()
    assert "weights_only" not in str(error.value)  # torch recommends to run it
    torch.load(directory / "pytorch_model.bin", weights_only=False)
    assert proof.exists()  # The payload does harm if it runs.


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: list(t.values()), r"expected a dictionary of tensors by name"),
        (lambda t: {**t, "step": 3}, r"expected a dictionary of tensors by name"),
        (lambda t: {**t, 3: t[LN]}, r"expected a dictionary of tensors by name"),
        (lambda t: {**t, LN: torch.ones(1).expand(N_EMBD)}, r"ln_1\.weight is not stored"),
        (lambda t: {**t, LN: t[LN].to_sparse()}, r"ln_1\.weight is not stored number by number"),
        (lambda t: {**t, LN: t[LN].to("meta")}, r"ln_1\.weight is not stored number by number"),
        (lambda t: {**t, "lm_head.weight": t[TOKENS].to("meta")}, r"lm_head\.weight is not stored"),
        (lambda t: {**t, LN: torch.nested.nested_tensor([t[LN]] * 2)}, r"is not stored number"),
        (lambda t: {**t, LN: t[LN]._neg_view()}, r"ln_1\.weight is not stored number by number"),
        (lambda t: {**t, LN: t[LN].to(torch.complex64)}, r"has dtype complex64"),
    ],
)
def test_odd_values_in_the_pickle_are_refused(
    directory: Path, change: Callable[[Tensors], object], message: str
) -> None:
    as_pickle(directory, change(tensors_of(directory)))
    with pytest.raises(InputError, match=message):
        read_parts(directory)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02.", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_pickle_is_refused(directory: Path, content: bytes) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a whole file of torch tensors"):
        read_parts(directory)


# ------------------------------------------------------------------------------- --model_dir


def test_open_model_takes_a_hub_directory_as_it_is(directory: Path) -> None:
    parts = replace(random_parts(), afn="relu")
    write_directory(directory, parts)
    found = open_model(directory)
    arrays, _ = random_choices()
    expected = our_choice_logits(our_model(parts), arrays)
    torch.testing.assert_close(our_choice_logits(found.module, arrays), expected, rtol=0, atol=0)
    assert found.has_choice_head
    assert found.special == SPECIAL
    config = found.module.config
    assert (config.n_ctx, config.n_head, config.afn) == (N_POSITIONS, N_HEAD, "relu")
    assert found.encode(["ab b"]) == [[1, 25, 25]]  # "b</w>" does not occur in a merge


def test_open_model_draws_the_same_special_rows_as_for_the_released_layout(
    tmp_path: Path,
) -> None:
    parts = random_parts(special=False, classifier=False)
    directory = write_directory(tmp_path / "hub", parts)
    released = tmp_path / "released"
    params = parts.params()
    save_released(released, params, n_vocab=N_VOCAB, n_special=0, n_head=N_HEAD)
    shutil.copy(directory / "vocab.json", released / "encoder_bpe_40000.json")
    shutil.copy(directory / "merges.txt", released / "vocab_40000.bpe")
    one, other = open_model(directory), open_model(released)
    assert not one.has_choice_head
    for name, parameter in one.module.named_parameters():
        assert torch.equal(parameter, other.module.get_parameter(name)), name


def test_open_model_with_a_list_takes_heads_and_activation_from_the_hub_directory(
    directory: Path, tmp_path: Path
) -> None:
    write_directory(directory, random_parts(afn="swish"))
    path = tmp_path / "list.jl"
    jl.write_jl(path, parameters.to_list(our_model(random_parts())))
    found = open_model(path, vocabulary=directory)
    assert (found.module.config.n_head, found.module.config.afn) == (N_HEAD, "swish")
    assert open_model(path, vocabulary=directory, afn="relu").module.config.afn == "relu"


def test_a_directory_with_its_vocabulary_in_tokenizer_json_alone(
    transformers: ModuleType, directory: Path
) -> None:
    """transformers 5 saves this file; the remedy in the message works."""
    tokenizer = transformers.OpenAIGPTTokenizer.from_pretrained(directory)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (directory / name).unlink()
    tokenizer.save_pretrained(directory)
    assert not (directory / "vocab.json").exists()
    with pytest.raises(InputError, match=r"vocab\.json is missing: tokenizer\.json alone") as error:
        open_model(directory)
    remedy = str(error.value).rpartition(" by ")[2]
    names = {"d": str(directory), "AutoTokenizer": transformers.AutoTokenizer}
    assert names["d"] in str(error.value)
    exec(remedy, names)
    assert open_model(directory).has_choice_head


# ----------------------------------------------------------------------------------- training


def tiny_hub(task: tiny.Tiny, directory: Path, **changes: Any) -> Path:
    """Write the tiny checkpoint as a hub directory."""
    sources = task.sources()
    sizes = read_shapes(task.model_dir)
    none = np.zeros((0, sizes.n_embd), np.float32)
    params = load_released(
        task.model_dir, special=none, n_ctx=sizes.n_ctx, n_transfer=sizes.n_layer
    )
    we = params.pop("we")
    parts = Parts(
        tokens=we[: sizes.n_vocab],
        special=None,
        positions=we[sizes.n_vocab :],
        layers=params,
        classifier={},
        n_head=tiny.N_HEAD,
        afn="gelu",
    )
    parts = replace(parts, **changes)
    parts.write(directory, (sources.encoder_path, sources.bpe_path))
    return directory


def train_flags(task: tiny.Tiny, model_dir: Path, out: Path, *words: str) -> list[str]:
    kinds = ("log", "save", "submission")
    places = [word for kind in kinds for word in (f"--{kind}_dir", str(out / kind))]
    flags = ["--data_dir", str(task.data_dir), "--model_dir", str(model_dir), "--submit"]
    return [*flags, *places, "--device", "cpu", "--n_iter", "1", "--n_batch", "2", *words]


@pytest.mark.parametrize("words", [(), ("--n_transfer", "1"), ("--n_transfer", "-1")])
def test_training_from_a_hub_directory_is_training_from_the_released_layout(
    task: tiny.Tiny, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Both runs have the same bits, with dropout."""
    for model_dir, out in ((tiny_hub(task, tmp_path / "hub"), "a"), (task.model_dir, "b")):
        assert train.main(train_flags(task, model_dir, tmp_path / out, *words)) == 0
    best = Path("save/rocstories/best_params.jl")
    assert (tmp_path / "a" / best).read_bytes() == (tmp_path / "b" / best).read_bytes()


def built(task: tiny.Tiny, model_dir: Path, **changes: Any) -> DoubleHeadsModel:
    """Return the model from which training starts."""
    sources = replace(
        task.sources(),
        model_dir=model_dir,
        encoder_path=model_dir / "vocab.json",
        bpe_path=model_dir / "merges.txt",
    )
    settings = task.settings(**changes)
    data = prepare.load_data(settings, sources, verbose=False)
    settings, config = prepare.resolve(settings, sources, data)
    return prepare.build_model(settings, sources, config, np.random.RandomState(0))


def test_training_takes_rows_of_special_tokens_but_not_the_choice_head(
    task: tiny.Tiny, tmp_path: Path
) -> None:
    special = np.full((3, tiny.N_EMBD), 0.5, np.float32)
    classifier = {"clf/w": np.full((tiny.N_EMBD, 1), 9, np.float32), "clf/b": np.ones(1, "f4")}
    with_rows = tiny_hub(task, tmp_path / "with", special=special, classifier=classifier)
    drawn, found = built(task, tiny_hub(task, tmp_path / "without")), built(task, with_rows)
    first = found.config.n_vocab
    np.testing.assert_array_equal(found.we[first : first + 3].detach(), special)
    expected = np.random.RandomState(0).randn(3, tiny.N_EMBD) * 0.02
    np.testing.assert_array_equal(drawn.we[first : first + 3].detach(), expected.astype(np.float32))
    assert torch.equal(found.clf.w, drawn.clf.w)  # fresh, as from the released weights


@pytest.mark.parametrize(
    ("words", "parts", "message"),
    [
        (("--n_embd", "32"), {}, r"--n_embd 32: .*config\.json has 16; leave it out"),
        ((), {"afn": "relu"}, r"--afn gelu: .*config\.json has relu; give --afn relu"),
        (("--n_transfer", "3"), {}, r"--n_transfer 3: .* 2 layers, .*; give at most 2"),
        ((), {"positions": np.ones((4, tiny.N_EMBD), "f4")}, r"--n_ctx \d+: .* 4 position rows"),
        ((), {"tokens": np.ones((99, tiny.N_EMBD), "f4")}, r"vocab_size is 99, but .* \d+ tokens"),
    ],
)
def test_training_refuses_what_does_not_fit_a_hub_directory(
    task: tiny.Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    parts: dict[str, Any],
    message: str,
) -> None:
    directory = tiny_hub(task, tmp_path / "hub", **parts)
    assert train.main(train_flags(task, directory, tmp_path, *words)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error


def test_training_says_which_weights_are_missing_beside_all_else(
    task: tiny.Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tiny_hub(task, tmp_path / "hub")
    (directory / "model.safetensors").unlink()
    flags = train_flags(task, directory, tmp_path)
    assert train.main([*flags, "--data_dir", str(tmp_path), "--n_transfer", "-1"]) == 2
    assert "safetensors" not in capsys.readouterr().err  # No shards are needed.
    assert train.main([*flags, "--data_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert "has config.json but no model.safetensors" in error


# ---------------------------------------------------------------------------------- tokenizer


def their_tokenizer(
    transformers: ModuleType, directory: Path, encoder_path: Path, bpe_path: Path
) -> Any:
    """Return transformers' tokenizer of a hub directory that gpt1 wrote with this vocabulary."""
    n_vocab = len(json.loads(encoder_path.read_text("utf-8")))
    parts = replace(random_parts(), tokens=np.zeros((n_vocab, N_EMBD), np.float32))
    parts.write(directory, (encoder_path, bpe_path))
    return transformers.OpenAIGPTTokenizer.from_pretrained(directory)


def texts_of(data_dir: Path) -> list[str]:
    """Return all stories and endings of a data set's three splits."""
    splits = datasets.rocstories(data_dir)
    return [text for s in splits for part in (s.stories, s.endings1, s.endings2) for text in part]


def differences(tokenizer: Any, encoder: TextEncoder, texts: list[str]) -> list[str]:
    """Return the texts for which transformers' tokenizer gives other ids than gpt1's encoder."""
    ours, theirs = encoder.encode(texts, verbose=False), tokenizer(texts)["input_ids"]
    return [text for text, one, other in zip(texts, ours, theirs, strict=True) if one != other]


def has_apostrophe(text: str) -> bool:
    return any(mark in text for mark in "'’´`")


def test_the_tokenizer_loads_and_knows_the_special_tokens(
    transformers: ModuleType, tmp_path: Path
) -> None:
    vocabulary, merges = DEMO / "encoder_bpe_40000.json", DEMO / "vocab_40000.bpe"
    tokenizer = their_tokenizer(transformers, tmp_path / "hub", vocabulary, merges)
    encoder = TextEncoder(vocabulary, merges)
    n_vocab = len(encoder.encoder)
    story, ending = "Anna had a kite.", "She was happy."
    ids = tokenizer(f"_start_ {story} _delimiter_ {ending} _classify_")["input_ids"]
    ours = encoder.encode([story, ending])
    assert ids == [n_vocab, *ours[0], n_vocab + 1, *ours[1], n_vocab + 2]
    assert tokenizer.all_special_tokens == ["<unk>", "_start_", "_delimiter_", "_classify_"]
    assert len(tokenizer) == n_vocab + 3
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == [
        *encoder.decode(ours[0]).split(),
        *encoder.decode(ours[1]).split(),
    ]
    assert tokenizer.unk_token_id == 0  # as in the original: text outside the vocabulary is token 0
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    assert auto(story)["input_ids"] == ours[0]


def test_without_rows_of_special_tokens_the_tokenizer_has_none(
    transformers: ModuleType, tmp_path: Path
) -> None:
    directory = write_directory(tmp_path / "hub", random_parts(special=False))
    tokenizer = transformers.OpenAIGPTTokenizer.from_pretrained(directory)
    assert tokenizer.all_special_tokens == ["<unk>"]
    assert len(tokenizer) == N_VOCAB


def test_tokenizer_differences_on_the_demo(transformers: ModuleType, tmp_path: Path) -> None:
    """The figures in docs/hub.md are right."""
    vocabulary, merges = DEMO / "encoder_bpe_40000.json", DEMO / "vocab_40000.bpe"
    tokenizer = their_tokenizer(transformers, tmp_path / "hub", vocabulary, merges)
    texts = texts_of(ROOT / "data" / "demo")
    differ = differences(tokenizer, TextEncoder(vocabulary, merges), texts)
    assert (len(texts), len(differ)) == (4080, 437)
    assert all(has_apostrophe(text) for text in differ)


def test_tokenizer_differences_on_rocstories(
    transformers: ModuleType, tmp_path: Path, rocstories_dir: Path, released_dir: Path
) -> None:
    """The figures in docs/hub.md are right, and words split at other places are the cause."""
    import ftfy
    from tokenizers import pre_tokenizers

    from gpt1.text_utils.words import EnglishWords, text_standardize

    vocabulary = released_dir / "encoder_bpe_40000.json"
    merges = released_dir / "vocab_40000.bpe"
    tokenizer = their_tokenizer(transformers, tmp_path / "hub", vocabulary, merges)
    encoder, texts = TextEncoder(vocabulary, merges), texts_of(rocstories_dir)
    differ = differences(tokenizer, encoder, texts)
    assert (len(texts), len(differ)) == (11226, 1889)
    assert sum(map(has_apostrophe, differ)) == 1860

    # If gpt1's words are given to it, separated by spaces, all texts but two agree.
    words = EnglishWords("2.0")
    spaced = [" ".join(words.split(text_standardize(ftfy.fix_text(text)))) for text in texts]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    theirs = tokenizer(spaced)["input_ids"]
    ours = encoder.encode(texts, verbose=False)
    still = [text for text, one, other in zip(texts, ours, theirs, strict=True) if one != other]
    assert len(still) == 2
    assert not any(text.isascii() for text in still)  # letters that it changes or drops


# ------------------------------------------------------------------------------- the machine


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc")
@pytest.mark.parametrize("pickled", [False, True])
def test_a_machine_in_trouble_is_not_blamed_on_the_arrays(directory: Path, pickled: bool) -> None:
    path = directory / "model.safetensors"
    if pickled:
        tensors = tensors_of(directory)
        path.unlink()
        path = directory / "pytorch_model.bin"
        torch.save(tensors, path)
    hub._read_tensors(path)  # Import late imports before the test.
    with faults.no_more_open_files(), pytest.raises(Gpt1Error) as caught:
        hub._read_tensors(path)
    assert type(caught.value) is Gpt1Error  # It is not the user's mistake.
    assert str(caught.value).startswith(f"{path}: the parameters cannot be read: Too many open")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")
def test_a_full_disk_is_one_message_and_leaves_the_old_model(directory: Path) -> None:
    before = (directory / "model.safetensors").read_bytes()
    with faults.short_files(1_000), pytest.raises(Gpt1Error) as caught:
        write_directory(directory, random_parts())
    assert str(caught.value).startswith(f"{directory / 'model.safetensors'}: cannot be written: ")
    assert (directory / "model.safetensors").read_bytes() == before
