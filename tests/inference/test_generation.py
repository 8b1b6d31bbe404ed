"""Generation gives transformers' texts for any batch, cache and layout of weights.

The models are random, with parameters so large that no two tokens are almost equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt1.inference import generation, search
from gpt1.inference.decoding import Decoder
from gpt1.inference.opened import OpenedModel
from gpt1.model.transformer import Conv1D, DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.settings.groups import SamplingSettings

V, N_CTX, START = 60, 48, 60
CONFIG = ModelConfig(n_vocab=V, n_ctx=N_CTX, n_embd=24, n_head=3, n_layer=2)
PROMPTS = [[5, 9, 2, 33, 5, 17], [1], [40, 41, 42], [7, 7, 7, 58, 0, 12, 3, 21, 30]]


def bold_model(config: ModelConfig = CONFIG) -> DoubleHeadsModel:
    """Make a model with random parameters much larger than usual, so that texts differ."""
    model = DoubleHeadsModel(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 1.0 if name == "we" else 0.05 if name.endswith(".b") else 0.2
            parameter.normal_(float(name.endswith(".g")), std, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DoubleHeadsModel:
    return bold_model()


@pytest.fixture(scope="module")
def peer(model: DoubleHeadsModel) -> Any:
    """Make transformers' model with the same weights, without special tokens in its vocabulary."""
    transformers = pytest.importorskip("transformers")
    peer = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(
            vocab_size=V, n_positions=N_CTX, n_embd=24, n_head=3, n_layer=2, afn="gelu"
        )
    ).eval()
    own = dict(model.named_parameters())
    theirs = peer.transformer
    with torch.no_grad():
        theirs.tokens_embed.weight.copy_(own["we"][:V])
        theirs.positions_embed.weight.copy_(own["we"][V + 3 :])
        for name, parameter in theirs.h.named_parameters():
            name = name.replace("ln_1.weight", "ln_1.g").replace("ln_2.weight", "ln_2.g")
            parameter.copy_(own[f"h.{name.removesuffix('eight').removesuffix('ias')}"])
    peer.tie_weights()
    return peer


def ask_peer(peer: Any, prompt: Sequence[int], n_new: int, **options: Any) -> Any:
    return peer.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def full_logits(model: DoubleHeadsModel, ids: Sequence[int]) -> Tensor:
    """Return logits [T, V] from the model's forward pass over a whole sequence."""
    with torch.no_grad():
        states = model.sequence_states(torch.tensor([ids]))[0]
        return states @ model.we[: model.config.n_vocab].T


def greedy(decoder: Decoder, prompts: Sequence[Sequence[int]], n_new: int, **options: Any) -> Any:
    steps = search.one_by_one(decoder, prompts, n_new, **options)
    return torch.stack(list(steps), 1).tolist()


# ------------------------------------------------------------------- the key-value cache


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("afn", ["gelu", "relu", "swish"])
def test_steps_equal_the_models_forward_pass_over_the_whole(
    afn: str, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr("gpt1.inference.decoding._pack", lambda w: None)
    model = bold_model(replace(CONFIG, n_layer=3, afn=afn))
    rng = np.random.default_rng(0)
    decoder = Decoder(model)
    cache, logits = decoder.prefill(PROMPTS, 20)
    rows = [list(prompt) for prompt in PROMPTS]
    for _ in range(20):
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, full_logits(model, row)[-1], rtol=0, atol=2e-4)
        tokens = torch.from_numpy(rng.integers(0, V + 3, len(rows)))  # special tokens, too
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
        logits = decoder.step(cache, tokens)


def test_bf16_is_near_fp32_and_not_it(model: DoubleHeadsModel) -> None:
    differences = []
    for precision in ("fp32", "bf16"):
        cache, logits = Decoder(model, precision).prefill(PROMPTS, 2)
        for tokens in ([3, 4, 5, 6], [9, 8, 7, 6]):
            logits = Decoder(model, precision).step(cache, torch.tensor(tokens))
        differences.append(logits)
    relative = (differences[0] - differences[1]).norm() / differences[0].norm()
    assert 1e-5 < relative < 0.05
    assert differences[1].dtype == torch.float32


def test_copies_of_a_prompt_are_rows_of_their_own(model: DoubleHeadsModel) -> None:
    decoder = Decoder(model)
    cache, logits = decoder.prefill(PROMPTS[:2], 1, copies=2)
    assert logits.shape == (4, V)
    tokens = torch.tensor([1, 2, 3, 4])
    logits = decoder.step(cache, tokens)
    for row, prompt in enumerate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]):
        expected = full_logits(model, [*prompt, row + 1])[-1]
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=2e-4)


def test_reordered_rows_go_on_from_others(model: DoubleHeadsModel) -> None:
    decoder = Decoder(model)
    cache, _ = decoder.prefill([PROMPTS[2], PROMPTS[3]], 2, copies=2)
    decoder.step(cache, torch.tensor([10, 11, 12, 13]))
    cache.reorder(torch.tensor([1, 1, 3, 2]))
    logits = decoder.step(cache, torch.tensor([20, 21, 22, 23]))
    histories = [(2, 11, 20), (2, 11, 21), (3, 13, 22), (3, 12, 23)]
    for found, (prompt, *tokens) in zip(logits, histories, strict=True):
        expected = full_logits(model, PROMPTS[prompt] + tokens)[-1]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_a_decoder_leaves_the_model_as_it_was() -> None:
    """The decoder's copy is float32, in evaluation mode and without ``Conv1D``."""
    model = bold_model().double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    n_products = sum(isinstance(module, Conv1D) for module in model.modules())
    cache, logits = Decoder(model).prefill(PROMPTS, 1)
    assert logits.dtype == cache.keys.dtype == torch.float32
    assert all(module.training for module in model.modules())
    assert sum(isinstance(module, Conv1D) for module in model.modules()) == n_products == 8
    for name, p in model.named_parameters():
        assert p.requires_grad
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0)


def test_the_last_position_is_used(model: DoubleHeadsModel) -> None:
    prompt = PROMPTS[0]
    ids = prompt + greedy(Decoder(model), [prompt], N_CTX - len(prompt))[0]
    assert len(ids) == N_CTX
    logits = full_logits(model, ids[:-1])
    assert ids[len(prompt) :] == logits[len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("prompts", "n_new"), [([[]], 1), ([[1], []], 1), ([[1] * 40], 9), ([[V + 3]], 1)]
)
def test_the_decoder_refuses_what_it_cannot_read(
    model: DoubleHeadsModel, prompts: list[list[int]], n_new: int
) -> None:
    with pytest.raises(ValueError, match=r"tokens, n_ctx is 48|63 is the id of a position"):
        Decoder(model).prefill(prompts, n_new)


def test_special_and_position_rows_are_never_produced() -> None:
    model = bold_model()
    with torch.no_grad():
        model.we[V:] *= 30
    logits = full_logits(model, PROMPTS[0])
    with torch.no_grad():
        states = torch.linalg.lstsq(model.we[:V], logits.T).solution.T
        assert (states @ model.we.T).argmax(-1).min() >= V  # The softmax prefers these rows.
    decoder = Decoder(model)
    assert max(map(max, greedy(decoder, PROMPTS, 30))) < V
    u = search.draws(0, range(4), range(8), 30)
    assert max(map(max, greedy(decoder, PROMPTS, 30, u=u, temperature=5.0))) < V
    assert search.beam_search(decoder, PROMPTS, 30, num_beams=3).tokens.max() < V


# ------------------------------------------------------------------ equal to transformers


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_greedy_equals_transformers(model: DoubleHeadsModel, peer: Any, penalty: float) -> None:
    found = greedy(Decoder(model), PROMPTS, 30, repetition_penalty=penalty)
    for prompt, ids in zip(PROMPTS, found, strict=True):
        theirs = ask_peer(peer, prompt, 30, repetition_penalty=penalty).sequences
        assert prompt + ids == theirs[0].tolist()
    assert len({tuple(ids) for ids in found}) == len(PROMPTS)
    assert len(set(found[0])) > 3


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("num_beams", "penalty"), [(3, 1.0), (4, 1.3)])
def test_beams_equal_transformers(
    model: DoubleHeadsModel, peer: Any, num_beams: int, penalty: float, length_penalty: float
) -> None:
    n_new = 18
    options = SamplingSettings(
        max_new_tokens=n_new,
        num_beams=num_beams,
        num_samples=num_beams,
        repetition_penalty=penalty,
        length_penalty=length_penalty,
    )
    opened = numbers_as_text(model)
    found = list(generation.continuations(opened, PROMPTS, options))
    for prompt, beams in zip(PROMPTS, found, strict=True):
        theirs = ask_peer(
            peer,
            prompt,
            n_new,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            repetition_penalty=penalty,
            length_penalty=length_penalty,
        )
        assert [prompt + beam.ids for beam in beams] == theirs.sequences.tolist()
        scores = theirs.sequences_scores.tolist()
        assert [beam.score for beam in beams] == pytest.approx(scores, rel=1e-4)


def test_beams_are_not_greedy_and_likelier(model: DoubleHeadsModel) -> None:
    decoder = Decoder(model)
    found = search.beam_search(decoder, PROMPTS, 18, num_beams=4)
    lines = greedy(decoder, PROMPTS, 18)
    assert found.tokens[:, 0].tolist() != lines
    for prompt, beams, totals, line in zip(PROMPTS, *found, lines, strict=True):
        log_probs = [
            full_logits(model, prompt + ids).log_softmax(-1)[len(prompt) - 1 : -1]
            for ids in [*beams.tolist(), line]
        ]
        sums = [
            each.gather(1, torch.tensor(ids)[:, None]).sum().item()
            for each, ids in zip(log_probs, [*beams.tolist(), line], strict=True)
        ]
        assert totals.tolist() == pytest.approx(sums[:-1], rel=1e-4)
        assert sums[:-1] == sorted(sums[:-1], reverse=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.3, 0.9, 1.0])
def test_probabilities_equal_transformers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.randn(7, V, generator=torch.Generator().manual_seed(3)).double() * 2
    scores[0, :10] = 4.0  # equal scores at the limit of top_k
    seen = torch.randint(0, V, (7, 9), generator=torch.Generator().manual_seed(4))
    chain = [
        warpers.RepetitionPenaltyLogitsProcessor(1.3),
        warpers.TemperatureLogitsWarper(temperature),
    ]
    chain += [] if top_k is None else [warpers.TopKLogitsWarper(top_k)]
    chain += [] if top_p is None or top_p == 1 else [warpers.TopPLogitsWarper(top_p)]
    expected = scores
    for warp in chain:
        expected = warp(seen, expected)
    marks = torch.zeros(7, V, dtype=torch.bool).scatter(1, seen, True)
    penalised = search.penalise(scores, marks, 1.3)
    found = search.probabilities(penalised, temperature, top_k, top_p)
    torch.testing.assert_close(found, expected.softmax(-1), rtol=0, atol=1e-6)
    assert torch.equal(found == 0, expected == -math.inf)


# ------------------------------------------------------------------------------- sampling


def test_pick_takes_the_token_that_u_falls_on() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]]).double()
    below_one = 1 - 2**-53
    for u, token in ((0, 1), (0.499, 1), (0.5, 3), (0.749, 3), (0.75, 4), (below_one, 4)):
        assert search.pick(p, torch.tensor([u], dtype=torch.float64)).tolist() == [token], u


def test_each_step_draws_by_its_own_number(model: DoubleHeadsModel) -> None:
    u = search.draws(3, [0], range(2), 15)
    found = greedy(Decoder(model), PROMPTS[:1], 15, u=u, temperature=1.5, top_p=0.9)
    for row, numbers in zip(found, u, strict=True):
        ids = list(PROMPTS[0])
        for number in numbers:
            p = search.probabilities(full_logits(model, ids)[-1:], 1.5, None, 0.9)
            ids += search.pick(p, torch.tensor([number])).tolist()
        assert PROMPTS[0] + row == ids


def test_frequencies_are_the_probabilities(model: DoubleHeadsModel) -> None:
    n, prompt = 4000, PROMPTS[0]
    options = SamplingSettings(max_new_tokens=1, temperature=1.5, top_k=12, num_samples=n, seed=5)
    found = list(
        generation.continuations(numbers_as_text(model), [prompt], options, batch_size=256)
    )
    counts = np.bincount([one.ids[0] for one in found[0]], minlength=V)
    p = search.probabilities(full_logits(model, prompt)[-1:], 1.5, 12)[0].numpy()
    possible = p > 0
    assert not counts[~possible].any()
    expected = n * p[possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert possible.sum() == 12
    assert chi_square < 37.4  # 11 degrees of freedom: exceeded once in 10,000


def test_draws_depend_on_seed_prompt_and_sample_alone() -> None:
    whole = search.draws(7, range(3), range(4), 6)
    assert whole.shape == (12, 6)
    assert (whole >= 0).all()
    assert (whole < 1).all()
    assert len(np.unique(whole)) == whole.size
    np.testing.assert_array_equal(search.draws(7, [2], [1], 6), whole[9:10])
    np.testing.assert_array_equal(search.draws(7, [2], [1], 3), whole[9:10, :3])
    assert not np.isin(search.draws(8, range(3), range(4), 6), whole).any()


# --------------------------------------------------------------- texts, batches and options


class _Numbers:
    """A text encoder whose words are token ids."""

    def __init__(self) -> None:
        self.encoder = {str(i): i for i in range(V)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def numbers_as_text(model: DoubleHeadsModel) -> OpenedModel:
    encoder: Any = _Numbers()
    return OpenedModel(module=model, text_encoder=encoder, has_choice_head=False, source="numbers")


CHOICES = {
    "greedy": {},
    "sampled": {"temperature": 2.0, "top_p": 0.95, "num_samples": 3},
    "beams": {"num_beams": 3, "num_samples": 2, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_prompt_gives_the_same_alone_and_in_any_batch(
    model: DoubleHeadsModel, choice: str
) -> None:
    opened = numbers_as_text(model)
    options = SamplingSettings(max_new_tokens=20, **CHOICES[choice])
    together = list(generation.continuations(opened, PROMPTS, options))
    assert [len(each) for each in together] == [options.num_samples] * len(PROMPTS)
    for batch_size in (1, 2, 4, 7):
        again = generation.continuations(opened, PROMPTS, options, batch_size=batch_size)
        assert ids_of(again) == ids_of(together), batch_size
    if choice != "sampled":
        alone = [next(generation.continuations(opened, [p], options)) for p in PROMPTS]
        assert ids_of(alone) == ids_of(together)
    else:  # The number of a prompt matters, the other prompts do not.
        others = [[3, 3], PROMPTS[1], [9], PROMPTS[3]]
        changed = list(generation.continuations(opened, others, options))
        assert ids_of(changed[1::2]) == ids_of(together[1::2])
        assert ids_of(changed[::2]) != ids_of(together[::2])


def ids_of(found: Any) -> list[list[list[int]]]:
    return [[one.ids for one in each] for each in found]


def test_seeds(model: DoubleHeadsModel) -> None:
    opened = numbers_as_text(model)

    def texts(seed: int) -> list[str]:
        options = SamplingSettings(max_new_tokens=12, temperature=1.5, num_samples=4, seed=seed)
        return [one.text for one in generation.generate(opened, ["5 9 2"], options)[0]]

    assert texts(0) == texts(0)
    assert len(set(texts(0) + texts(1))) == 8


def test_top_k_1_and_temperature_0_are_greedy(model: DoubleHeadsModel) -> None:
    opened = numbers_as_text(model)
    lines = ids_of(generation.generate(opened, ["5 9 2", "1"]))
    for extra in ({"top_k": 1}, {"temperature": 0.0}, {"top_p": 0.0}, {"temperature": 1e-300}):
        assert (
            ids_of(generation.generate(opened, ["5 9 2", "1"], SamplingSettings(**extra))) == lines
        )


def test_one_decoder_serves_many_calls(model: DoubleHeadsModel) -> None:
    opened, decoder = numbers_as_text(model), Decoder(model)
    first, _, again = (
        generation.generate(opened, [text], decoder=decoder) for text in ("5 9", "1", "5 9")
    )
    assert first == again == generation.generate(opened, ["5 9"])


def test_a_start_token_alone_is_a_prompt(model: DoubleHeadsModel) -> None:
    options = SamplingSettings(max_new_tokens=5, repetition_penalty=1.3)
    found = generation.generate(numbers_as_text(model), ["", "8"], options, start_token=True)
    expected = greedy(Decoder(model), [[START], [START, 8]], 5, repetition_penalty=1.3)
    assert [each[0].ids for each in found] == expected


def test_streamed_pieces_are_the_text(model: DoubleHeadsModel) -> None:
    opened = numbers_as_text(model)
    options = SamplingSettings(max_new_tokens=9, temperature=1.3)
    pieces = list(generation.stream(opened, "5 9", options))
    whole = generation.generate(opened, ["5 9"], options)[0][0]
    assert len(pieces) == 9
    assert "5 9" + "".join(pieces) == f"5 9 {whole.text}"
    with_start = list(generation.stream(opened, "5 9", options, start_token=True))
    assert len(with_start) == 9
    assert with_start != pieces
    with pytest.raises(ValueError, match="2 beams"):
        generation.stream(opened, "5 9", SamplingSettings(num_beams=2))
    with pytest.raises(InputError, match="the prompt: has no tokens"):
        generation.stream(opened, "")


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"max_new_tokens": 0}, ["max_new_tokens=0: must be at least 1"]),
        ({"temperature": math.nan}, ["temperature=nan: must be a finite number"]),
        ({"top_p": 1.5, "top_k": 0}, ["2 problems", "top_p=1.5", "top_k=0"]),
        ({"repetition_penalty": 0}, ["repetition_penalty=0: must be from 0.01 to 100"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"num_samples": 2}, ["num_samples=2: greedy", "add temperature=1"]),
        ({"num_samples": 2, "temperature": 0}, ["num_samples=2: greedy"]),
        ({"length_penalty": 2}, ["length_penalty: scores beams"]),
        ({"num_beams": 2, "num_samples": 3}, ["raise num_beams"]),
        ({"num_beams": 2, "top_k": 3, "top_p": 1}, ["top_k: beam", "top_p: beam"]),
    ],
)
def test_options_that_cannot_be(
    model: DoubleHeadsModel, values: dict[str, Any], messages: list[str]
) -> None:
    opened, options = numbers_as_text(model), SamplingSettings(**values)
    for call in (
        lambda: generation.generate(opened, ["5 9"], options),
        lambda: generation.stream(opened, "5 9", options),
    ):
        with pytest.raises(InputError) as caught:
            call()
        for message in messages:
            assert message in str(caught.value)
