"""Work out what the paper's pretraining run would cost on one GPU and on eight.

    python -m benchmarks.cost
    python -m benchmarks.cost --utilization 0.45 --dollars 3

Nothing is measured: the time follows from the number of tokens, from the floating-point operations
per token, and from the share of a GPU's peak speed that training is assumed to reach.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import positive, write_json
from gpt1.model import ModelConfig
from gpt1.runtime.errors import report_errors
from gpt1.settings.pretraining import SIZES

N_VOCAB = 40_478  # tokens of the released vocabulary, without the rows of special tokens
N_EPOCHS, BATCH = 100, 64  # of the paper (section 4.1)
BOOKS_CORPUS_WORDS = 984_846_357  # Zhu et al. 2015, table 2
TOKENS_PER_WORD = 1.25
H100_FLOPS = 989e12  # NVIDIA's data sheet of the H100 SXM: bfloat16 without sparsity
UTILIZATION = 0.4
SCALING = 0.9
DOLLARS = 2.5
GPUS = (1, 8)


def flop_per_token(config: ModelConfig) -> float:
    """Count the FLOP of pretraining in matrix products, per token; a multiply-add counts as two.

    The backward pass of a product takes twice the FLOP of its forward pass. The two products of
    attention count for the pairs of a query and a key that it sees, (T + 1) / 2 for each query. The
    output matrix counts for all tokens but the last one of each window, which predicts nothing.

    Args:
        config: the sizes of the model; ``n_ctx`` is the length T of a window.
    """
    D, L, T = config.n_embd, config.n_layer, config.n_ctx
    layers = L * (12 * D * D + 2 * D * (T + 1) / 2)
    head = config.n_vocab * D * (T - 1) / T
    return 3 * 2 * (layers + head)


def estimate(args: argparse.Namespace) -> dict[str, float]:
    """Return tokens, operations, and the hours and dollars of a run on each number of GPUs."""
    config = ModelConfig(n_vocab=N_VOCAB, n_special=0, **SIZES["gpt1"])
    n_tokens = args.words * args.tokens_per_word * args.n_iter
    flop = n_tokens * flop_per_token(config)
    found = {
        "tokens": n_tokens,
        "updates": n_tokens / (BATCH * config.n_ctx),
        "flop_per_token": flop_per_token(config),
        "flop": flop,
        "petaflop_days": flop / 1e15 / 86_400,
    }
    for n in args.gpus:
        speed = n * args.flops * args.utilization * (args.scaling if n > 1 else 1)
        hours = flop / speed / 3600
        found |= {f"hours_{n}": hours, f"dollars_{n}": n * hours * args.dollars}
        found[f"tokens_per_second_{n}"] = n_tokens / hours / 3600
    return found


def report(args: argparse.Namespace, found: dict[str, float]) -> list[str]:
    """Return the lines that show an estimate, as a table for the documents."""
    lines = [
        f"{found['tokens']:.3g} tokens in {args.n_iter} epochs, {found['updates']:,.0f} updates",
        f"{found['flop_per_token'] / 1e6:.0f} million operations per token, "
        f"{found['flop']:.2g} in all, {found['petaflop_days']:.2f} petaflop/s-days",
        "",
        "| GPUs | tokens per second | hours | dollars |",
        "|---|---|---|---|",
    ]
    for n in args.gpus:
        speed, hours = found[f"tokens_per_second_{n}"], found[f"hours_{n}"]
        lines.append(
            f"| {n} | {round(speed, -3):,.0f} | {hours:.0f} | {found[f'dollars_{n}']:.0f} |"
        )
    return lines


def run(args: argparse.Namespace) -> int:
    """Print the estimate."""
    found = estimate(args)
    print("\n".join(report(args, found)))
    write_json(args.json, found)
    return 0


def above_zero(text: str) -> float:
    """Convert an argument to a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def share(text: str) -> float:
    """Convert an argument to a number above 0 that is at most 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at most 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    words, epochs = BOOKS_CORPUS_WORDS, N_EPOCHS
    add("--words", type=positive, default=words, help=f"words of the corpus [{words}]")
    add("--tokens_per_word", type=above_zero, default=TOKENS_PER_WORD, help=f"[{TOKENS_PER_WORD}]")
    add("--n_iter", type=positive, default=epochs, help=f"epochs [{epochs}]")
    add(
        "--flops", type=above_zero, default=H100_FLOPS, help=f"peak speed of a GPU [{H100_FLOPS:g}]"
    )
    add("--utilization", type=share, default=UTILIZATION, help=f"share of it [{UTILIZATION}]")
    add("--scaling", type=share, default=SCALING, help=f"share kept on several GPUs [{SCALING}]")
    add("--dollars", type=above_zero, default=DOLLARS, help=f"price of a GPU per hour [{DOLLARS}]")
    add("--gpus", type=positive, nargs="+", default=list(GPUS), help="numbers of GPUs [1 8]")
    add("--json", type=Path, metavar="FILE", help="write the figures here, too")
    args = made.parse_args(argv)
    return report_errors("benchmarks.cost", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
