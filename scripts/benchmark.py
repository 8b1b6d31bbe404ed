"""Time and memory of fine-tuning and prediction, beside transformers, in one run.

    python scripts/benchmark.py                        # stories with ROCStories' lengths
    python scripts/benchmark.py --data_dir data --model_dir model --json benchmark.json

Peer and ours take turns on the same weights and the same stories, each in a process of its own, set
up as its users would have it; what is compared are medians, and what is claimed are ratios. The
machine's own limit for matrix products is measured in the same run. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt1 import batches, datasets
from gpt1.batches import ChoiceArrays, SpecialTokens, pack
from gpt1.device import keep_freed_memory
from gpt1.errors import InputError, report_errors
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.opt import OpenAIAdam
from gpt1.predict import predict_logits
from gpt1.ranks import Ranks, Replica
from gpt1.steps import tower_gradients

N_VOCAB = 40478
N_CTX = 77
LM_COEF = 0.5
# Deciles (0 % to 100 %) of ROCStories' lengths in tokens, over validation and test stories.
STORY_DECILES = (21, 31, 34, 37, 39, 41, 43, 45, 47, 50, 64)
ENDING_DECILES = (3, 5, 6, 7, 8, 9, 9, 10, 11, 12, 17)
# What the default fine-tuning on ROCStories computes: 3 epochs of 46 updates of 32 stories, three
# evaluations on 2 * 374 stories, the test set.
TRAINED_STORIES = 3 * 46 * 32
PREDICTED_STORIES = 3 * 2 * 374 + 1871
WARM_UP = 2  # rounds until the processes have all the memory that they will use
VARIANTS = ("peer", "ours", "ours, shared prefix")


def draw_stories(n: int, seed: int) -> ChoiceArrays:
    """Stories of random tokens whose lengths are distributed as ROCStories'."""
    rng = np.random.default_rng(seed)

    def texts(deciles: Sequence[int]) -> list[list[int]]:
        lengths = np.interp(rng.random(n), np.linspace(0, 1, len(deciles)), deciles).round()
        return [rng.integers(1, N_VOCAB, int(length)).tolist() for length in lengths]

    labels = rng.integers(0, 2, n).tolist()
    stories, *endings = (texts(each) for each in (STORY_DECILES, ENDING_DECILES, ENDING_DECILES))
    for ending in endings:  # no choice is longer than ROCStories' longest
        ending[:] = [
            ids[: N_CTX - 3 - len(story)] for ids, story in zip(ending, stories, strict=True)
        ]
    split = batches.EncodedCloze(stories, *endings, labels)
    return batches.transform_roc(split, SpecialTokens.after(N_VOCAB), n_ctx=N_CTX, max_len=254)


def real_stories(data_dir: Path, model_dir: Path, n: int) -> ChoiceArrays:
    """The first n training stories of the real data."""
    from gpt1.prepare import load_task
    from gpt1.settings import Settings, find_sources

    settings = Settings(data_dir=str(data_dir), model_dir=str(model_dir), n_transfer=-1)
    sources = find_sources(settings, (datasets.VALIDATION_CSV, datasets.TEST_CSV))
    return load_task(settings, sources, verbose=False).train.take(slice(0, n))


class Ours:
    """Our model and optimizer, as a training run uses them."""

    def __init__(self, config: ModelConfig, device: torch.device, *, share_prefix: bool) -> None:
        self.ranks = Ranks(0, 1, device)
        self.share_prefix = share_prefix
        self.model = DoubleHeadsModel(config)
        self.model.init_parameters(torch.Generator().manual_seed(0))
        self.model.to(device).train()
        self.optimizer = OpenAIAdam(
            self.model.parameters(),
            lr=6.25e-5,
            schedule="warmup_linear",
            warmup=0.002,
            t_total=1000,
            l2=0.01,
            max_grad_norm=1,
        )

    def train(self, stories: ChoiceArrays, precision: str, n_gpu: int) -> None:
        """One update on all stories, in n_gpu towers."""
        tower_gradients(
            Replica(self.model, self.ranks),
            stories,
            seeds=range(n_gpu),
            lm_coef=LM_COEF,
            precision=precision,
            share_prefix=self.share_prefix,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, stories: ChoiceArrays, precision: str) -> np.ndarray:
        """Logits of all stories."""
        return predict_logits(self.model, stories, self.ranks, n_batch=32, precision=precision)


class Peer:
    """transformers' double-heads GPT-1 as its users train it: padded, AdamW, clipping."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel

        self.device, self.n_vocab = device, config.n_vocab
        sizes = {name: getattr(config, name) for name in ("n_embd", "n_layer", "n_head")}
        peer = OpenAIGPTConfig(
            vocab_size=config.n_vocab + config.n_special,
            n_positions=512,
            summary_first_dropout=0.1,
            **sizes,
        )
        self.model = OpenAIGPTDoubleHeadsModel(peer).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=6.25e-5, weight_decay=0.01, fused=True
        )

    def copy_weights(self, ours: DoubleHeadsModel) -> None:
        """Take over our weights, so that both compute on the same numbers."""
        config, named = ours.config, dict(ours.named_parameters())
        rows = config.n_vocab + config.n_special
        theirs = self.model.transformer
        with torch.no_grad():
            theirs.tokens_embed.weight.copy_(named["we"][:rows])
            theirs.positions_embed.weight[: config.n_ctx] = named["we"][rows:]
            for name, parameter in theirs.h.named_parameters():
                own = name.replace("ln_1.weight", "ln_1.g").replace("ln_2.weight", "ln_2.g")
                own = own.removesuffix("eight").removesuffix("ias")
                parameter.copy_(named[f"h.{own}"])

    def inputs(self, stories: ChoiceArrays) -> dict[str, Tensor]:
        """Padded ids, the places of ``_classify_``, labels with -100 on padding."""
        ids = torch.from_numpy(stories.X[..., 0].astype(np.int64))
        mask = torch.from_numpy(stories.M)
        found = {
            "input_ids": ids,
            "mc_token_ids": mask.sum(-1).long() - 1,
            "labels": ids.masked_fill(mask == 0, -100),
            "mc_labels": torch.from_numpy(stories.Y.astype(np.int64)),
        }
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def train(self, stories: ChoiceArrays, precision: str, n_gpu: int) -> None:
        """One update; ``n_gpu`` parts, as in ours, so that both hold as many activations."""
        size = len(stories.X) // n_gpu
        for part in range(n_gpu):
            inputs = self.inputs(stories.take(slice(part * size, (part + 1) * size)))
            with self.arithmetic(precision):
                out = self.model(**inputs)
                loss = out.mc_loss + LM_COEF * out.loss
            (loss / n_gpu).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, stories: ChoiceArrays, precision: str) -> np.ndarray:
        """Logits of all stories; its own code computes the language-model head too."""
        self.model.eval()
        found = []
        with torch.no_grad(), self.arithmetic(precision):
            for begin in range(0, len(stories.X), 32):
                inputs = self.inputs(stories.take(slice(begin, begin + 32)))
                out = self.model(inputs["input_ids"], mc_token_ids=inputs["mc_token_ids"])
                found.append(out.mc_logits.float().cpu().numpy())
        self.model.train()
        return np.concatenate(found)

    def arithmetic(self, precision: str) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds count as two: FLOP/s of the products that GPT-1 is made of."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for m, k, n in ((832, 768, 3072), (832, 3072, 768), (832, 768, 2304), (832, 768, 40558)):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        out = torch.empty(m, n, device=device, dtype=dtype)
        torch.mm(a, b, out=out)
        rounds = 10 if device.type == "cpu" else 100
        body = partial(repeat, partial(torch.mm, a, b, out=out), rounds)
        best = max(best, rounds * 2 * m * k * n / timed(body, device))
    return best


def repeat(body: Callable[[], Any], times: int) -> None:
    """Call the body again and again."""
    for _ in range(times):
        body()


def flop_of_a_story(
    stories: ChoiceArrays, config: ModelConfig, *, shared: bool
) -> dict[str, float]:
    """Multiply-adds, as two each, in matrix products on real tokens: training and prediction."""
    batch = pack(stories, config.clf_token, share_prefix=shared)
    n, n_lm = len(batch.tokens), len(batch.lm_rows)
    D, L = config.n_embd, config.n_layer
    body, head = 2 * 12 * L * D * D, 2 * config.n_rows * D
    B = stories.n_stories
    # The last layer of a prediction: keys and values everywhere, the rest at 2 tokens a story.
    last = 2 * 2 * D * D * n + 2 * 10 * D * D * 2 * B
    predict = n * body * (L - 1) / L + last
    return {"train": 3 * (n * body + n_lm * head) / B, "predict": predict / B}


def timed(body: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the body's work is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    body()
    wait()
    return time.perf_counter() - begin


class Worker:
    """One variant in a process of its own, set up as its users would have it."""

    def __init__(self, args: argparse.Namespace, stories: ChoiceArrays, variant: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=serve, args=(args, stories, variant, theirs))
        self._child.start()
        theirs.close()

    def ask(self, *request: Any) -> float:
        """Seconds of ("train" or "predict", precision, towers), or GiB of ("peak",)."""
        try:
            self._pipe.send(request)
            answer: float = self._pipe.recv()
        except (EOFError, ConnectionError):
            return float("nan")  # the process was killed: it needs more memory than there is
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._child.join()


def serve(args: argparse.Namespace, stories: ChoiceArrays, variant: str, pipe: Any) -> None:
    """The body of a worker: answer until the other end is closed."""
    device = torch.device(args.device)
    config = config_of(args, stories)
    if variant == "peer":
        run: Ours | Peer = Peer(config, device)
        run.copy_weights(Ours(config, torch.device("cpu"), share_prefix=False).model)
    else:
        if device.type == "cpu":
            keep_freed_memory()  # as a training run does
        run = Ours(config, device, share_prefix=variant == VARIANTS[2])
    batch = stories.take(slice(0, args.stories))
    while True:
        try:
            work, *options = pipe.recv()
        except EOFError:
            return
        if work == "peak":
            pipe.send(peak_gib(device))
            continue
        if work == "ready":
            pipe.send(0.0)
            continue
        precision, n_gpu = options
        if work == "train":
            body = partial(run.train, batch, precision, n_gpu)
        else:
            body = partial(run.predict, stories, precision)
        pipe.send(timed(body, device))


def in_turns(
    workers: dict[str, Worker], work: str, precision: str, args: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of each worker; they alternate, after rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(-WARM_UP, args.rounds):
        for name, worker in workers.items():
            taken = worker.ask(work, precision, args.n_gpu)
            if turn >= 0:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(args: argparse.Namespace, stories: ChoiceArrays) -> dict[str, Any]:
    """Everything but memory: seconds a story, ratios, shares of the machine's limit."""
    workers = {variant: Worker(args, stories, variant) for variant in VARIANTS}
    for worker in workers.values():
        worker.ask("ready")  # the machine's limit is not measured while they are being made
    found: dict[str, Any] = {}
    for precision in args.precision:
        rate = matmul_rate(torch.device(args.device), precision)
        for work in ("train", "predict"):
            # Prediction always shares prefixes.
            taking_part = workers if work == "train" else {k: workers[k] for k in VARIANTS[::2]}
            seconds = in_turns(taking_part, work, precision, args)
            for name, value in seconds.items():
                measured = stories if work == "predict" else stories.take(slice(0, args.stories))
                found[f"{work} {precision} {name}"] = entry(
                    args, measured, name, work, rate, value, seconds["peer"]
                )
        found[f"matmul {precision} GFLOP/s"] = rate / 1e9
        for name in VARIANTS[::2]:
            train, predict = (
                found[f"{work} {precision} {name}"]["seconds_a_story"]
                for work in ("train", "predict")
            )
            whole = TRAINED_STORIES * train + PREDICTED_STORIES * predict
            found[f"whole fine-tuning {precision} {name}, seconds (from the above)"] = whole
    for worker in workers.values():
        worker.close()
    return found


def entry(
    args: argparse.Namespace,
    stories: ChoiceArrays,
    name: str,
    work: str,
    rate: float,
    seconds: float,
    of_the_peer: float,
) -> dict[str, float]:
    """What is reported of one measurement."""
    figures = {"seconds_a_story": seconds / stories.n_stories}
    if name != "peer":
        flop = flop_of_a_story(stories, config_of(args, stories), shared=name == VARIANTS[2])
        figures["limit_seconds_a_story"] = flop[work] / rate
        figures["share_of_limit"] = flop[work] / rate / figures["seconds_a_story"]
        figures["times_the_peer"] = of_the_peer / seconds
    return figures


def config_of(args: argparse.Namespace, stories: ChoiceArrays) -> ModelConfig:
    """The paper's sizes, or those asked for."""
    sizes = {name: getattr(args, name) for name in ("n_embd", "n_layer", "n_head")}
    return ModelConfig(n_vocab=N_VOCAB, n_ctx=stories.X.shape[2], **sizes)


def peak_memory(args: argparse.Namespace, stories: ChoiceArrays, variant: str) -> float:
    """GiB at the highest point of two updates, in a process of its own (GPU: device memory)."""
    worker = Worker(args, stories, variant)
    for _ in range(2):
        worker.ask("train", "fp32", args.memory_towers)
    peak = worker.ask("peak")
    worker.close()
    return peak


def peak_gib(device: torch.device) -> float:
    """GiB at this process's highest point: of the device on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: it counts the process that started this one, too.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'':62}{'s a story':>10}{'limit':>8}{'of limit':>10}{'times peer':>12}"]
    for name, value in found.items():
        if not isinstance(value, dict):
            lines.append(
                f"{name:62}{value:10.1f}" if isinstance(value, float) else f"{name:62}{value}"
            )
            continue
        line = f"{name:62}{value['seconds_a_story']:10.4f}"
        if "share_of_limit" in value:
            line += f"{value['limit_seconds_a_story']:8.4f}{value['share_of_limit']:10.0%}"
            line += f"{value['times_the_peer']:12.2f}"
        lines.append(line)
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> dict[str, str]:
    """What the figures were taken on."""
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device} ({name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores)",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    try:
        import transformers
    except ImportError:
        raise InputError("transformers is missing: pip install 'gpt1[bench]'") from None
    if args.data_dir is None:
        stories = draw_stories(max(args.stories, args.predict_stories), seed=0)
    else:
        n = max(args.stories, args.predict_stories)
        stories = real_stories(args.data_dir, args.model_dir, n)
    if args.stories % args.n_gpu:
        raise InputError(f"--stories {args.stories}: must be a multiple of --n_gpu {args.n_gpu}")
    found: dict[str, Any] = {**machine(args), "transformers": transformers.__version__}
    found["tokens a story, padded / real / shared"] = " / ".join(map(str, tokens_a_story(stories)))
    found |= compare(args, stories)
    if not args.no_memory:
        for variant in VARIANTS:
            found[f"peak GiB, {variant}"] = peak_memory(args, stories, variant)
    print(table(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def tokens_a_story(stories: ChoiceArrays) -> list[float]:
    """Mean tokens of a story's two choices: padded, real, with the prefix once."""
    shared = pack(stories, N_VOCAB + 2, share_prefix=True)
    padded = 2 * stories.X.shape[2]
    return [padded, round(float(stories.M.sum()) / len(stories.X), 1),
            round(len(shared.tokens) / len(stories.X), 1)]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, help="the real CSVs [draw stories instead]")
    parser.add_argument(
        "--model_dir", type=Path, default=Path("model"), help="vocabulary and merges"
    )
    parser.add_argument("--stories", type=int, default=32, help="stories an update")
    parser.add_argument(
        "--predict_stories", type=int, default=128, help="stories in a prediction, 32 at a time"
    )
    parser.add_argument("--n_gpu", type=int, default=4, help="towers an update")
    parser.add_argument(
        "--memory_towers", type=int, default=1, help="towers when memory is measured"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no_memory", action="store_true", help="leave the memory out")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    for name, default in (("n_embd", 768), ("n_layer", 12), ("n_head", 12)):
        parser.add_argument(f"--{name}", type=int, default=default, help="the model's size")
    return report_errors("benchmark", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
