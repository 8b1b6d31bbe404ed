"""Compare the time of generation with transformers, whose GPT-1 has no cache of keys.

    python -m benchmarks.generation                                   # one to two minutes
    python -m benchmarks.generation --new_tokens 400 --rounds 1       # some minutes

Both models have the same random weights of the paper's size, generate greedily, and take turns in
one process with torch's default number of threads. The time per token for several prompts at once
is compared with that for one prompt, too. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.harness import (
    in_turns,
    machine,
    parser,
    positive,
    require_transformers,
    timed,
    write_json,
)
from benchmarks.peer import copy_weights, peer_config
from gpt1.inference.decoding import DTYPES, Decoder
from gpt1.inference.search import one_by_one
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.device import keep_freed_memory
from gpt1.runtime.errors import InputError, report_errors

Tokens = list[list[int]]
STD = 0.1  # of the embedding rows; with the usual 0.02 most tokens would be almost equally likely


def random_model(config: ModelConfig, device: torch.device) -> DoubleHeadsModel:
    """Make a model whose greedy texts do not depend on rounding."""
    model = DoubleHeadsModel(config)
    generator = torch.Generator().manual_seed(0)
    model.init_parameters(generator)
    with torch.no_grad():
        model.we.normal_(0, STD, generator=generator)
    return model.to(device).eval()


def peer_of(model: DoubleHeadsModel, precision: str) -> Any:
    """Make transformers' model with the same weights, in the same floating-point type."""
    config = model.config
    theirs = peer_config(config, n_tokens=config.n_vocab, n_positions=config.n_ctx)
    peer = require_transformers().OpenAIGPTLMHeadModel(theirs)
    copy_weights(peer.transformer, model)
    peer.tie_weights()
    return peer.to(model.we.device, DTYPES[precision]).eval()


def generate_ours(decoder: Decoder, prompts: Tokens, n_new: int) -> Tokens:
    """Generate ``n_new`` tokens for each prompt with gpt1's decoder."""
    return torch.stack(list(one_by_one(decoder, prompts, n_new)), 1).tolist()


def generate_theirs(peer: Any, prompts: Tokens, n_new: int) -> Tokens:
    """Generate ``n_new`` tokens per prompt with transformers; prompts must be equally long."""
    ids = torch.tensor(prompts, device=peer.device)
    whole = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: Tokens = whole[:, ids.shape[1] :].tolist()
    return tokens


def n_equal(ours: list[int], theirs: list[int]) -> int:
    """Count the tokens before the first difference of two texts."""
    pairs = zip(ours, theirs, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))


def benchmark(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make all measurements, and print each as soon as it is made."""
    sizes = {name: getattr(args, name) for name in ("n_vocab", "n_embd", "n_layer", "n_head")}
    config = ModelConfig(n_ctx=args.n_ctx, **sizes)
    model = random_model(config, args.device)
    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, args.prompt)
    prompts: Tokens = torch.randint(0, config.n_vocab, shape, generator=generator).tolist()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.0f} million parameters, prompts of {args.prompt} tokens")
    found = []
    for precision in args.precision:
        begin = time.perf_counter()
        decoder = Decoder(model, precision)
        print(f"{precision}: decoder made in {time.perf_counter() - begin:.2f} s")
        peer = None if args.no_peer else peer_of(model, precision)
        for n_new in args.new_tokens:
            figures = compare(decoder, peer, prompts, n_new, args.rounds)
            found.append({"precision": precision, **figures})
            print(line(found[-1]), flush=True)
    return found


def compare(
    decoder: Decoder, peer: Any, prompts: Tokens, n_new: int, rounds: int
) -> dict[str, Any]:
    """Time gpt1's decoder for one prompt and for all prompts, and transformers for one prompt."""
    one = prompts[:1]
    bodies: dict[str, Callable[[], Tokens]] = {
        "one": partial(generate_ours, decoder, one, n_new),
        "batch": partial(generate_ours, decoder, prompts, n_new),
    }
    if peer is not None:
        bodies["peer"] = partial(generate_theirs, peer, one, n_new)
    tokens = {name: body() for name, body in bodies.items()}  # This call also warms up.
    # The tokens are on the CPU when they are returned: nothing is still running.
    ways = {name: partial(timed, body) for name, body in bodies.items()}
    seconds = in_turns(ways, rounds, warm_up=0)
    entry = {
        "new_tokens": n_new,
        "seconds": seconds["one"],
        "tokens_per_second": n_new / seconds["one"],
        "batch": len(prompts),
        "batch_seconds": seconds["batch"],
        "batch_tokens_per_second": n_new * len(prompts) / seconds["batch"],
        "batch_times_one": len(prompts) * seconds["one"] / seconds["batch"],
    }
    if peer is not None:
        entry |= {
            "peer_seconds": seconds["peer"],
            "times_the_peer": seconds["peer"] / seconds["one"],
            "equal_tokens": n_equal(tokens["one"][0], tokens["peer"][0]),
        }
    return entry


def line(entry: dict[str, Any]) -> str:
    """Describe a measurement in words."""
    text = "{precision}, {new_tokens} tokens: {seconds:.2f} s, {tokens_per_second:.1f} tokens/s; "
    text += "{batch} prompts {batch_seconds:.2f} s, {batch_tokens_per_second:.1f} tokens/s, "
    text += "{batch_times_one:.1f} times one"
    if "peer_seconds" in entry:
        text += "; transformers {peer_seconds:.2f} s: {times_the_peer:.1f} times as fast, "
        text += "{equal_tokens} tokens equal"
    return text.format(**entry)


def run(args: argparse.Namespace) -> int:
    """Measure, print the figures, and write them as JSON."""
    if args.prompt + max(args.new_tokens) > args.n_ctx:
        raise InputError(f"--prompt and --new_tokens are together more than --n_ctx {args.n_ctx}")
    keep_freed_memory()  # as gpt1 generate does; it helps transformers, too
    found = machine(args.device)
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    write_json(args.json, {**found, "measurements": benchmark(args)})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    add = flags.add_argument
    add("--new_tokens", nargs="+", type=positive, default=[64], help="tokens [64]")
    add("--prompt", type=positive, default=32, help="tokens of a prompt [32]")
    add("--batch", type=positive, default=16, help="prompts at a time [16]")
    add("--rounds", type=positive, default=3, help="rounds that count [3]")
    add("--precision", nargs="+", choices=tuple(DTYPES), default=["fp32"], help="types [fp32]")
    add("--no_peer", action="store_true", help="leave transformers out")
    sizes = {"n_vocab": 40478, "n_ctx": 512, "n_embd": 768, "n_layer": 12, "n_head": 12}
    for name, size in sizes.items():
        add(f"--{name}", type=positive, default=size, help=f"size of the model [{size}]")
    return report_errors("benchmarks.generation", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
