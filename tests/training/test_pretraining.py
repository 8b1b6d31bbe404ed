"""Pretraining against independent computations, and its runs in this process."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
import small_corpus
import torch
from peers import NO_DROPOUT, their_model
from torch import Tensor

import gpt1
from gpt1.batches.corpus import Corpus
from gpt1.batches.windows import Windows
from gpt1.commands import cli
from gpt1.inference.perplexity import mean_cost
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.results.log_lines import read_runs, read_updates
from gpt1.runtime.errors import InputError
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.pretraining import PACES, PRETRAIN, SIZES, PretrainSettings
from gpt1.training import capacity
from gpt1.training.checkpoint import Checkpoints, TrainState
from gpt1.training.loop import Trainer
from gpt1.training.pretraining import Pretraining, window_gradients
from gpt1.training.runs import make_optimizer
from gpt1.weights import to_list
from gpt1.weights.jl import write_jl

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = Ranks(0, 1, torch.device("cpu"))
T, TOWERS, PER_TOWER = 8, 2, 3
SMALL = ModelConfig(n_vocab=100, n_special=0, n_ctx=T, n_embd=12, n_head=3, n_layer=2, **NO_DROPOUT)
N_UPDATES = 20
FLAGS: dict[str, Any] = {
    "size": "tiny",
    "n_ctx": T,
    "n_embd": 16,
    "n_head": 4,
    "n_batch": PER_TOWER,
    "n_gpu": TOWERS,
    "warmup_updates": 5,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of about fifteen updates per epoch."""
    return small_corpus.write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", 80, 10)


def small_model(dtype: torch.dtype = torch.float64) -> DoubleHeadsModel:
    """A model with large weights, so that every part of it changes the loss."""
    return reference.random_model(SMALL).to(dtype).train()


def some_windows(corpus: Path) -> Tensor:
    """The windows of an update."""
    windows = Windows(Corpus.open(corpus).train, T)
    return windows.take(windows.starts(1, 0)[: TOWERS * PER_TOWER])


def gradients(model: DoubleHeadsModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------- one update, transformers


def of_transformers(
    model: DoubleHeadsModel, windows: Tensor, transformers: ModuleType
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of the windows and its gradients, by our names, from transformers."""
    theirs = their_model(lambda c: transformers.OpenAIGPTLMHeadModel(c).double(), model)
    loss = cross_entropy(theirs, windows)
    loss.backward()
    inner = theirs.transformer
    found = {"we": torch.cat([inner.tokens_embed.weight.grad, inner.positions_embed.weight.grad])}
    for name, p in inner.h.named_parameters():
        kind = ".g" if ".ln_" in name else ".w"
        found["h." + name.replace(".weight", kind).replace(".bias", ".b")] = p.grad
    return loss.item(), found


def cross_entropy(theirs: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return the mean loss of sequences [B, T]; transformers' own would round it to float32."""
    logits = theirs(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def test_an_update_is_that_of_transformers(corpus: Path, transformers: ModuleType) -> None:
    """Loss and gradients in float64, with gradients accumulated over two towers."""
    model, windows = small_model(), some_windows(corpus)
    expected, theirs = of_transformers(model, windows, transformers)
    costs = window_gradients(Replica(model, ALONE), windows.chunk(TOWERS), seeds=[1, 2])
    assert costs[1].item() == pytest.approx(expected, rel=1e-6)  # the log has float32
    mean, ce = model.text_losses(windows)
    assert mean.item() == pytest.approx(expected, rel=1e-12)
    assert ce.mean().item() == pytest.approx(expected, rel=1e-12)
    ours = gradients(model)
    assert ours.keys() == theirs.keys()  # no gradient reaches a classifier
    for name, grad in ours.items():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(grad, theirs[name], rtol=0, atol=1e-9 * largest)


# ------------------------------------------------------------------- the plain transcription


def states(params: reference.Params, windows: Tensor) -> Tensor:
    """Return the states of the last layer of windows [B, T] by the transcription, [B, T, D]."""
    positions = torch.arange(SMALL.n_vocab, SMALL.n_vocab + windows.shape[1]).expand_as(windows)
    x = reference.embed(params["we"], torch.stack([windows, positions], -1))
    for i in range(SMALL.n_layer):
        x = reference.block(x, params, f"h{i}", SMALL.n_head, SMALL.afn, reference.keep_all)
    return x


def prediction_losses(
    params: reference.Params, windows: Tensor, n_rows: int = SMALL.n_vocab
) -> Tensor:
    """Return the cross entropy of each prediction, [B, T - 1], over the first rows of ``we``."""
    p = reference.softmax(states(params, windows)[:, :-1] @ params["we"][:n_rows].T)
    return -torch.log(p.gather(-1, windows[:, 1:, None]).squeeze(-1))


def plain_params(model: DoubleHeadsModel) -> reference.Params:
    """Return the parameters in float64, by the original's names and without the classifier."""
    found = reference.params_of(model)
    return {
        name: p.double().requires_grad_()
        for name, p in found.items()
        if not name.startswith("clf/")
    }


def test_float32_is_as_close_as_its_roundings_allow(corpus: Path) -> None:
    """The bounds are those of :meth:`reference.Case.gradient_tolerance`, a term per prediction.

    A cross entropy is a difference of logits, each a sum of products of a state and a row of
    ``we``; its error is measured by the largest sum of absolute products.
    """
    model, windows = small_model(torch.float32), some_windows(corpus)
    costs = window_gradients(Replica(model, ALONE), windows.chunk(TOWERS), seeds=[1, 2])
    params = plain_params(model)
    terms = prediction_losses(params, windows) / windows[:, 1:].numel()
    grads = dict.fromkeys(params, torch.zeros(()))
    sums = dict.fromkeys(params, torch.zeros(()))
    for term in terms.flatten():
        own = torch.autograd.grad(term, list(params.values()), retain_graph=True)
        for name, grad in zip(params, own, strict=True):
            grads[name], sums[name] = grads[name] + grad, sums[name] + grad.abs()
    ours = gradients(model)
    for name, expected in grads.items():
        tolerance = 8 * reference.EPS32 * sums[name].max().item()
        found = ours[reference.our_name(name)].double().reshape(expected.shape)
        reference.assert_within(found, expected, tolerance, name)
    h, rows = states(params, windows).detach(), params["we"].detach()[: SMALL.n_vocab]
    largest = (h.abs() @ rows.abs().T).max().item()
    reference.assert_within(costs[1], terms.sum(), 8 * reference.EPS32 * largest)


DEVIATIONS = (
    "position rows in the softmax",
    "overlapping windows",
    "order not from the seed",
    "loss per document",
    "cosine from the first update",
    "decay of biases",
    "clipping parameter by parameter",
)


def plain_starts(n_tokens: int, seed: int, epoch: int, deviation: str) -> list[int]:
    """Return the starts of all windows of an epoch; a second implementation."""
    n_windows = (n_tokens + 1) // T - 1
    stream = np.random.default_rng([seed + (deviation == "order not from the seed"), epoch])
    offset = stream.integers(min(T - 1, n_tokens - n_windows * T) + 1)
    stride = T // 2 if deviation == "overlapping windows" else T
    return [int(offset + stride * k) for k in stream.permutation(n_windows)]


def plain_gradient(params: reference.Params, windows: Tensor, deviation: str) -> list[np.ndarray]:
    """Return the gradient of the mean over towers of their mean loss."""
    n_rows = len(params["we"]) if deviation == "position rows in the softmax" else SMALL.n_vocab
    ce = prediction_losses(params, windows, n_rows)
    loss = ce.reshape(TOWERS, -1).mean(1).mean()
    if deviation == "loss per document":  # the mean of means of parts of different lengths
        loss = (ce[:, :2].mean() + ce[:, 2:].mean()) / 2
    return [g.numpy() for g in torch.autograd.grad(loss, list(params.values()))]


def plain_updates(model: DoubleHeadsModel, tokens: np.ndarray, deviation: str = "") -> list[Any]:
    """Return the parameters after 20 updates, computed by the transcription alone."""
    start = [p.detach().reshape(p.shape[-2:]).numpy() for p in plain_params(model).values()]
    shapes = {name: p.shape for name, p in plain_params(model).items()}
    settings = {
        "lr": 0.01,
        "schedule": "warmup_then_cosine",
        "warmup": 5 / N_UPDATES,
        "t_total": N_UPDATES,
        "b1": 0.9,
        "b2": 0.999,
        "e": 1e-8,
        "l2": 0.01,
        "vector_l2": False,
        "max_grad_norm": 1.0,
    }
    if deviation == "cosine from the first update":
        settings["schedule"] = "warmup_cosine"
    order = [x for epoch in range(9) for x in whole_updates(tokens, epoch, deviation)]
    grads: list[Any] = []
    found = start
    for starts in order[:N_UPDATES]:
        params = {
            name: torch.tensor(p).reshape(shape).requires_grad_()
            for p, (name, shape) in zip(found, shapes.items(), strict=True)
        }
        windows = torch.tensor(np.array([tokens[s : s + T] for s in starts]).astype(np.int64))
        update = plain_gradient(params, windows, deviation)
        grads.append([g.reshape(p.shape) for g, p in zip(update, start, strict=True)])
        found = reference.transcribe(start, grads, settings, deviation)
    return found


def whole_updates(tokens: np.ndarray, epoch: int, deviation: str) -> list[list[int]]:
    """Return the starts of the windows of each update of an epoch."""
    starts, size = plain_starts(len(tokens), 7, epoch, deviation), TOWERS * PER_TOWER
    return [starts[i : i + size] for i in range(0, len(starts) - size + 1, size)]


def our_updates(model: DoubleHeadsModel, corpus: Path, directory: Path) -> Trainer:
    """Make 20 updates by the program's own job, optimizer and loop."""
    flags = {**FLAGS, "n_updates": N_UPDATES, "seed": 7, "lr": 0.01, "save_every": 0}
    given = {"corpus": str(corpus), "out": str(directory / "model"), **flags}
    settings = PretrainSettings.of(PRETRAIN.values(given)).paced()
    job = Pretraining(
        Corpus.open(corpus), settings, config=SMALL, precision="fp32", eval_every=0, settings={}
    )
    model.clf.requires_grad_(False)
    optimizer = make_optimizer(model, settings.optimizer(N_UPDATES), n_updates=N_UPDATES)
    directory.mkdir(exist_ok=True)
    trainer = Trainer(
        job,
        TrainState(model=model, optimizer=optimizer, best_score=-math.inf),
        ALONE,
        checkpoints=Checkpoints(directory, ALONE, print),
        listeners=(),
        stop=StopRequests(),
        with_clf=False,
    )
    trainer.train(resumed=False)
    return trainer


def test_twenty_updates_are_those_of_the_transcription(corpus: Path, tmp_path: Path) -> None:
    """Windows, their order over two epochs, loss, clipping, schedule and decay, in float64.

    Each deviation is far from the result, so that none of them could pass.
    """
    model = small_model()
    tokens = Corpus.open(corpus).train
    assert (len(tokens) + 1) // T - 1 < N_UPDATES * TOWERS * PER_TOWER  # more than one epoch
    expected = plain_updates(model, tokens)
    others = {name: plain_updates(model, tokens, name) for name in DEVIATIONS}
    names = list(plain_params(model))
    our_updates(model, corpus, tmp_path)
    ours = reference.params_of(model)

    def distance(values: list[Any]) -> float:
        return max(
            float(np.abs(ours[name].numpy().reshape(p.shape) - p).max() / np.abs(p).max())
            for name, p in zip(names, values, strict=True)
        )

    assert distance(expected) < 1e-9
    for name, values in others.items():
        assert distance(values) > 1e-5, name


def test_held_out_cost_is_the_mean_of_all_predictions(
    corpus: Path, transformers: ModuleType
) -> None:
    """Also of the last, shorter window, and whatever the batch."""
    model = small_model().eval()
    tokens = Corpus.open(corpus).held_out[:-3]
    assert len(tokens) % T > 1
    theirs = their_model(lambda c: transformers.OpenAIGPTLMHeadModel(c).double(), model)
    nats, n = 0.0, 0
    for begin in range(0, len(tokens), T):
        ids = torch.tensor(tokens[None, begin : begin + T].astype(np.int64))
        with torch.no_grad():
            nats += cross_entropy(theirs, ids).item() * (ids.numel() - 1)
        n += ids.numel() - 1
    for n_batch in (1, 2, 100):
        found = mean_cost(model, tokens, ALONE, n_batch=n_batch)
        assert found == pytest.approx(nats / n, rel=1e-12)


# ------------------------------------------------------------------- whole runs


def pretrain(corpus: Path, out: str, **changes: Any) -> Any:
    return gpt1.pretrain(
        corpus, out, verbose=False, **{**FLAGS, "n_iter": 2, "lr": 0.01, **changes}
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("log", name).read_text().splitlines()]


def test_a_run_learns_and_its_directory_is_a_model(
    corpus: Path, here: Path, transformers: ModuleType
) -> None:
    result = pretrain(corpus, "model", n_iter=4, eval_every=10, keep_every=20)
    (run,), settings = read_runs(["log/pretraining.jsonl"]), rows("pretraining.jsonl")[0]
    evaluations = [line.as_row() for line in run.evaluations]
    assert (settings["n_iter"], settings["n_updates"], settings["n_layer"]) == (4, None, 2)
    per_epoch = (((len(Corpus.open(corpus).train) + 1) // T) - 1) // (TOWERS * PER_TOWER)
    expected = {*range(per_epoch, 4 * per_epoch + 1, per_epoch), *range(10, 4 * per_epoch, 10)}
    assert [row["n_updates"] for row in evaluations] == sorted(expected)
    last = evaluations[-1]
    assert last["va_cost"] < 0.5 * math.log(100)
    assert last["va_ppl"] == pytest.approx(math.exp(last["va_cost"]))
    header = Corpus.open(corpus).header
    per_word = last["va_cost"] * header.n_held_out_tokens / header.n_held_out_words
    assert last["va_word_ppl"] == pytest.approx(math.exp(per_word))
    assert last["tokens_per_second"] > 0
    assert [row["n_updates"] for row in result.history] == [row["n_updates"] for row in evaluations]
    updates = read_updates("log/pretraining.updates.jsonl")
    assert len(updates) == 4 * per_epoch
    assert {update.clf_cost for update in updates} == {None}
    best = min(evaluations, key=lambda row: row["va_cost"])
    tokens = Corpus.open(corpus).held_out
    found = mean_cost(result.model.module, tokens, ALONE, n_batch=4)
    assert found == pytest.approx(best["va_cost"], rel=1e-6)
    assert isinstance(result.model.generate("anna had", max_new_tokens=3), str)
    for kept in range(20, 4 * per_epoch + 1, 20):
        assert gpt1.load_pretrained(f"save/pretraining/model-{kept:08d}").module.config.n_ctx == T
    assert cli.main(["convert", "model", "hub", "--to", "hub"]) == 0
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained("hub")
    assert theirs.config.vocab_size == header.n_vocab


def test_the_speed_is_that_of_training_alone(corpus: Path) -> None:
    """Set-up, evaluations and checkpoints take no part of the time."""
    now = [5.0]
    given = {"corpus": str(corpus), "out": "unused", **FLAGS, "n_updates": 3}
    job = Pretraining(
        Corpus.open(corpus),
        PretrainSettings.of(PRETRAIN.values(given)).paced(),
        config=SMALL,
        precision="fp32",
        eval_every=1,
        settings={},
        clock=lambda: now[0],
    )
    model = small_model()
    optimizer = make_optimizer(
        model, PretrainSettings(corpus="", out="", lr=0.0).optimizer(3), n_updates=3
    )
    state = TrainState(model=model, optimizer=optimizer, best_score=-math.inf)
    replica = Replica(model, ALONE)

    def speed() -> float:
        return job.evaluate(state, ALONE, lambda done, total: None).figures["tokens_per_second"]

    def update(number: int, seconds: float) -> None:
        work = next(job.work())
        job.gradients(replica, job.prepare(work, ALONE), number)
        now[0] += seconds

    now[0] += 100  # the set-up
    assert speed() == 0  # as in a run that is resumed before its evaluation
    now[0] += 50
    update(1, 2.0)
    update(2, 4.0)
    tokens = T * TOWERS * PER_TOWER
    assert speed() == 2 * tokens / 6
    now[0] += 30  # the evaluation and the checkpoint
    update(3, 8.0)
    assert speed() == tokens / 8


def test_layers_computed_again_give_the_same_numbers(corpus: Path, here: Path) -> None:
    kept = pretrain(corpus, "kept", desc="kept")
    again = pretrain(corpus, "again", desc="again", recompute=True)
    assert [each.lm_cost for each in kept.updates] == [each.lm_cost for each in again.updates]
    for ours, theirs in zip(*(to_list(each.model.module) for each in (kept, again)), strict=True):
        assert np.array_equal(ours, theirs)
    assert [rows(f"{name}.jsonl")[0]["recompute"] for name in ("kept", "again")] == [False, True]


def test_layers_are_computed_again_where_memory_would_not_suffice(
    corpus: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate is that of the windows of a tower."""
    asked: list[Any] = []

    def needed(
        config: ModelConfig, tower: capacity.Tower, attention: capacity.Attention, **_: Any
    ) -> int:
        asked.append((tower, attention))
        return 10**15

    monkeypatch.setattr(capacity, "training_memory", needed)
    pretrain(corpus, "model")
    tower = capacity.Tower(n_tokens=PER_TOWER * T, n_sequences=PER_TOWER, length=T)
    assert asked == [(tower, capacity.Attention.MASK)]
    assert rows("pretraining.jsonl")[0]["recompute"] is True
    assert "gpt1 pretrain: --recompute is on, because" in capsys.readouterr().err


def test_what_a_run_replaces_counts_as_free(
    corpus: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a name that was there needs no more room for checkpoints than the old ones take."""
    found: list[dict[str, int]] = []

    def record(needs: Sequence[capacity.Need]) -> None:
        found.append({need.flag: need.n_bytes for need in needs})

    monkeypatch.setattr(capacity, "check_disks", record)
    pretrain(corpus, "first")
    old = sum(path.stat().st_size for path in Path("save/pretraining").glob("checkpoint-*"))
    logged = Path("log/pretraining.updates.jsonl").stat().st_size
    shutil.rmtree("first")
    pretrain(corpus, "first")
    first, second = found
    assert old > 0
    assert first["--save_dir"] - second["--save_dir"] == old
    assert first["--log_dir"] - second["--log_dir"] == logged


def test_a_model_goes_on_from_given_weights(corpus: Path, here: Path) -> None:
    first = pretrain(corpus, "first")
    first.model.save("hub")
    small_corpus.copy_vocabulary(corpus, Path("list"))  # a list has special rows and a classifier
    write_jl("list/best_params.jl", to_list(first.model.module))
    Path("list/gpt1_config.json").write_text('{"n_head": 4}')
    for model_dir, n_ctx in (("first", T), ("hub", T - 2), ("list", T)):
        second = pretrain(corpus, "second", model_dir=model_dir, n_ctx=n_ctx, n_iter=0, desc="b")
        ours, before = second.model.module, first.model.module
        assert ours.config.n_embd == before.config.n_embd
        n = before.config.n_vocab
        assert torch.equal(ours.we[:n], before.we[:n])
        positions = before.we[before.config.first_position :][:n_ctx]
        assert torch.equal(ours.we[ours.config.first_position :], positions)
        assert torch.equal(ours.h[1].mlp.c_fc.w, before.h[1].mlp.c_fc.w)
        for path in Path("second").iterdir():
            path.unlink()
    for model_dir in ("first", "hub", "list"):
        with pytest.raises(InputError, match=f"{model_dir} has {T} position rows; give 1 to {T}"):
            pretrain(corpus, "third", model_dir=model_dir, n_ctx=T + 1, desc="c")
    assert not list(Path("third").iterdir())


def test_the_perplexity_of_a_text(
    corpus: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pretrain(corpus, "model").model
    text = " ".join(small_corpus.sentences(3, seed=5))
    Path("text.txt").write_text(text)
    ids = model.encode(text)
    nats = [x for i in range(0, len(ids), T) for x in likelihoods(model, ids[i : i + T])]
    capsys.readouterr()
    flags = ["--model_dir", "model", "--device", "cpu"]
    assert cli.main(["perplexity", "text.txt", *flags]) == 0
    shown = capsys.readouterr().out
    cost = -math.fsum(nats) / len(nats)
    words = len(text.split())
    assert f"loss {cost:.4f} nats per token" in shown
    per_word = math.exp(cost * len(ids) / words)
    assert f"perplexity {math.exp(cost):.2f} per token, {per_word:.2f} per word" in shown
    assert f"{len(ids)} tokens, {words} words" in shown
    Path("text.txt").write_text(" ")
    assert cli.main(["perplexity", "text.txt", *flags]) == 2
    assert "text.txt: has 0 tokens" in capsys.readouterr().err


def likelihoods(model: Any, ids: list[int]) -> list[float]:
    """Return the log-probabilities of the tokens of a window, by the plain softmax."""
    with torch.no_grad():
        h = model.module.sequence_states(torch.tensor([ids]))[0, :-1]
    log_p = (h @ model.module.we[: model.module.config.n_vocab].T).double().log_softmax(-1)
    return log_p.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def test_samples_are_shown(corpus: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(corpus, "model", n_updates=2, n_iter=None, warmup_updates=1, sample=("anna had",))
    shown = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sample")]
    assert len(shown) == 1
    assert shown[0].startswith("sample after update 2: anna had ")


def test_samples_do_not_change_the_numbers(corpus: Path, here: Path) -> None:
    plain = pretrain(corpus, "a", desc="a")
    sampled = pretrain(corpus, "b", desc="b", sample=("anna had",), keep_every=3)
    assert [x.lm_cost for x in plain.updates] == [x.lm_cost for x in sampled.updates]


def test_a_softmax_over_half_precision(corpus: Path, here: Path) -> None:
    """In bfloat16 the costs stay within its 8 bits of those in float32."""
    costs = {
        precision: [
            x.lm_cost
            for x in pretrain(
                corpus,
                precision,
                desc=precision,
                precision=precision,
                n_updates=3,
                n_iter=None,
                warmup_updates=1,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
            ).updates
        ]
        for precision in ("fp32", "bf16")
    }
    assert costs["bf16"] == pytest.approx(costs["fp32"], rel=2**-6)
    assert costs["bf16"] != costs["fp32"]


# ------------------------------------------------------------------- settings


def test_defaults_are_those_of_the_paper() -> None:
    settings = PretrainSettings.of(PRETRAIN.values({"corpus": "c", "out": "m"})).paced()
    assert settings.batch_size == 64
    assert SIZES["gpt1"] == {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_ctx": 512}
    assert PACES.keys() == SIZES.keys()
    made = settings.optimizer(100_000)
    assert (made.lr, made.lr_schedule, made.l2) == (2.5e-4, "warmup_then_cosine", 0.01)
    assert made.lr_warmup * 100_000 == 2000
    assert (made.max_grad_norm, made.vector_l2, settings.n_iter) == (1.0, False, 100)
    assert {settings.embd_pdrop, settings.attn_pdrop, settings.resid_pdrop} == {0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_iter": 1, "n_updates": 3}, "n_updates=3: the length of the run is given by n_iter"),
        ({"n_batch": 5000}, "windows of n_ctx=8, fewer than the 10000 of an update"),
        ({"warmup_updates": 2000}, "warmup_updates=2000: the whole run has"),
        ({"n_embd": 15}, "n_head=4: does not divide the width 15"),
        ({"sample": ("had " * 9,)}, "has 9 tokens, but must have from 1 to 7"),
        ({"corpus": "nowhere"}, "there is no corpus in this directory"),
        ({"model_dir": "nowhere"}, "nowhere: there is no such file or directory"),
    ],
)
def test_wrong_settings_are_named(
    corpus: Path, here: Path, changes: dict[str, Any], message: str
) -> None:
    given = {"corpus": str(corpus), **changes}
    with pytest.raises(InputError) as error:
        pretrain(given.pop("corpus"), "model", **given)
    assert message in str(error.value)
    assert not list(Path().rglob("*.jsonl"))


def test_a_run_does_not_go_on_with_another_split_or_place(corpus: Path, here: Path) -> None:
    pretrain(corpus, "model")
    other = small_corpus.write_corpus(here / "other", n_held_out=60)
    with pytest.raises(InputError, match="the run that resume goes on with writes to "):
        pretrain(corpus, "elsewhere", resume=True)
    assert not Path("elsewhere").exists()
    with pytest.raises(InputError, match="n_held_out_tokens was "):
        pretrain(other, "model", resume=True)


def test_damaged_ids_are_noticed_before_training(corpus: Path, here: Path) -> None:
    damaged = shutil.copytree(corpus, here / "damaged")
    ids = bytearray((damaged / "tokens.bin").read_bytes())
    ids[40] ^= 1
    (damaged / "tokens.bin").write_bytes(ids)
    with pytest.raises(InputError, match=r"tokens\.bin: is damaged"):
        pretrain(damaged, "model")


def test_the_state_of_a_run_with_another_directory_stays(corpus: Path, here: Path) -> None:
    pretrain(corpus, "first")
    there = [path.read_bytes() for path in sorted(Path("save/pretraining").glob("checkpoint-*"))]
    with pytest.raises(InputError, match=r"desc pretraining: .*writes to .*first; give another"):
        pretrain(corpus, "second")
    assert not Path("second").exists()
    now = [path.read_bytes() for path in sorted(Path("save/pretraining").glob("checkpoint-*"))]
    assert there
    assert now == there


def test_kept_models_of_an_earlier_run_stay(corpus: Path, here: Path) -> None:
    pretrain(corpus, "model", keep_every=2)
    kept = sorted(Path("save").rglob("model-*"))
    assert kept
    with pytest.raises(InputError, match="an earlier run has kept "):
        pretrain(corpus, "second", keep_every=4)
    assert sorted(Path("save").rglob("model-*")) == kept


def test_a_model_is_not_overwritten(corpus: Path, here: Path) -> None:
    pretrain(corpus, "model")
    before = Path("model/params_0.npy").read_bytes()
    for changes in ({}, {"desc": "other"}, {"desc": "other", "resume": True}):
        with pytest.raises(InputError, match="model: holds a model already"):
            pretrain(corpus, "model", **changes)
    Path("text").mkdir()
    Path("text/novel.txt").write_text("mine")
    with pytest.raises(InputError, match=r"text: holds files .*novel\.txt"):
        pretrain(corpus, "text", desc="third")
    assert Path("model/params_0.npy").read_bytes() == before


def test_weights_of_another_vocabulary(corpus: Path, here: Path) -> None:
    pretrain(corpus, "model")
    path = Path("model/vocab_40000.bpe")
    path.write_text("\n".join(path.read_text().split("\n")[:-3]) + "\n")
    with pytest.raises(InputError, match="its vocabulary is not that of the corpus"):
        pretrain(corpus, "other", model_dir="model", desc="other")
