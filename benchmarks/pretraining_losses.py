"""Pretrain twice, with gpt1 and with a plain PyTorch model, and compare the losses.

The plain model is that of benchmarks/plain_gpt.py, with PyTorch's AdamW. Both runs have the same
initial values, the same windows in the same order, and no dropout. The plain model runs in float64,
too: its losses are taken for exact, and tell how large the rounding errors of float32 are.

    python -m benchmarks.pretraining_losses --corpus out/corpus --size mini --n_updates 200

All other flags are those of `gpt1 pretrain`. The exit status is 1 if gpt1's losses are farther
from the exact ones than ten times the largest distance of the plain model in float32, or if the
perplexities of the held-out text differ by 1 %.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.plain_gpt import PlainGPT
from gpt1.batches.corpus import Corpus
from gpt1.batches.windows import Windows, in_order, stacked
from gpt1.inference.language_model import make_model
from gpt1.model import ModelConfig
from gpt1.opt import SCHEDULES
from gpt1.runtime.errors import report_errors
from gpt1.settings.pretraining import PRETRAIN, PretrainSettings
from gpt1.training.pretraining_runs import pretrain

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
SHOWN = 10
"""Number of updates that the table shows."""
ROUNDING = 1e-6
"""The distance of two losses of a few nats that differ by a rounding or two in float32."""


class Outcome(NamedTuple):
    """The loss of each update, and the perplexity of the held-out text at the end."""

    losses: list[float]
    perplexity: float


def of_gpt1(settings: PretrainSettings) -> tuple[Outcome, ModelConfig]:
    """Make the run with gpt1, in a temporary directory."""
    with tempfile.TemporaryDirectory() as place:
        places = {"out": f"{place}/model", "log_dir": place, "save_dir": place}
        found = pretrain(**{**settings.as_flags(), **places}, verbose=False)
        losses = [each.lm_cost or 0.0 for each in found.updates]
        # Pretraining has no rows for special tokens, and the opened model has dropout.
        config = replace(found.model.module.config, n_special=0)
        config = replace(config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        return Outcome(losses, found.history[-1]["va_ppl"]), config


def of_plain(config: ModelConfig, settings: PretrainSettings, dtype: torch.dtype) -> Outcome:
    """Make the run with the plain model."""
    corpus = Corpus.open(settings.corpus)
    model = PlainGPT(make_model(config, {}, "", seed=settings.seed)).to(dtype)
    windows = Windows(corpus.train, config.n_ctx)
    per_epoch = windows.n_windows // settings.batch_size
    assert settings.n_updates is not None
    losses, step = [], make_step(model, settings)
    for update in range(settings.n_updates):
        starts = windows.starts(settings.seed, update // per_epoch)
        begin = update % per_epoch * settings.batch_size
        losses.append(step(update + 1, windows.take(starts[begin : begin + settings.batch_size])))
    with torch.no_grad():
        held_out = stacked(in_order(corpus.held_out, config.n_ctx))
        costs = [model(row[None]).item() * (len(row) - 1) for ids in held_out for row in ids]
    n = sum(ids[:, 1:].numel() for ids in held_out)
    return Outcome(losses, math.exp(sum(costs) / n))


def make_step(model: PlainGPT, settings: PretrainSettings) -> partial[float]:
    """Return the function that makes an update."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "l2": settings.l2}, {"params": vectors, "l2": 0.0}]
    return partial(update, model, settings, torch.optim.AdamW(groups))


def update(
    model: PlainGPT,
    settings: PretrainSettings,
    optimizer: torch.optim.AdamW,
    t: int,
    ids: Tensor,
) -> float:
    """Make update t, from 1, on windows [B, T]; return their loss before it.

    The original multiplies the weight decay by the bias corrections of Adam, too, and adds `e` to
    the root of v before its correction. AdamW gets a decay and an epsilon of which that follows.
    """
    assert settings.n_updates is not None
    assert settings.warmup_updates is not None
    assert settings.lr is not None
    schedule = SCHEDULES[settings.lr_schedule]
    root = math.sqrt(1 - settings.b2**t)
    for group in optimizer.param_groups:
        warmup = settings.warmup_updates / settings.n_updates
        group["lr"] = settings.lr * schedule(t / settings.n_updates, warmup)
        group["betas"], group["eps"] = (settings.b1, settings.b2), settings.e / root
        group["weight_decay"] = group["l2"] * root / (1 - settings.b1**t)
    loss = model(ids)
    torch.autograd.backward(loss)
    if settings.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def compare(settings: PretrainSettings) -> int:
    """Make the three runs and print their losses; return the exit status."""
    ours, config = of_gpt1(settings)
    plain, exact = (of_plain(config, settings, each) for each in (torch.float32, torch.float64))
    print(f"{'update':>10} {'float64':>10} {'plain float32':>20} {'gpt1 float32':>20}")
    columns = [np.array(each.losses) for each in (exact, plain, ours)]
    for at in np.linspace(0, len(columns[0]) - 1, SHOWN).round().astype(int):
        truth, *others = (column[at] for column in columns)
        print(f"{at + 1:10} {truth:10.6f}", *(f"{x:10.6f} {x - truth:+9.1e}" for x in others))
    largest = [float(np.abs(column - columns[0]).max()) for column in columns[1:]]
    print(f"{'largest distance':>21} {largest[0]:20.1e} {largest[1]:20.1e}")
    perplexities = [each.perplexity for each in (exact, plain, ours)]
    print("held-out perplexity: {:.4f}, {:.4f}, {:.4f}".format(*perplexities))
    # Roundings differ by chance; a difference of the models or optimizers is far larger.
    is_near = largest[1] <= 10 * max(largest[0], ROUNDING)
    return int(not (is_near and abs(ours.perplexity / exact.perplexity - 1) < 0.01))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = {"out": "unused", **dict.fromkeys(DROPOUTS, 0.0), "n_updates": 200, "device": "cpu"}
    flags = sys.argv[1:] if argv is None else argv

    def run() -> int:
        values = PRETRAIN.parse([*as_arguments(given), *flags])
        return compare(PretrainSettings.of(values).paced())

    return report_errors("benchmarks.pretraining_losses", run)


def as_arguments(given: dict[str, object]) -> list[str]:
    """Return settings as they stand on a command line."""
    return [f"--{name}={value}" for name, value in given.items()]


if __name__ == "__main__":
    sys.exit(main())
