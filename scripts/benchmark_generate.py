"""Time of generation beside transformers, which computes all tokens anew for each new one.

    python scripts/benchmark_generate.py                                   # one to two minutes
    python scripts/benchmark_generate.py --new_tokens 400 --rounds 1       # some minutes

Both have the same random weights of the paper's size, greedy, and take turns in one process with
as many threads as torch takes; what is compared are medians. Then several prompts at a time are
compared with one. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt1.arguments import Parser, number
from gpt1.decoding import DTYPES, Decoder
from gpt1.device import choose_device, keep_freed_memory
from gpt1.errors import InputError, report_errors
from gpt1.files import atomic_write
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.search import one_by_one

STD = 0.1  # of the embedding rows; with the usual 0.02 most tokens are all but equally likely


def random_model(config: ModelConfig, device: torch.device) -> DoubleHeadsModel:
    """A model whose texts do not hang on rounding."""
    model = DoubleHeadsModel(config)
    generator = torch.Generator().manual_seed(0)
    model.init_parameters(generator)
    with torch.no_grad():
        model.we.normal_(0, STD, generator=generator)
    return model.to(device).eval()


def peer_of(model: DoubleHeadsModel, precision: str) -> Any:
    """transformers' model with the same weights, in the same type."""
    try:
        from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel
    except ImportError as error:
        raise InputError(
            "transformers is missing: pip install 'gpt1[bench]', or leave it out by --no_peer"
        ) from error
    config, own = model.config, dict(model.named_parameters())
    sizes = {name: getattr(config, name) for name in ("n_embd", "n_layer", "n_head")}
    peer = OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(vocab_size=config.n_vocab, n_positions=config.n_ctx, **sizes)
    )
    body = peer.transformer
    with torch.no_grad():
        body.tokens_embed.weight.copy_(own["we"][: config.n_vocab])
        body.positions_embed.weight.copy_(own["we"][config.n_vocab + config.n_special :])
        for name, parameter in body.h.named_parameters():
            name = name.replace("ln_1.weight", "ln_1.g").replace("ln_2.weight", "ln_2.g")
            parameter.copy_(own[f"h.{name.removesuffix('eight').removesuffix('ias')}"])
    peer.tie_weights()
    return peer.to(own["we"].device, DTYPES[precision]).eval()


def generate_ours(decoder: Decoder, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """The new tokens of each prompt."""
    return torch.stack(list(one_by_one(decoder, prompts, n_new)), 1).tolist()


def generate_theirs(peer: Any, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """The same by transformers; prompts of one length."""
    ids = torch.tensor(prompts, device=peer.device)
    whole = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return whole[:, ids.shape[1] :].tolist()


def timed(body: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Seconds taken, and the tokens, which are on the CPU: nothing is still running."""
    begin = time.perf_counter()
    tokens = body()
    return time.perf_counter() - begin, tokens


def in_turns(
    ways: dict[str, Callable[[], list[list[int]]]], rounds: int
) -> dict[str, tuple[float, list[list[int]]]]:
    """Median seconds of each way and its tokens."""
    found: dict[str, list[tuple[float, list[list[int]]]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(timed(way))
    return {
        name: (statistics.median(seconds for seconds, _ in results), results[0][1])
        for name, results in found.items()
    }


def n_equal(ours: list[int], theirs: list[int]) -> int:
    """Tokens before the first difference."""
    pairs = zip(ours, theirs, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))


def benchmark(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements, each printed as it comes."""
    sizes = {name: getattr(args, name) for name in ("n_vocab", "n_embd", "n_layer", "n_head")}
    config = ModelConfig(n_ctx=args.n_ctx, **sizes)
    model = random_model(config, choose_device(args.device))
    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, args.prompt)
    prompts = torch.randint(0, config.n_vocab, shape, generator=generator).tolist()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, "
          f"prompts of {args.prompt} tokens, {torch.get_num_threads()} threads")  # fmt: skip
    found = []
    for precision in args.precision:
        begin = time.perf_counter()
        decoder = Decoder(model, precision)
        print(f"{precision}: decoder made in {time.perf_counter() - begin:.2f} s")
        peer = None if args.no_peer else peer_of(model, precision)
        for n_new in args.new_tokens:
            found.append(compare(args, precision, decoder, peer, prompts, n_new))
            print(line(found[-1]), flush=True)
    return found


def compare(
    args: argparse.Namespace,
    precision: str,
    decoder: Decoder,
    peer: Any,
    prompts: list[list[int]],
    n_new: int,
) -> dict[str, Any]:
    """Ours for one prompt and for all, theirs for one."""
    ways = {
        "one": lambda: generate_ours(decoder, prompts[:1], n_new),
        "batch": lambda: generate_ours(decoder, prompts, n_new),
    }
    if peer is not None:
        ways["peer"] = lambda: generate_theirs(peer, prompts[:1], n_new)
        generate_theirs(peer, prompts[:1], 4)  # warm up
    for rows in (prompts[:1], prompts):
        generate_ours(decoder, rows, 4)
    results = in_turns(ways, args.rounds)
    one, batch = results["one"][0], results["batch"][0]
    entry = {
        "precision": precision,
        "new_tokens": n_new,
        "seconds": one,
        "tokens_per_second": n_new / one,
        "batch": len(prompts),
        "batch_seconds": batch,
        "batch_tokens_per_second": n_new * len(prompts) / batch,
        "batch_times_one": len(prompts) * one / batch,
    }
    if peer is not None:
        seconds, tokens = results["peer"]
        entry["peer_seconds"] = seconds
        entry["times_the_peer"] = seconds / one
        entry["equal_tokens"] = n_equal(results["one"][1][0], tokens[0])
    return entry


def line(entry: dict[str, Any]) -> str:
    """A measurement in words."""
    text = "{precision}, {new_tokens} tokens: {seconds:.2f} s, {tokens_per_second:.1f} tokens/s; "
    text += "{batch} prompts {batch_seconds:.2f} s, {batch_tokens_per_second:.1f} tokens/s, "
    text += "{batch_times_one:.1f} times one"
    if "peer_seconds" in entry:
        text += "; transformers {peer_seconds:.2f} s: {times_the_peer:.1f} times as fast, "
        text += "{equal_tokens} tokens equal"
    return text.format(**entry)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return report_errors("benchmark_generate.py", lambda: run(parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    """Everything; the JSON last."""
    if args.prompt + max(args.new_tokens) > args.n_ctx:
        raise InputError(f"--prompt and --new_tokens are together more than --n_ctx {args.n_ctx}")
    keep_freed_memory()  # as gpt1.generate does; good for the peer, too
    found = benchmark(args)
    if args.json is not None:
        with atomic_write(args.json, "w") as file:
            file.write(json.dumps(found, indent=1) + "\n")
    return 0


def parser() -> Parser:
    """The flags; sizes are the paper's."""
    parser = Parser("benchmark_generate.py", "Time generation beside transformers.")
    add = parser.add_argument
    count = number(int, 1)
    add("--new_tokens", metavar="N", nargs="+", type=count, default=[64], help="tokens [64]")
    add("--prompt", metavar="N", type=count, default=32, help="tokens of a prompt [32]")
    add("--batch", metavar="N", type=count, default=16, help="prompts at a time [16]")
    add("--rounds", metavar="N", type=count, default=3, help="turns of each [3]")
    add("--precision", nargs="+", choices=tuple(DTYPES), default=["fp32"], help="types [fp32]")
    add("--no_peer", action="store_true", help="leave transformers out")
    add("--device", help="cpu, cuda, ... [cuda if there is one, else cpu]")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    sizes = {"n_vocab": 40478, "n_ctx": 512, "n_embd": 768, "n_layer": 12, "n_head": 12}
    for name, size in sizes.items():
        add(f"--{name}", metavar="N", type=count, default=size, help=f"size of the model [{size}]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
