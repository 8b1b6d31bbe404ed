"""Time OpenAIAdam against torch's own fused AdamW, on parameters of GPT-1's sizes.

    python scripts/benchmark_optimizer.py [--device cuda] [--n_embd 96 --n_layer 2]

Two comparisons: with clipping (the other side is clip_grad_norm_ and then AdamW) and without.
The two sides take turns, who goes first changes every round, and both work on the same
parameters and gradients; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from gpt1.opt import OpenAIAdam

LR, L2, E, CLIP = 6.25e-5, 0.01, 1e-8, 1.0


def main(argv: list[str] | None = None) -> int:
    """Run both comparisons and print a line for each."""
    args = parse(argv)
    params = parameters(args.rows, args.n_embd, args.n_layer, args.device)
    count = sum(p.numel() for p in params)
    print(
        f"{count / 1e6:.1f} million parameters in {len(params)} arrays, {args.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for clip in (CLIP, -1.0):
        ours, theirs = compare(params, clip, args.rounds)
        name = "with clipping   " if clip > 0 else "without clipping"
        print(
            f"{name}: OpenAIAdam {ours * 1e3:.2f} ms, fused AdamW {theirs * 1e3:.2f} ms, "
            f"ratio {ours / theirs:.3f}"
        )
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n_embd", type=int, default=768, help="width (default: GPT-1's 768)")
    parser.add_argument("--n_layer", type=int, default=12, help="layers (default: GPT-1's 12)")
    parser.add_argument("--rows", type=int, default=40558, help="rows of the embedding matrix")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--rounds", type=int, default=15, help="timed updates of each side")
    return parser.parse_args(argv)


def parameters(rows: int, width: int, n_layer: int, device: str) -> list[torch.Tensor]:
    """Random parameters in the original's shapes, gradients (of norm above 1) included."""
    layer = [(width, 3 * width), (3 * width,), (width, width), (width,), (width,), (width,)]
    layer += [(width, 4 * width), (4 * width,), (4 * width, width), (width,), (width,), (width,)]
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in [(rows, width), *layer * n_layer, (width, 1), (1,)]:
        p = torch.randn(shape, generator=generator).mul_(0.02).to(device)
        p.grad = torch.randn(shape, generator=generator).mul_(1e-3).to(device)
        params.append(p)
    return params


def compare(params: list[torch.Tensor], clip: float, rounds: int) -> tuple[float, float]:
    """Median seconds of one update by OpenAIAdam, and by torch's."""
    steps = [our_step(params, clip, rounds), torch_step(params, clip)]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 2):  # two rounds to warm up
        for side in (0, 1) if turn % 2 else (1, 0):
            seconds = timed(steps[side], params[0].device)
            if turn >= 2:
                times[side].append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


def our_step(params: list[torch.Tensor], clip: float, rounds: int) -> Callable[[], object]:
    optimizer = OpenAIAdam(
        params, LR, "warmup_linear", 0.002, rounds + 2, e=E, l2=L2, max_grad_norm=clip
    )
    return optimizer.step


def torch_step(params: list[torch.Tensor], clip: float) -> Callable[[], object]:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=E, weight_decay=L2, fused=True)

    def step() -> None:
        if clip > 0:
            clip_grad_norm_(params, clip)
        optimizer.step()

    return step


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
