"""What a loaded model does in Python: generate, judge, predict, and save itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import gpt1
from gpt1.inference import generation, scoring
from gpt1.inference.language_model import LanguageModel
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.settings.groups import SamplingSettings
from gpt1.tasks.targets import ChoiceIndex
from gpt1.weights import locate

TEXTS = [
    "Anna had a kite. It was so so so big. Anna ran.",
    "Ben",
    "Carl lost.",
    *[f"Dora {'ran. ' * n}won." for n in range(8)],
    "It was big. Ben ran.",
]
STORIES = [
    ("Anna had a kite. It was big. Anna ran. Anna lost.", "Anna cried", "Anna smiled."),
    ("Ben had a drum. It was so big. Ben ran. Ben won.", "Ben cried.", "Ben smiled"),
    ("Carl had a cake.", "Carl ran.", "Carl won."),
]
# Sums of some tens of float32 logarithms of size 10, each from sums over 16 to 164 terms.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pretrained(task: tiny.Tiny) -> LanguageModel:
    return gpt1.load_pretrained(task.model_dir)


@pytest.fixture(scope="module")
def tuned(pretrained: LanguageModel) -> LanguageModel:
    """A model with a choice head, none of whose parameters can be a fresh one."""
    n_vocab = pretrained.module.config.n_vocab
    module = DoubleHeadsModel(
        ModelConfig(n_vocab=n_vocab, n_ctx=40, n_embd=16, n_head=4, n_layer=3, afn="swish")
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    encoder = pretrained.text_encoder
    return LanguageModel(
        module=module.eval(), text_encoder=encoder, has_choice_head=True, source="numbers"
    )


def message(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    return str(caught.value)


# Generation


def test_a_text_gives_its_continuation_alone_and_a_list_gives_a_list(
    pretrained: LanguageModel,
) -> None:
    prompts = ["Anna had a", "Ben ran."]
    for options in ({}, {"top_k": 5, "seed": 3}, {"num_beams": 3, "repetition_penalty": 1.5}):
        settings = SamplingSettings(max_new_tokens=9, **options)  # type: ignore[arg-type]
        expected = [each[0].text for each in generation.generate(pretrained, prompts, settings)]
        assert pretrained.generate(prompts, max_new_tokens=9, **options) == expected  # type: ignore[call-overload]
        found = pretrained.generate(prompts[0], max_new_tokens=9, **options)  # type: ignore[call-overload]
        assert found == expected[0]


def test_sampling_follows_its_arguments(pretrained: LanguageModel) -> None:
    def sample(**options: Any) -> str:
        return pretrained.generate("Ben", **options)

    assert sample(temperature=2.0) == sample(temperature=2.0, seed=42, max_new_tokens=40)
    others = [{"seed": 1}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}]
    others += [{"repetition_penalty": 3.0}, {"max_new_tokens": 30}]
    texts = [sample(**{"temperature": 2.0, **changes}) for changes in [{}, *others]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"top_k": 2.5}, "top_k=2.5: must be of type int"),
        ({"num_beams": 2, "top_p": 0.5}, "top_p: beam search does not sample; leave it or num_"),
        ({"max_new_tokens": 64}, "give max_new_tokens=63 or less, or shorten the prompt"),
    ],
)
def test_errors_speak_of_arguments(
    pretrained: LanguageModel, options: dict[str, Any], expected: str
) -> None:
    found = message(pretrained.generate, "Ben", **options)
    assert expected in found
    assert "--" not in found


# Likelihood


def test_likelihoods_are_those_of_transformers(
    pretrained: LanguageModel, transformers: ModuleType, tmp_path: Path
) -> None:
    pretrained.save(tmp_path / "hub")
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "hub")
    assert theirs.config.vocab_size == pretrained.module.config.n_vocab  # no random special rows
    found = pretrained.log_likelihood(TEXTS, per_token=True)
    for text, values in zip(TEXTS, found, strict=True):
        ids = torch.tensor([pretrained.encode(text)])
        with torch.no_grad():
            log_p = theirs(ids).logits[0, :-1].log_softmax(-1)
        expected = log_p.gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert len(values) == ids.shape[1] - 1
        np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE)


def test_a_batch_of_different_lengths_gives_what_single_texts_give(
    tuned: LanguageModel,
) -> None:
    """With special rows and a trained head, which take no part; the sum is that of the tokens."""
    assert len({len(ids) for ids in tuned.encode(TEXTS)}) > 8
    sums, tokens = tuned.log_likelihood(TEXTS), tuned.log_likelihood(TEXTS, per_token=True)
    for text, total, values in zip(TEXTS, sums, tokens, strict=True):
        assert total == math.fsum(values)
        assert tuned.log_likelihood(text) == pytest.approx(total, abs=TOLERANCE)
        single = tuned.log_likelihood(text, per_token=True)
        assert single == pytest.approx(values, abs=TOLERANCE)
    assert np.std(sums) > 1


def test_a_single_token_has_nothing_before_it(pretrained: LanguageModel) -> None:
    assert pretrained.log_likelihood("Ben") == 0
    assert pretrained.log_likelihood(["Ben"], per_token=True) == [[]]
    assert pretrained.log_likelihood([]) == []


def test_a_text_that_cannot_be_judged(pretrained: LanguageModel) -> None:
    assert "text 2: has 0 tokens" in message(pretrained.log_likelihood, ["Ben", " "])
    assert "text 1: has 65 tokens, but must have from 1 to 64" in message(
        pretrained.log_likelihood, "ran " * 65
    )


# Prediction


def test_predictions_are_those_of_scoring(tuned: LanguageModel) -> None:
    split, _ = scoring.encode_examples(tuned, STORIES)
    expected = ChoiceIndex().probabilities(scoring.logits_of(tuned, split))
    chosen, probabilities = tuned.predict(STORIES, probabilities=True)
    np.testing.assert_array_equal(probabilities, expected)
    assert chosen == tuned.predict(STORIES) == expected.argmax(-1).tolist()
    assert all(type(each) is int for each in chosen)
    turned = [(story, two, one) for story, one, two in STORIES]
    assert tuned.predict(turned) == [1 - each for each in chosen]
    assert tuned.predict([]) == []


def test_predictions_cut_as_training_did(tuned: LanguageModel) -> None:
    longer = [(story + " It was so big. Ben ran." * 2, *rest) for story, *rest in STORIES[:2]]
    _, cut = tuned.predict(longer, probabilities=True, n_ctx=30)
    _, whole = tuned.predict(longer, probabilities=True)
    assert (cut != whole).all()


@pytest.mark.parametrize("example", ["Ben", ("Ben ran.", "Ben won."), (1, 2, 3)])
def test_an_example_of_another_form(tuned: LanguageModel, example: Any) -> None:
    found = message(tuned.predict, [STORIES[0], example])
    assert found.startswith("example 2: must be three texts (story, ending1, ending2), but is ")


def test_a_model_that_was_never_trained_to_choose(pretrained: LanguageModel) -> None:
    found = message(pretrained.predict, STORIES)
    assert "was never trained to choose: a fine-tuned model is needed: open the directory" in found
    assert "--" not in found


# Saving


def assert_same(found: LanguageModel, expected: LanguageModel) -> None:
    assert found.module.config == expected.module.config
    for name, parameter in expected.module.named_parameters():
        assert torch.equal(found.module.get_parameter(name), parameter), name
    assert found.text_encoder.encoder == expected.text_encoder.encoder


def test_a_saved_model_opens_by_its_path_alone(
    tuned: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.save(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == set(locate.HUB_FILES)
    monkeypatch.chdir(tmp_path)
    found = gpt1.load_pretrained("mine")
    assert_same(found, tuned)
    assert found.predict(STORIES) == tuned.predict(STORIES)
    assert found.log_likelihood(TEXTS) == tuned.log_likelihood(TEXTS)
    found.save("mine")  # over itself
    assert_same(gpt1.load_pretrained("mine"), tuned)


def test_a_pretrained_model_is_saved_without_what_is_random(
    pretrained: LanguageModel, tmp_path: Path
) -> None:
    pretrained.save(tmp_path)
    found = gpt1.load_pretrained(tmp_path)
    assert_same(found, pretrained)
    assert not found.has_choice_head
    assert not found.has_special_rows
    found.save(tmp_path)
    assert_same(gpt1.load_pretrained(tmp_path), pretrained)


def test_transformers_opens_what_was_saved_and_generates(
    tuned: LanguageModel, transformers: ModuleType, tmp_path: Path
) -> None:
    tuned.save(tmp_path)
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    assert theirs.generation_config.max_length == tuned.module.config.n_ctx
    ids = torch.tensor([tuned.encode("Ben ran.")])
    assert theirs.generate(ids).shape == (1, tuned.module.config.n_ctx)
    with torch.no_grad():
        logits = theirs(ids).logits
        states = tuned.module.sequence_states(ids)
    expected = states @ tuned.module.we[: tuned.module.config.first_position].T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


def test_the_card_tells_sizes_and_its_code_runs(
    tuned: LanguageModel, transformers: ModuleType, tmp_path: Path
) -> None:
    tuned.save(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    for row in ("layers | 3", "width | 16", "attention heads | 4", "activation | swish"):
        assert f"| {row} |" in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        names: dict[str, Any] = {}
        exec(code.replace('"DIR"', repr(str(tmp_path))), names)
        n_layer = names["model"].config.n_layer if "transformers" in code else 3
        assert n_layer == 3


def test_other_files_are_not_mixed_with_a_model(tuned: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "holds files that are no part of a model (notes.txt)" in message(tuned.save, tmp_path)
    assert "notes.txt: is a file; name a directory" in message(tuned.save, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_vocabulary_that_was_removed(
    task: tiny.Tiny, tuned: LanguageModel, tmp_path: Path
) -> None:
    names = (locate.ENCODER_FILE, locate.BPE_FILE)
    pretrained = gpt1.load_pretrained(task.model_dir)
    locate.copy_vocabulary(pretrained.text_encoder.files, tmp_path, names)
    pretrained.text_encoder.files = (tmp_path / names[0], tmp_path / names[1])
    (tmp_path / names[0]).unlink()
    assert str(tmp_path / names[0]) in message(pretrained.save, tmp_path / "out")
    assert not (tmp_path / "out").exists()
