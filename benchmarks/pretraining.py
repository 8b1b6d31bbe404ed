"""Compare the speed and memory of pretraining with transformers and plain PyTorch, in one run.

    python -m benchmarks.pretraining                              # the paper's size
    python -m benchmarks.pretraining --json out/pretraining.json
    python -m benchmarks.pretraining --n_layer 4 --n_embd 256 --n_head 4 --n_ctx 128

gpt1, transformers' ``OpenAIGPTLMHeadModel`` and a GPT in plain PyTorch
(``benchmarks/plain_gpt.py``) train on the same windows of random tokens from the same weights, with
dropout 0.1, clipping and AdamW, each in a process of its own that is set up as its users would set
it up. First each of them is measured with every number of windows per backward pass, and the plain
model also with torch.compile; gradients are accumulated so that every update has the same number of
tokens. The fastest way of each is then measured in turns, and medians are compared. The limit is
the speed of the machine's matrix products, measured in the same run. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cost import flop_per_token
from benchmarks.harness import (
    WARM_UP,
    Worker,
    in_turns,
    machine,
    matmul_rates,
    parser,
    peak_gib,
    positive,
    require_transformers,
    timed,
    write_json,
)
from benchmarks.peer import copy_weights, peer_config
from benchmarks.plain_gpt import PlainGPT
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime import device as devices
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.settings.pretraining import PretrainSettings
from gpt1.training.pretraining import window_gradients
from gpt1.training.runs import make_optimizer

SIZES = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_ctx": 512, "n_vocab": 40478}
OURS, TRANSFORMERS, PLAIN = "gpt1", "transformers", "plain PyTorch"
N_UPDATES = (
    100_000  # of the run that the updates are said to belong to; it sets learning rates only
)


class Way(NamedTuple):
    """How one of the three is used.

    Attributes:
        side: which of the three.
        batch: windows per backward pass.
        compiled: whether torch.compile is used.
    """

    side: str
    batch: int
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.side}, {'compiled, ' if self.compiled else ''}batch {self.batch}"


class Ours:
    """gpt1's model and optimizer, as ``gpt1 pretrain`` uses them."""

    def __init__(self, model: DoubleHeadsModel, precision: str, device: torch.device) -> None:
        devices.set_up(device, precision=precision, deterministic=False)
        model.clf.requires_grad_(False)
        self.replica, self.precision = (
            Replica(model.to(device).train(), Ranks(0, 1, device)),
            precision,
        )
        settings = PretrainSettings(corpus="", out="").paced().optimizer(N_UPDATES)
        self.optimizer = make_optimizer(model, settings, n_updates=N_UPDATES)

    def update(self, towers: Sequence[Tensor]) -> None:
        """Make one update."""
        costs = window_gradients(
            self.replica, towers, seeds=range(len(towers)), precision=self.precision
        )
        torch.cat([costs, self.optimizer.measure().reshape(1)]).tolist()  # as Trainer does
        self.optimizer.step()
        self.optimizer.zero_grad()


class Peer:
    """Another model, trained as usual: fused AdamW, clipping, and autocast for bf16."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_of: Callable[[Any, Tensor], Tensor],
        precision: str,
        device: torch.device,
    ) -> None:
        self.model, self.loss_of = model.to(device).train(), loss_of
        self.precision, self.device = precision, device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=2.5e-4, weight_decay=0.01, fused=True
        )

    def update(self, towers: Sequence[Tensor]) -> None:
        """Make one update."""
        for windows in towers:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
                loss = self.loss_of(self.model, windows.to(self.device))
            (loss / len(towers)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_side(config: ModelConfig, way: Way, precision: str, device: torch.device) -> Ours | Peer:
    """Make one of the three; all have the same weights."""
    ours = DoubleHeadsModel(config)
    ours.init_parameters(torch.Generator().manual_seed(0))
    if way.side == OURS:
        return Ours(ours, precision, device)
    if way.side == TRANSFORMERS:
        theirs = peer_config(config, n_tokens=config.n_vocab, n_positions=config.n_ctx)
        model = require_transformers().OpenAIGPTLMHeadModel(theirs)
        copy_weights(model.transformer, ours)
        return Peer(model, lambda model, x: model(x, labels=x).loss, precision, device)
    plain = PlainGPT(ours)
    if way.compiled:
        plain.compile()
    return Peer(plain, lambda model, x: model(x), precision, device)


def draw_windows(config: ModelConfig, n: int, batch: int) -> list[Tensor]:
    """Draw n windows of random tokens, in parts of ``batch`` windows."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, config.n_vocab, (n, config.n_ctx), generator=generator)
    return list(torch.split(windows, batch))


def prepare(args: argparse.Namespace, way: Way, precision: str) -> Callable[[str], float | str]:
    """Set up a way in its process.

    Returns:
        A function of "train" (seconds of one update, or what went wrong) or "peak" (GiB).
    """
    config = config_of(args)
    side = make_side(config, way, precision, args.device)
    towers = draw_windows(config, args.windows, way.batch)

    def answer(work: str) -> float | str:
        if work == "peak":
            return peak_gib(args.device)
        try:
            return timed(partial(side.update, towers), args.device)
        except RuntimeError as error:  # torch.compile found no C++ compiler, for example.
            return str(error).strip().splitlines()[0]

    return answer


def alone(args: argparse.Namespace, way: Way, precision: str) -> float | str:
    """Measure the seconds of an update in a process that ends afterwards: the fastest one counts.

    Returns:
        The seconds, or what went wrong.
    """
    worker = Worker(prepare, args, way, precision)
    found = [worker.ask("train") for _ in range(WARM_UP + args.trials)]
    worker.close()
    failed = [each for each in found if not isinstance(each, float)]
    if failed:
        return str(failed[0] or "the process was ended by the system, perhaps without memory")
    seconds: float = min(found[WARM_UP:])
    return seconds


def fastest(args: argparse.Namespace, side: str, precision: str) -> tuple[Way, dict[str, Any]]:
    """Find the fastest way to use one of the three.

    Returns:
        That way, and the tokens per second of every way, or what went wrong with it.

    Raises:
        InputError: no way works on this machine.
    """
    compiled = [False, True] if side == PLAIN and not args.no_compile else [False]
    ways = [Way(side, batch, how) for how in compiled for batch in args.batches]
    if len(ways) == 1:
        return ways[0], {}
    found = {way: alone(args, way, precision) for way in ways}
    seconds = {way: each for way, each in found.items() if isinstance(each, float)}
    if not seconds:
        raise InputError(f"{side}: {found[ways[0]]}; give smaller --batches")
    per_update = args.windows * args.n_ctx
    shown = {
        f"tried {precision} {way}": per_update / x if isinstance(x, float) else x
        for way, x in found.items()
    }
    return min(seconds, key=seconds.__getitem__), shown


def compare(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Measure the fastest ways of the three in turns, and the machine's limit."""
    found: dict[str, Any] = {}
    chosen: dict[str, Way] = {}
    for side in (OURS, TRANSFORMERS, PLAIN):
        chosen[side], tried = fastest(args, side, precision)
        found |= tried
    workers = {side: Worker(prepare, args, way, precision) for side, way in chosen.items()}
    for worker in workers.values():
        worker.ask("peak")  # The machine's limit must not be measured while the workers start.
    config = config_of(args)
    rates = matmul_rates(
        args.device, precision, rows=2 * args.n_ctx, width=args.n_embd, n_out=args.n_vocab
    )
    turns = {side: partial(worker.seconds, "train") for side, worker in workers.items()}
    seconds = in_turns(turns, args.rounds)
    for worker in workers.values():
        worker.close()
    flop = flop_per_token(config)
    limits = {f"limit by {name}": rate / flop for name, rate in rates.items()}
    for name, rate in rates.items():
        found[f"{precision} {name}, GFLOP/s"] = rate / 1e9
    found |= {f"{precision} {name}, tokens/s": rate for name, rate in limits.items()}
    speeds = {side: args.windows * args.n_ctx / each for side, each in seconds.items()}
    for side, speed in speeds.items():
        figures = {"way": str(chosen[side]), "tokens_per_second": speed}
        figures |= {f"share of {name}": speed / limit for name, limit in limits.items()}
        figures["times_slower_than_gpt1"] = speeds[OURS] / speed
        found[f"{precision} {side}"] = figures
    better = max(speeds[side] for side in (TRANSFORMERS, PLAIN))
    found[f"{precision} gpt1, times the better peer"] = speeds[OURS] / better
    found[f"{precision} gpt1, share of the best limit"] = speeds[OURS] / max(limits.values())
    return found | peaks(args, precision, compiled=chosen[PLAIN].compiled)


def peaks(args: argparse.Namespace, precision: str, *, compiled: bool) -> dict[str, float]:
    """Measure the peak GiB of updates with the same batch, each in a process of its own."""
    found: dict[str, float] = {}
    if args.no_memory:
        return found
    batch = args.memory_batch
    ways = [Way(OURS, batch), Way(TRANSFORMERS, batch), Way(PLAIN, batch, compiled)]
    for way in ways:
        worker = Worker(prepare, args, way, precision)
        for _ in range(WARM_UP):
            worker.ask("train")
        found[f"{precision} peak GiB, {way}"] = worker.seconds("peak")
        worker.close()
    ours, *theirs = found.values()
    found[f"{precision} peak, share of the lower peer's"] = ours / min(theirs, default=math.nan)
    return found


def config_of(args: argparse.Namespace) -> ModelConfig:
    """Return a configuration of the sizes that the flags give, by default the paper's."""
    return ModelConfig(n_special=0, **{name: getattr(args, name) for name in SIZES})


def table(found: dict[str, Any]) -> str:
    """Format the figures as a table."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            shares = ", ".join(
                f"{x:.0%} {key.removeprefix('share ')}"
                for key, x in value.items()
                if key.startswith("share")
            )
            lines.append(
                f"{name:46}{value['tokens_per_second']:10.1f} tokens/s ({value['way']}): {shares}; "
                f"gpt1 is {value['times_slower_than_gpt1']:.2f} times as fast"
            )
        else:
            lines.append(
                f"{name:46}{value:10.2f}" if isinstance(value, float) else f"{name:46}{value}"
            )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and write the JSON file."""
    version = require_transformers().__version__
    for batch in (*args.batches, args.memory_batch):
        if args.windows % batch:
            raise InputError(
                f"--windows {args.windows}: must be a multiple of every batch, such as {batch}"
            )
    found: dict[str, Any] = {**machine(args.device), "transformers": version}
    found["GFLOP per token"] = flop_per_token(config_of(args)) / 1e9
    for precision in args.precision:
        found |= compare(args, precision)
    print(table(found))
    write_json(args.json, found)
    return 0


def precisions(device: torch.device) -> list[str]:
    """Return the precisions that a device computes fast."""
    return ["fp32", "bf16"] if devices.has_bf16(device) else ["fp32"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    add = flags.add_argument
    add("--batches", type=positive, nargs="+", default=[1, 2, 4],
        help="windows per backward pass, of which each takes its best [1 2 4]")  # fmt: skip
    add("--windows", type=positive, default=8, help="windows per update [8]")
    add("--memory_batch", type=positive, default=8, help="batch when memory is measured [8]")
    add("--trials", type=positive, default=2, help="updates that count to find the best batch [2]")
    add("--rounds", type=positive, default=3, help="rounds that count [3]")
    add(
        "--precision", nargs="+", choices=["fp32", "bf16"], help="[fp32, and bf16 where it is fast]"
    )
    add("--no_compile", action="store_true", help="leave torch.compile out")
    add("--no_memory", action="store_true", help="leave the memory out")
    for name, default in SIZES.items():
        add(f"--{name}", type=positive, default=default, help=f"size of the model [{default}]")

    def body() -> int:
        args = flags.parse_args(argv)
        args.precision = args.precision or precisions(args.device)
        return run(args)

    return report_errors("benchmarks.pretraining", body)


if __name__ == "__main__":
    sys.exit(main())
