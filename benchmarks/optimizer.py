"""Time OpenAIAdam against torch's own fused AdamW, on parameters of GPT-1's sizes.

    python -m benchmarks.optimizer [--device cuda] [--n_embd 96 --n_layer 2]

There are two comparisons: with clipping, where torch's side is ``clip_grad_norm_`` and then AdamW,
and without clipping. Both sides update the same parameters with the same gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.harness import WARM_UP, in_turns, machine, parser, positive, timed, write_json
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.errors import report_errors

LR, L2, E, CLIP = 6.25e-5, 0.01, 1e-8, 1.0


def parameters(config: ModelConfig, device: torch.device) -> list[torch.Tensor]:
    """Make random parameters of a model, with gradients whose norm is above 1."""
    generator = torch.Generator().manual_seed(0)
    model = DoubleHeadsModel(config)
    model.init_parameters(generator)
    params = [p.detach().to(device) for p in model.parameters()]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3).to(device)
    return params


def our_step(params: list[torch.Tensor], clip: float, rounds: int) -> Callable[[], object]:
    """Return a function that makes one update with OpenAIAdam."""
    optimizer = OpenAIAdam(
        params, LR, "warmup_linear", 0.002, rounds + WARM_UP, e=E, l2=L2, max_grad_norm=clip
    )
    return optimizer.step


def torch_step(params: list[torch.Tensor], clip: float) -> Callable[[], object]:
    """Return a function that makes one update with torch's AdamW."""
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": L2},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=E, fused=True)

    def step() -> None:
        if clip > 0:
            clip_grad_norm_(params, clip)
        optimizer.step()

    return step


def run(args: argparse.Namespace) -> int:
    """Make both comparisons and print a line for each."""
    params = parameters(
        ModelConfig(n_ctx=77, n_embd=args.n_embd, n_layer=args.n_layer), args.device
    )
    found: dict[str, object] = {**machine(args.device)}
    found["million parameters"] = sum(p.numel() for p in params) / 1e6
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    for clip in (CLIP, -1.0):
        steps = {"ours": our_step(params, clip, args.rounds), "AdamW": torch_step(params, clip)}
        ways = {name: partial(timed, step, args.device) for name, step in steps.items()}
        seconds = in_turns(ways, args.rounds)
        name = "with clipping" if clip > 0 else "without clipping"
        found[name] = seconds
        print(
            f"{name}: OpenAIAdam {seconds['ours'] * 1e3:.2f} ms, fused AdamW "
            f"{seconds['AdamW'] * 1e3:.2f} ms, ratio {seconds['ours'] / seconds['AdamW']:.3f}"
        )
    write_json(args.json, found)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("--n_embd", type=positive, default=768, help="width [768, GPT-1's]")
    flags.add_argument("--n_layer", type=positive, default=12, help="layers [12, GPT-1's]")
    flags.add_argument(
        "--rounds", type=positive, default=15, help="timed updates of each side [15]"
    )
    return report_errors("benchmarks.optimizer", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
