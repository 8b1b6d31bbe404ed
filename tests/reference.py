"""A plain second implementation of the model, and the numbers of the running original.

The first part is slow and simple on purpose: padded arrays X [B, C, T, 2] and M [B, C, T], every
mask and softmax spelled out, any float type. Nothing of ``gpt1`` computes here. Each rule is a
separate function or constant, so that a test can replace it by a known deviation and
see what it does; deviations of the optimizer have names. The second part reads
``golden/steps.npz``, which the running original (OpenAI's finetune-transformer-lm at a69b5c4, on a
CPU, dropout 0) produced.

Axes: B stories, C choices (2), T positions, D width, H heads, K head size, V rows of ``we``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from padded import Padded
from torch import Tensor

from gpt1.model.transformer import DoubleHeadsModel, ModelConfig

Params = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]

MASKED = -1e9
LN_EPSILON = 1e-5

# ------------------------------------------------------------------------------ the rules


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": lambda x: x.clamp(min=0),
    "swish": lambda x: x * torch.sigmoid(x),
}


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def layer_norm(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + LN_EPSILON) * g + b


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    return x @ params[f"{name}/w"].squeeze(0) + params[f"{name}/b"]


def embed(we: Tensor, X: Tensor) -> Tensor:
    """Map rows of ``we`` [B * C, T, 2] to the input of the first layer, [B * C, T, D]."""
    return we[X[..., 0]] + we[X[..., 1]]


def attention_scale(head_size: int, width: int) -> float:
    return 1 / math.sqrt(head_size)


def mask_scores(scores: Tensor) -> Tensor:
    """Mask later positions of scores [..., T, T]; padding comes last, so no token sees it."""
    T = scores.shape[-1]
    sees = torch.tril(torch.ones(T, T, dtype=scores.dtype))
    return scores * sees + MASKED * (1 - sees)


def attention(x: Tensor, params: Params, name: str, n_head: int, drop: Drop) -> Tensor:
    n, T, D = x.shape
    q, k, v = (
        part.reshape(n, T, n_head, D // n_head).transpose(1, 2)  # [n, H, T, K]
        for part in linear(x, params, f"{name}/c_attn").split(D, dim=-1)
    )
    scores = (q @ k.transpose(-1, -2)) * attention_scale(D // n_head, D)
    weights = drop(f"{name}/weights", softmax(mask_scores(scores)))
    heads = (weights @ v).transpose(1, 2).reshape(n, T, D)
    return drop(f"{name}/out", linear(heads, params, f"{name}/c_proj"))


def mlp(x: Tensor, params: Params, name: str, afn: str, drop: Drop) -> Tensor:
    inner = ACTIVATIONS[afn](linear(x, params, f"{name}/c_fc"))
    return drop(f"{name}/out", linear(inner, params, f"{name}/c_proj"))


def block(x: Tensor, params: Params, name: str, n_head: int, afn: str, drop: Drop) -> Tensor:
    def norm(x: Tensor, which: str) -> Tensor:
        return layer_norm(x, params[f"{name}/{which}/g"], params[f"{name}/{which}/b"])

    n = norm(x + attention(x, params, f"{name}/attn", n_head, drop), "ln_1")
    return norm(n + mlp(n, params, f"{name}/mlp", afn, drop), "ln_2")


def output_rows(we: Tensor) -> Tensor:
    """Return the rows over which the language model's softmax runs: all rows of ``we``."""
    return we


def lm_mean(ce: Tensor, M: Tensor) -> Tensor:
    """Return the loss of each sequence, [n], from the cross entropies of positions 1.. and M."""
    mask = M[:, 1:]
    return (mask * ce).sum(-1) / mask.sum(-1)


def lm_losses(h: Tensor, we: Tensor, tokens: Tensor, M: Tensor) -> Tensor:
    p = softmax(h[:, :-1] @ output_rows(we).T)  # [n, T - 1, V]
    of_next = p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return lm_mean(-torch.log(of_next), M)


def classify_position(tokens: Tensor, clf_token: int) -> Tensor:
    """Return the position of the first ``_classify_`` in each sequence, [n]."""
    return torch.tensor([row.index(clf_token) for row in tokens.tolist()])


def clf_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return -torch.log(softmax(logits)[torch.arange(len(labels)), labels])


def total_loss(clf: Tensor, lm: Tensor, lm_coef: float) -> Tensor:
    return clf.mean() + lm_coef * lm.mean()


# ------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Output:
    """h [B, C, T, D], logits [B, C], lm [B, C]."""

    h: Tensor
    logits: Tensor
    lm: Tensor


def keep_all(place: str, x: Tensor) -> Tensor:
    """Apply no dropout."""
    return x


def run(params: Params, arrays: Padded, config: ModelConfig, drop: Drop = keep_all) -> Output:
    """Compute the forward pass over padded arrays.

    Args:
        params: by the original's names (``h0/attn/c_attn/w``), kernels [1, n_in, n_out].
        arrays: X, M; labels are not looked at.
        config: for ``n_head``, ``n_layer``, ``afn`` and the id of ``_classify_``.
        drop: called at every place that has dropout: ``we``, ``h0/attn/weights``,
            ``h0/attn/out``, ``h0/mlp/out``, ..., ``clf`` (on [B, C, D]).
    """
    B, C, T, _ = arrays.X.shape
    X = torch.from_numpy(arrays.X).long().reshape(B * C, T, 2)
    we = drop("we", params["we"])
    x = embed(we, X)
    for i in range(config.n_layer):
        x = block(x, params, f"h{i}", config.n_head, config.afn, drop)
    at = classify_position(X[..., 0], config.clf_token)
    state = drop("clf", x[torch.arange(B * C), at].reshape(B, C, -1))
    logits = (state @ params["clf/w"]).squeeze(-1) + params["clf/b"]
    M = torch.from_numpy(arrays.M).to(x.dtype).reshape(B * C, T)
    lm = lm_losses(x, we, X[..., 0], M)
    return Output(x.reshape(B, C, T, -1), logits, lm.reshape(B, C))


# ------------------------------------------------------------------- between ours and these


def our_name(name: str) -> str:
    """Return ``h.0.attn.c_attn.w`` for ``model/h0/attn/c_attn/w:0`` or ``h0/attn/c_attn/w``."""
    name = name.removeprefix("model/").removesuffix(":0").replace("/", ".")
    return f"h.{name[1:]}" if name.startswith("h") else name


def params_of(model: DoubleHeadsModel) -> Params:
    """Copy the model's parameters by the original's names, with kernels [1, n_in, n_out]."""
    params = {}
    for name, p in model.named_parameters():
        their = name.replace("h.", "h", 1) if name.startswith("h.") else name
        kernel = p.ndim == 2 and name.startswith("h.")
        value = p.detach().clone()
        params[their.replace(".", "/")] = value[None] if kernel else value
    return params


def random_model(config: ModelConfig, *, seed: int = 0, std: float = 0.3) -> DoubleHeadsModel:
    """Make a float64 model in evaluation mode in which every parameter changes the output."""
    model = DoubleHeadsModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if name.endswith(".g") else 0.0, std, generator=generator)
    return model.eval()


# -------------------------------------------------------------------------- the optimizer

EPS32 = 2.0**-23  # the distance of float32 numbers at 1; a rounding costs half of it at most

Array = np.ndarray
Gradients = list[list[Array | None]]  # [update][parameter]


def factor(schedule: str, x: float, warmup: float, ramp_scaled: bool = True) -> float:
    """Return the factor of a schedule; a second implementation of the schedules."""
    rising = x <= warmup
    if schedule == "warmup_linear":
        if rising and not ramp_scaled:
            return x / warmup
        return (x / warmup if rising else 1.0) * (1.0 - x)
    if schedule == "warmup_cosine":
        return x / warmup if rising else (1.0 + math.cos(math.pi * x)) / 2
    if schedule == "warmup_then_cosine":
        return x / warmup if rising else math.cos(math.pi / 2 * (x - warmup) / (1 - warmup)) ** 2
    return x / warmup if rising else 1.0


def norm(grads: list[Array]) -> float:
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads))


# The mistakes that :func:`transcribe` makes if it is told to.
OPTIMIZER_DEVIATIONS = (
    "clipping parameter by parameter",
    "decay without bias correction",
    "decay of the updated",
    "decay of biases",
    "e inside the bias correction",
    "ramp without 1 - x",
    "t from 0",
)


def transcribe(
    start: list[Array], gradients: Gradients, settings: dict[str, Any], deviation: str = ""
) -> list[Array]:
    """Return the parameters after the updates, in float64, with or without a `deviation`."""
    s = settings
    params = [p.astype(np.float64) for p in start]
    ms = [np.zeros_like(p) for p in params]
    vs = [np.zeros_like(p) for p in params]
    for t, update in enumerate(gradients, 1):
        whole = norm([g for g in update if g is not None])
        done = (t - 1 if deviation == "t from 0" else t) / s["t_total"]
        scheduled = s["lr"] * factor(
            s["schedule"], done, s["warmup"], ramp_scaled=deviation != "ramp without 1 - x"
        )
        first, root = 1 - s["b1"] ** t, math.sqrt(1 - s["b2"] ** t)
        lr_t = scheduled * root / first
        for i, g32 in enumerate(update):
            if g32 is None:
                continue
            g = g32.astype(np.float64)
            if s["max_grad_norm"] > 0:
                limit = s["max_grad_norm"]
                size = norm([g]) if deviation == "clipping parameter by parameter" else whole
                g = g * (limit / max(size, limit))
            ms[i] = s["b1"] * ms[i] + (1 - s["b1"]) * g
            vs[i] = s["b2"] * vs[i] + (1 - s["b2"]) * g * g
            decay = s["l2"] if params[i].ndim > 1 or s["vector_l2"] else 0.0
            if deviation == "decay of biases":
                decay = s["l2"]
            step = lr_t * ms[i] / (np.sqrt(vs[i]) + s["e"])
            if deviation == "e inside the bias correction":
                step = scheduled * (ms[i] / first) / (np.sqrt(vs[i]) / root + s["e"])
            decay_lr = scheduled if deviation == "decay without bias correction" else lr_t
            decayed = params[i] - step if deviation == "decay of the updated" else params[i]
            params[i] = params[i] - step - decay_lr * decay * decayed
    return params


# ---------------------------------------------------------------- what the original produced

SHARES: dict[str, float] = {}
"""The largest error that each test has found so far, as a share of its tolerance."""


def assert_within(found: Any, expected: Any, tolerance: Any, name: str = "") -> None:
    """Check that every element is within the tolerance, which may differ per element."""
    found, expected = (torch.as_tensor(each).detach().double() for each in (found, expected))
    assert found.shape == expected.shape, name
    shares = (found - expected).abs() / tolerance
    largest = shares.max().item() if shares.numel() else 0.0
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    SHARES[test] = max(SHARES.get(test, 0.0), largest)
    assert largest <= 1, f"{name}: the largest error is {largest:.3g} times its tolerance"


def _without_one(kernel: Tensor) -> Tensor:
    """Return a kernel [1, n_in, n_out] as [n_in, n_out], and other arrays unchanged."""
    return kernel.squeeze(0) if kernel.ndim == 3 else kernel


CASES = ("base", "cosine", "constant", "vector_l2", "no_lm", "relu", "swish", "noclip")


class Case:
    """One case of ``steps.npz``: six updates of a small model, dropout 0.

    Attributes:
        cfg: the original's settings.
        config: the same for our model.
    """

    def __init__(self, golden_dir: Path, name: str) -> None:
        with np.load(golden_dir / "steps.npz") as file:
            prefix = f"{name}/"
            self._arrays = {
                key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)
            }
        self.cfg: dict[str, Any] = json.loads(str(self._arrays["cfg"]))
        sizes = ("n_vocab", "n_special", "n_ctx", "n_embd", "n_head", "n_layer", "afn")
        rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), 0.0)
        self.config = ModelConfig(**{key: self.cfg[key] for key in sizes}, **rates)

    def __getitem__(self, key: str) -> Any:
        """Return an array by its name in the file: ``clf_losses``, ``grad0/model/we:0``, ..."""
        return self._arrays[key]

    def values(self, kind: str) -> dict[str, Tensor]:
        """Return parameters (``init``, ``after1``, ``after6``) or gradients (``grad0``) by name."""
        names = json.loads(str(self._arrays["names"]))
        return {
            our_name(name): _without_one(torch.from_numpy(self._arrays[f"{kind}/{name}"]))
            for name in names
        }

    def arrays(self, update: int) -> Padded:
        """Return the stories of one update, 0 to 5, of all towers together."""
        return Padded(*(self._arrays[key][update] for key in "XMY"))

    def towers(self, update: int) -> list[Padded]:
        """Return the stories of one update, per tower."""
        n = self.cfg["n_batch"]
        whole = self.arrays(update)
        return [whole.take(slice(i * n, (i + 1) * n)) for i in range(self.cfg["n_gpu"])]

    def optimizer(self) -> dict[str, Any]:
        """The optimizer's settings by the names that ``OpenAIAdam`` has for them."""
        theirs = {"schedule": "lr_schedule", "warmup": "lr_warmup", "t_total": "n_updates_total"}
        same = ("lr", "b1", "b2", "e", "l2", "vector_l2", "max_grad_norm")
        return {name: self.cfg[name] for name in same} | {
            name: self.cfg[their] for name, their in theirs.items()
        }

    def _params(self) -> Params:
        """The initial parameters in float64, for the transcription to differentiate."""
        params = params_of(self.model().double())
        return {name: p.requires_grad_() for name, p in params.items()}

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the first update by the transcription in float64, by our names."""
        params = self._params()
        for tower in self.towers(0):
            out = run(params, tower, self.config)
            clf = clf_losses(out.logits, torch.from_numpy(tower.Y).long())
            total = total_loss(clf, out.lm, self.cfg["lm_coef"])
            (total / self.cfg["n_gpu"]).backward()
        return {our_name(name): _without_one(p.grad) for name, p in params.items()}

    def gradient_tolerance(self) -> dict[str, float]:
        """How far float32 may take each gradient of the first update from the recorded one.

        A gradient is a sum of two terms per sequence: that of its logit and that of its
        language-model loss. Where the terms cancel, the sum is small but its rounding error is
        not, so the error is measured by the sum of the absolute terms, the largest of a parameter.
        Forward and back, a term passes through some fifty operations, and each rounds by half of
        ``EPS32`` at most, up or down: about the root of fifty times that in all, 3.5 ``EPS32``.
        The recorded gradient has such an error and ours has another, which makes 5; 8 are allowed.
        """
        params = self._params()
        sums = {name: torch.zeros_like(p) for name, p in params.items()}
        for term in self._terms(params):
            grads = torch.autograd.grad(
                term, list(params.values()), retain_graph=True, allow_unused=True
            )
            for name, grad in zip(params, grads, strict=True):
                if grad is not None:
                    sums[name] += grad.abs()
        return {our_name(name): 8 * EPS32 * each.max().item() for name, each in sums.items()}

    def _terms(self, params: Params) -> Iterator[Tensor]:
        """Return scalars whose gradients add up to that of the first update: two per sequence."""
        for tower in self.towers(0):
            out = run(params, tower, self.config)
            clf = clf_losses(out.logits, torch.from_numpy(tower.Y).long()).mean()
            (slopes,) = torch.autograd.grad(clf, out.logits, retain_graph=True)
            lm = self.cfg["lm_coef"] * out.lm / out.lm.numel()
            yield from torch.cat([slopes * out.logits, lm]).flatten() / self.cfg["n_gpu"]

    def after_one_update(self) -> dict[str, Tensor]:
        """The recorded parameters after one update, as its rate in double precision makes them.

        The original takes ``sqrt(1 - b2) / (1 - b1)`` in float32. There 0.999 is 1.3e-8 too large,
        which makes every first step 6.7e-6 of itself too short; ours is taken in float64.
        """

        def correction(b1: float, b2: float) -> float:
            return math.sqrt(1 - b2) / (1 - b1)

        b1, b2 = self.cfg["b1"], self.cfg["b2"]
        ratio = correction(b1, b2) / correction(float(np.float32(b1)), float(np.float32(b2)))
        start = self.values("init")
        return {
            name: start[name].double() + ratio * (p.double() - start[name].double())
            for name, p in self.values("after1").items()
        }

    def one_update_tolerance(self) -> dict[str, Tensor]:
        """How far float32 may take each parameter from :meth:`after_one_update`.

        Adam's first step is ``rate * g / (|g| + e / sqrt(1 - b2))`` with g the clipped gradient.
        It rises with g, so that a gradient that is off by d makes a step between those of g - d
        and of g + d. To that come a dozen roundings of the step in each program, at most half of
        ``EPS32`` each and not all one way, and one or two of the parameter itself.
        """
        s, recorded, errors = self.optimizer(), self.values("grad0"), self.gradient_tolerance()
        rate = s["lr"] * factor(s["schedule"], 1 / s["t_total"], s["warmup"])
        limit = s["max_grad_norm"]
        scale = limit / max(norm([g.numpy() for g in recorded.values()]), limit)

        def step(g: Tensor) -> Tensor:
            return rate * g / (g.abs() + s["e"] / math.sqrt(1 - s["b2"]))

        tolerance = {}
        for name, start in self.values("init").items():
            g, d = scale * recorded[name].double(), scale * errors[name]
            off = torch.maximum(step(g + d) - step(g), step(g) - step(g - d))
            tolerance[name] = off + EPS32 * (8 * rate + 2 * start.abs())
        return tolerance

    def model(self) -> DoubleHeadsModel:
        """Our model with the case's initial parameters."""
        model = DoubleHeadsModel(self.config)
        values = self.values("init")
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(values[name])
        return model
