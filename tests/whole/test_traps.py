"""Deviations of other ports from the original, with one named test each.

Each test shows three things: gpt1's result, that it is right (the running original's number, or
the plain transcription's), and that the deviation, put into the transcription, gives something
else by far more than the tolerance. Put into ``gpt1`` it therefore makes its test fail.

The optimizer's traps are in ``test_opt.py``, the tokenizer's in ``test_text_utils.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import released
import torch
import torch.nn.functional as F
from cloze import EncodedCloze, lay_out
from padded import Padded
from torch import Tensor

from gpt1.batches.packing import pack
from gpt1.datasets import TASKS
from gpt1.datasets.story_cloze import ROCSTORIES, Cloze
from gpt1.inference.prediction import mean_cross_entropy, predict_logits
from gpt1.model.dropout import dropout
from gpt1.model.transformer import DoubleHeadsModel, LayerNorm, Losses, ModelConfig
from gpt1.runtime.ranks import Ranks
from gpt1.settings.training import Settings
from gpt1.tasks import ACCURACY, ChoiceIndex, Example, Splits
from gpt1.tasks.layouts import max_part_length
from gpt1.text_utils.special import SpecialTokens
from gpt1.training import prepare
from gpt1.training.sources import Sources

TOLERANCE = 1e-5  # of float32 losses and logits at their usual sizes
FAR = 100  # A deviation must differ by this many times the tolerance.
NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), 0.0)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


class Case(reference.Case):
    """A recorded case, with the results of gpt1 and of the transcription for its first update."""

    def ours(self, share_prefix: bool = False) -> Losses:
        batch = pack(self.arrays(0).encoded(), self.config.clf_token, share_prefix=share_prefix)
        losses = self.model().losses(batch, self.cfg["lm_coef"])
        assert losses.lm is not None
        return Losses(losses.total.detach(), losses.clf.detach(), losses.lm.detach())

    def transcription(self) -> Losses:
        arrays = self.arrays(0)
        params = reference.params_of(self.model())
        out = reference.run(params, arrays, self.config)
        clf = reference.clf_losses(out.logits, torch.from_numpy(arrays.Y).long())
        return Losses(reference.total_loss(clf, out.lm, self.cfg["lm_coef"]), clf, out.lm)

    def recorded(self) -> Losses:
        clf = torch.from_numpy(self["clf_losses"][0])
        lm = torch.from_numpy(self["lm_losses"][0]).reshape(-1, 2)
        return Losses(clf.mean() + self.cfg["lm_coef"] * lm.mean(), clf, lm)


@pytest.fixture
def base(golden_dir: Path) -> Case:
    return Case(golden_dir, "base")


def distance(one: Tensor, other: Tensor) -> float:
    return (one.detach().double() - other.detach().double()).abs().max().item()


def assert_only_the_rule_is_right(
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    part: str,
    rule: str,
    deviation: object,
    factor: float = FAR,
) -> None:
    """Check that gpt1 and the rule give the recorded ``part`` of the losses, the deviation not.

    Args:
        part: ``clf``, ``lm`` or ``total``.
        rule: name of the function or constant of ``reference`` that the deviation replaces.
        factor: the least difference that the deviation makes, in multiples of the tolerance.
    """
    recorded = getattr(case.recorded(), part)
    for share_prefix in (False, True):
        assert distance(getattr(case.ours(share_prefix), part), recorded) < TOLERANCE
    assert distance(getattr(case.transcription(), part), recorded) < TOLERANCE
    monkeypatch.setattr(reference, rule, deviation)
    assert distance(getattr(case.transcription(), part), recorded) > factor * TOLERANCE


# ------------------------------------------------------------------------------ the losses


def summed(clf: Tensor, lm: Tensor, lm_coef: float) -> Tensor:
    return clf.sum() + lm_coef * lm.sum()


def token_mean(ce: Tensor, M: Tensor) -> Tensor:
    mask = M[:, 1:]
    return ((mask * ce).sum() / mask.sum()).expand(len(ce))


def over_padding(ce: Tensor, M: Tensor) -> Tensor:
    return ce.mean(-1)


def tokens_only(we: Tensor) -> Tensor:
    """Return the rows of the vocabulary of 50 tokens and of the three special tokens."""
    return we[:53]


@pytest.mark.golden
def test_loss_is_not_a_sum(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over B stories and 2B sequences doubles the LM loss's weight: lm_coef 1.0 in effect."""
    B = len(base.arrays(0).X)
    recorded = base.recorded()
    in_effect = summed(recorded.clf, recorded.lm, 0.5) / B
    assert distance(in_effect, recorded.clf.mean() + 1.0 * recorded.lm.mean()) < TOLERANCE
    assert_only_the_rule_is_right(monkeypatch, base, "total", "total_loss", summed)
    assert distance(in_effect, recorded.total) > FAR * TOLERANCE


@pytest.mark.golden
def test_lm_coef_in_effect_is_the_flags(base: Case) -> None:
    """The gradients of the first update are neither a sum's nor those of a doubled lm_coef."""
    recorded, tolerance = base.values("grad0"), base.gradient_tolerance()

    def worst(lm_coef: float) -> float:
        """Return the largest distance of a gradient, in units of its tolerance."""
        model = base.model()
        for tower in base.towers(0):
            batch = pack(tower.encoded(), base.config.clf_token, share_prefix=False)
            (model.losses(batch, lm_coef).total / base.cfg["n_gpu"]).backward()
        named = dict(model.named_parameters())
        return max(distance(named[n].grad, recorded[n]) / tolerance[n] for n in recorded)

    assert base.cfg["lm_coef"] == 0.5
    assert worst(0.5) < 1
    assert worst(1.0) > FAR


@pytest.mark.golden
def test_lm_loss_is_not_a_plain_mean_over_tokens(
    base: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sequence has the same weight, whatever its length."""
    assert_only_the_rule_is_right(monkeypatch, base, "total", "lm_mean", token_mean)


@pytest.mark.golden
def test_lm_loss_does_not_count_padding(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_only_the_rule_is_right(monkeypatch, base, "lm", "lm_mean", over_padding)


@pytest.mark.golden
def test_position_rows_are_in_the_softmax(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.config.n_vocab + base.config.n_special == 53
    assert_only_the_rule_is_right(monkeypatch, base, "lm", "output_rows", tokens_only)


@pytest.mark.golden
def test_without_lm_coef_no_lm_gradient_is_left(golden_dir: Path) -> None:
    """``lm_coef`` 0 leaves the LM loss out: the recorded gradient of unused rows is zero."""
    case = Case(golden_dir, "no_lm")
    model = case.model()
    for tower in case.towers(0):
        batch = pack(tower.encoded(), case.config.clf_token, share_prefix=False)
        losses = model.losses(batch, case.cfg["lm_coef"])
        assert losses.lm is None
        (losses.total / case.cfg["n_gpu"]).backward()
    recorded = case.values("grad0")["we"]
    unused = (recorded == 0).all(-1)
    assert unused.any()
    assert model.we.grad is not None
    assert not model.we.grad[unused].any()
    batch = pack(case.arrays(0).encoded(), case.config.clf_token, share_prefix=False)
    deviant = case.model()
    deviant.losses(batch, 0.5).total.backward()
    assert deviant.we.grad is not None
    assert (deviant.we.grad[unused] != 0).any(-1).all()


# --------------------------------------------------------------------------- one whole update

OF_THE_LOSS: dict[str, tuple[str, object]] = {
    "loss as a sum": ("total_loss", summed),
    "lm_coef of 1": ("total_loss", lambda clf, lm, lm_coef: clf.mean() + lm.mean()),
    "language-model loss as the mean over all tokens": ("lm_mean", token_mean),
    "language-model loss over padding": ("lm_mean", over_padding),
    "position rows left out of the softmax": ("output_rows", tokens_only),
    "exact GELU": ("ACTIVATIONS", {"gelu": F.gelu}),
    "gradients of one tower alone": ("towers", None),
}


@pytest.mark.golden
@pytest.mark.parametrize("deviation", ["none", *reference.OPTIMIZER_DEVIATIONS, *OF_THE_LOSS])
def test_one_update_tells_deviations_apart(
    base: Case, monkeypatch: pytest.MonkeyPatch, deviation: str
) -> None:
    """The tolerance of ``test_one_update_is_the_originals`` is a tenth of any of these at most."""
    expected, tolerance = base.after_one_update(), base.one_update_tolerance()
    of_optimizer = deviation if deviation in reference.OPTIMIZER_DEVIATIONS else ""
    if deviation == "gradients of one tower alone":
        first = base.towers(0)[0]
        monkeypatch.setattr(base, "towers", lambda update: [first, first])
    elif deviation in OF_THE_LOSS:
        monkeypatch.setattr(reference, *OF_THE_LOSS[deviation])
    start = [p.numpy() for p in base.values("init").values()]
    gradient = [g.numpy() for g in base.gradient().values()]
    after = reference.transcribe(start, [gradient], base.optimizer(), of_optimizer)
    off = max(
        ((torch.from_numpy(p) - expected[name]).abs() / tolerance[name]).max().item()
        for name, p in zip(expected, after, strict=True)
    )
    if deviation == "none":
        assert off < 1
    else:
        assert off > 10


# --------------------------------------------------------------------------------- the layers


@pytest.mark.golden
def test_scores_are_scaled_by_the_head_size(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_only_the_rule_is_right(
        monkeypatch, base, "clf", "attention_scale", lambda head_size, width: width**-0.5
    )


@pytest.mark.golden
def test_scores_are_scaled_at_all(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_only_the_rule_is_right(
        monkeypatch, base, "clf", "attention_scale", lambda head_size, width: 1.0
    )


@pytest.mark.golden
def test_norms_come_after_the_sums(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def pre_norm(
        x: Tensor, params: reference.Params, name: str, n_head: int, afn: str, drop: reference.Drop
    ) -> Tensor:
        def norm(x: Tensor, which: str) -> Tensor:
            return reference.layer_norm(x, params[f"{name}/{which}/g"], params[f"{name}/{which}/b"])

        n = x + reference.attention(norm(x, "ln_1"), params, f"{name}/attn", n_head, drop)
        return n + reference.mlp(norm(n, "ln_2"), params, f"{name}/mlp", afn, drop)

    assert_only_the_rule_is_right(monkeypatch, base, "clf", "block", pre_norm)


@pytest.mark.golden
def test_embeddings_are_not_scaled(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(we: Tensor, X: Tensor) -> Tensor:
        return we[X[..., 0]] * we.shape[1] ** 0.5 + we[X[..., 1]]

    assert_only_the_rule_is_right(monkeypatch, base, "clf", "embed", scaled)


@pytest.mark.golden
def test_positions_are_added(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_only_the_rule_is_right(monkeypatch, base, "clf", "embed", lambda we, X: we[X[..., 0]])


def with_activation(
    config: ModelConfig, activation: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 logits of gpt1, of the transcription, and of it with this activation."""
    config = replace(config, afn="gelu")
    model = reference.random_model(config)
    arrays = stories_of(config)
    batch = pack(arrays.encoded(), config.clf_token, share_prefix=False)
    params = reference.params_of(model)
    right = reference.run(params, arrays, config).logits
    monkeypatch.setitem(reference.ACTIVATIONS, "gelu", activation)
    return model.clf_logits(batch), right, reference.run(params, arrays, config).logits


def stories_of(config: ModelConfig) -> Padded:
    split = EncodedCloze(
        [[1, 2, 3, 0], [4, 4], [2, 0, 1]],
        [[2, 2, 1], [3, 0, 2, 4], [0]],
        [[2], [3, 1], [1, 4, 2]],
        [0, 1, 1],
    )
    special = SpecialTokens.after(config.n_vocab)
    return lay_out(split, special, length=config.n_ctx)


@pytest.mark.golden
def test_gelu_is_not_the_exact_one(base: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, right, exact = with_activation(base.config, F.gelu, monkeypatch)
    assert distance(ours, right) < 1e-10
    assert distance(exact, right) > 1e-6
    # In float32 too the recorded gradients tell the two apart.
    model, recorded = base.model(), base.values("grad0")["h.1.mlp.c_fc.w"]
    for layer in model.h:
        layer.mlp.activation = F.gelu
    for tower in base.towers(0):
        batch = pack(tower.encoded(), base.config.clf_token, share_prefix=False)
        (model.losses(batch, 0.5).total / base.cfg["n_gpu"]).backward()
    assert distance(model.h[1].mlp.c_fc.w.grad, recorded) > 10 * 1e-6


@pytest.mark.parametrize(
    ("deviation", "of_norm"),
    [
        ("beside the root", lambda x: x.std(unbiased=False) + 1e-5),
        ("1e-12", lambda x: (x.var(unbiased=False) + 1e-12).sqrt()),
        ("n - 1 in the variance", lambda x: (x.var(unbiased=True) + 1e-5).sqrt()),
    ],
)
def test_layer_norm_epsilon_is_1e_5_under_the_root(
    deviation: str, of_norm: Callable[[Tensor], Tensor]
) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.float64) * 2e-3
    norm = LayerNorm(4).double()
    with torch.no_grad():
        norm.g.fill_(1)
        norm.b.zero_()
    right = reference.layer_norm(x, norm.g, norm.b)
    assert distance(norm(x), right) < 1e-12
    assert distance((x - x.mean()) / of_norm(x), right) > 1e-2, deviation


def test_mask_is_not_1e4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token does not see later tokens even if all its other scores are below -1e4."""
    config = ModelConfig(n_vocab=6, n_ctx=16, n_embd=12, n_head=3, n_layer=2, **NO_DROPOUT)
    model = reference.random_model(config)
    for layer in model.h:
        with torch.no_grad():
            # q and k as large as this and opposed in every head: scores of about -1e5.
            layer.attn.c_attn.b[:12] += 300
            layer.attn.c_attn.b[12:24] -= 300
    arrays = stories_of(config)
    params = reference.params_of(model)
    right = reference.run(params, arrays, config)
    for share_prefix in (False, True):
        batch = pack(arrays.encoded(), config.clf_token, share_prefix=share_prefix)
        assert distance(model.clf_logits(batch), right.logits) < 1e-9
        losses = model.losses(batch, 0.5)
        assert losses.lm is not None
        assert distance(losses.lm, right.lm) < TOLERANCE
    monkeypatch.setattr(reference, "MASKED", -1e4)
    deviant = reference.run(params, arrays, config)
    assert distance(deviant.logits, right.logits) > 0.1
    assert distance(deviant.lm, right.lm) > FAR * TOLERANCE


def test_the_first_classify_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one, which no story of the data has, would be the last token."""
    config = ModelConfig(n_vocab=6, n_ctx=16, n_embd=12, n_head=3, n_layer=2, **NO_DROPOUT)
    model, arrays = reference.random_model(config), stories_of(config)
    arrays.X[0, :, 2, 0] = config.clf_token  # within the common prefix
    arrays.X[1, 0, 5, 0] = config.clf_token  # within an ending
    params = reference.params_of(model)
    right = reference.run(params, arrays, config).logits
    for share_prefix in (False, True):
        batch = pack(arrays.encoded(), config.clf_token, share_prefix=share_prefix)
        assert distance(model.clf_logits(batch), right) < 1e-10

    def last(tokens: Tensor, clf_token: int) -> Tensor:
        n = tokens.shape[-1]
        return n - 1 - (tokens == clf_token).flip(-1).int().argmax(-1)

    monkeypatch.setattr(reference, "classify_position", last)
    deviant = reference.run(params, arrays, config).logits
    assert distance(deviant[0], right[0]) > 1e-2
    assert distance(deviant[1], right[1]) > 1e-2
    assert distance(deviant[2], right[2]) == 0


# ------------------------------------------------------------------------------------ dropout

RATE = 0.4


def in_training(**rates: float) -> tuple[DoubleHeadsModel, Padded]:
    config = ModelConfig(
        n_vocab=6, n_ctx=16, n_embd=12, n_head=3, n_layer=1, **(NO_DROPOUT | rates)
    )
    return reference.random_model(config).train(), stories_of(config)


def test_embedding_dropout_is_not_per_token_occurrence() -> None:
    """One mask on the matrix: without position rows, equal tokens enter the first layer equal."""
    model, arrays = in_training(embd_pdrop=RATE)
    with torch.no_grad():
        model.we[model.config.clf_token + 1 :] = 0
    batch = pack(arrays.encoded(), model.config.clf_token, share_prefix=False)
    entered: list[Tensor] = []
    model.h[0].register_forward_pre_hook(lambda _, given: entered.append(given[0].detach()))
    model.hidden_states(batch)

    def spread(x: Tensor) -> float:
        """Return the largest difference between two occurrences of one token."""
        per_token = (x[batch.tokens == token] for token in batch.tokens.unique())
        return max((rows - rows[0]).abs().max().item() for rows in per_token)

    assert spread(entered[0]) == 0
    assert (entered[0] == 0).any()
    per_occurrence = F.dropout(model.we[batch.tokens], RATE)
    assert spread(per_occurrence) > 0.1


def test_embedding_dropout_reaches_the_output_matrix() -> None:
    """The LM head multiplies by the same masked matrix, not by ``we`` as it is."""
    model, arrays = in_training(embd_pdrop=RATE)
    torch.manual_seed(3)
    dropped = dropout(model.we.detach(), RATE, training=True)
    params = reference.params_of(model)

    def drop(place: str, x: Tensor) -> Tensor:
        return dropped if place == "we" else x

    right = reference.run(params, arrays, model.config, drop)
    torch.manual_seed(3)
    losses = model.losses(pack(arrays.encoded(), model.config.clf_token, share_prefix=False), 0.5)
    assert losses.lm is not None
    assert distance(losses.lm, right.lm) < TOLERANCE

    tokens = torch.from_numpy(arrays.X[..., 0]).long().flatten(0, 1)
    M = torch.from_numpy(arrays.M).double().flatten(0, 1)
    input_only = reference.lm_losses(right.h.flatten(0, 1), params["we"], tokens, M)
    assert distance(input_only.reshape(-1, 2), right.lm) > FAR * TOLERANCE


def test_classifier_masks_of_a_storys_choices_are_not_separate() -> None:
    """Equal states give equal logits within a story; masks differ between stories."""
    model, _ = in_training(clf_pdrop=RATE)
    D = model.config.n_embd
    h = torch.linspace(-1, 1, D, dtype=torch.float64).expand(50, 2, D)
    logits = model.clf(h).detach()
    assert distance(logits[:, 0], logits[:, 1]) < 1e-12
    assert len(logits[:, 0].unique()) > 25
    separate = (F.dropout(h, RATE) @ model.clf.w + model.clf.b).squeeze(-1)
    assert distance(separate[:, 0], separate[:, 1]) > 0.1


# ------------------------------------------------------------------------- where it starts from


def test_classifier_bias_is_not_drawn() -> None:
    """It starts at 0 like every bias; random draws from N(0, 1) would not."""
    for seed in range(3):
        model = DoubleHeadsModel(ModelConfig(n_vocab=6, n_ctx=8, n_embd=12, n_head=3, n_layer=1))
        model.init_parameters(torch.Generator().manual_seed(seed))
        assert model.clf.b.item() == 0


def test_classifier_weights_have_the_spread_of_all_others() -> None:
    """It is 0.02. The spread of 768 draws is right within 13 %, which excludes 0.01 and 0.03."""
    model = DoubleHeadsModel(ModelConfig(n_vocab=6, n_ctx=8, n_layer=0))
    model.init_parameters(torch.Generator().manual_seed(0))
    assert model.clf.w.numel() == 768
    assert abs(model.clf.w.std().item() / 0.02 - 1) < 5 / (2 * 768) ** 0.5


SIZES = ModelConfig(n_vocab=11, n_ctx=8, n_embd=12, n_head=3, n_layer=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A checkpoint of three layers whose values, of spread 1, no fresh parameter can be."""
    directory = tmp_path_factory.mktemp("checkpoint")
    released.write_released(
        directory, n_embd=12, n_layer=3, n_ctx=16, n_vocab=11, n_head=3, std=1.0
    )
    return Sources(
        data_dir=directory,
        model_dir=directory,
        encoder_path=directory / "encoder",
        bpe_path=directory / "merges",
        demo=False,
    )


def built(checkpoint: Sources, n_transfer: int) -> DoubleHeadsModel:
    stream = np.random.RandomState(42)
    return prepare.build_model(Settings(n_transfer=n_transfer), checkpoint, SIZES, stream)


@pytest.mark.parametrize("n_transfer", [-1, 0, 1, 2, 3])
def test_n_transfer_is_not_ignored(checkpoint: Sources, n_transfer: int) -> None:
    model = built(checkpoint, n_transfer)
    for i, layer in enumerate(model.h):
        from_checkpoint = [bool(p.abs().max() > 0.5) for p in (layer.attn.c_attn.w, layer.ln_1.b)]
        assert from_checkpoint == [i < n_transfer] * 2
    tokens, positions = model.we[: SIZES.n_vocab], model.we[-SIZES.n_ctx :]
    for rows in (tokens, positions):
        assert (rows.std().item() > 0.5) == (n_transfer >= 0)


def test_we_is_tokens_then_special_rows_then_positions(checkpoint: Sources) -> None:
    """The file has positions first; the special rows are the run's first random numbers."""
    model = built(checkpoint, 0)
    flat = np.concatenate([np.load(checkpoint.model_dir / f"params_{i}.npy") for i in range(10)])
    positions = flat[: 16 * 12].reshape(16, 12)
    tokens = flat[16 * 12 : 27 * 12].reshape(11, 12)
    special = (np.random.RandomState(42).randn(3, 12) * 0.02).astype(np.float32)
    right = torch.from_numpy(np.concatenate([tokens, special, positions[:8]]))
    assert distance(model.we, right) == 0
    as_in_the_file = torch.from_numpy(np.concatenate([positions[:8], tokens, special]))
    assert distance(as_in_the_file, right) > 0.1


# ----------------------------------------------------------------------- data and reports


class NumbersAsText:
    """Replaces the tokenizer: a text consists of its ids as numbers."""

    def __init__(self, encoder_path: Path, bpe_path: Path, **options: object) -> None:
        self.encoder = {str(i): i for i in range(6)}

    def encode(self, texts: list[str], verbose: bool = True) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]


def read_instead(monkeypatch: pytest.MonkeyPatch, *splits: Cloze) -> None:
    """Let a run read these splits in place of files."""
    train, valid, test = (
        [Example(texts, label, "story 1") for *texts, label in zip(*split, strict=True)]
        for split in splits
    )
    found = Splits(train, valid, {"ROCStories": test})
    task = replace(ROCSTORIES, read=lambda data_dir: found)
    monkeypatch.setitem(TASKS, "rocstories", task)


def test_parts_are_cut_by_the_flag_and_not_by_the_datas_own_length(
    checkpoint: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``max_len`` comes from --n_ctx 512 (254), although the data's longest choice makes T 77."""
    split = Cloze(["1 " * 60, "2 " * 3], ["3 " * 14, "1"], ["2 " * 5, "0 0"], [0, 1])
    read_instead(monkeypatch, split, split, split)
    monkeypatch.setattr(prepare, "TextEncoder", NumbersAsText)
    task = prepare.load_data(Settings(n_ctx=512), checkpoint, verbose=False)
    assert task.n_ctx == 77
    for split in (task.train, task.valid, task.predicted["ROCStories"]):
        assert split.lengths.tolist() == [[77, 68], [7, 8]]
    # Cut by the length of the data itself, 36 tokens of the long story would be left.
    assert max_part_length(task.n_ctx) == 36


def test_words_are_split_by_the_rules_of_the_flag(
    checkpoint: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is spaCy 2.0, which split the training text of the released model."""
    asked: list[object] = []

    class Recorder(NumbersAsText):
        def __init__(self, encoder_path: Path, bpe_path: Path, **options: object) -> None:
            super().__init__(encoder_path, bpe_path)
            asked.append(options["spacy_rules"])

    split = Cloze(["1"], ["2"], ["3"], [0])
    read_instead(monkeypatch, split, split, split)
    monkeypatch.setattr(prepare, "TextEncoder", Recorder)
    for settings in (Settings(), Settings(spacy_rules="installed")):
        prepare.load_data(settings, checkpoint, verbose=False)
    assert asked == ["2.0", "installed"]


@pytest.mark.parametrize("longest", [0, 1, 2], ids=["train", "valid", "test"])
def test_the_longest_choice_of_any_split_decides_n_ctx(
    checkpoint: Sources, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    splits = [Cloze(["1 2"], ["3"], ["4"], [0]) for _ in range(3)]
    splits[longest] = Cloze(["1 2"], ["3"], ["4 0 1 2"], [0])
    read_instead(monkeypatch, *splits)
    monkeypatch.setattr(prepare, "TextEncoder", NumbersAsText)
    assert prepare.load_data(Settings(), checkpoint, verbose=False).n_ctx == 2 + 4 + 3


def test_reported_cost_is_of_unscaled_logits() -> None:
    """One port multiplies the logits by the batch size before it takes their cost."""
    config = ModelConfig(n_vocab=6, n_ctx=16, n_embd=12, n_head=3, n_layer=1, **NO_DROPOUT)
    model, arrays = reference.random_model(config), stories_of(config)
    right = reference.run(reference.params_of(model), arrays, config).logits
    cost = reference.clf_losses(right, torch.from_numpy(arrays.Y).long()).mean().item()
    model.float()
    for n_batch in (1, 2, 3):
        logits = predict_logits(
            model, arrays.encoded(), Ranks(0, 1, torch.device("cpu")), n_batch=n_batch
        )
        assert mean_cross_entropy(logits, arrays.Y) == pytest.approx(cost, abs=TOLERANCE)
    assert abs(mean_cross_entropy(2 * logits, arrays.Y) - cost) > FAR * TOLERANCE


def test_reported_figures_of_the_recorded_run(references_dir: Path) -> None:
    """The original's validation logits give the cost and accuracy that it logged."""
    with np.load(references_dir / "rocstories_run.npz") as run:
        logits, labels = run["va_logits"], run["vaY"]
    lines = (references_dir / "rocstories_run.jsonl").read_text().splitlines()[1:]
    best = max((json.loads(line) for line in lines), key=lambda line: line["va_acc"])
    assert mean_cross_entropy(logits, labels) == pytest.approx(best["va_cost"], abs=1e-6)
    accuracy = ACCURACY.compute(ChoiceIndex().decide(logits), labels)
    assert accuracy == pytest.approx(best["va_acc"], abs=1e-9)
    assert abs(mean_cross_entropy(32 * logits, labels) - best["va_cost"]) > 1e-3
