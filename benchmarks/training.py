"""Compare time and memory of fine-tuning and prediction with transformers, in one run.

    python -m benchmarks.training                      # stories with ROCStories' lengths
    python -m benchmarks.training --data_dir data --model_dir model --json out/training.json

transformers (the peer) and gpt1 take turns on the same weights and the same stories, each in a
separate process that is set up as its users would set it up. Medians are compared, and the
documentation reports ratios only. The speed of the machine's matrix products, which limits both, is
measured in the same run. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import pack
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.inference.prediction import predict_logits
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.device import arithmetic, keep_freed_memory
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.tasks import StoryChoices
from gpt1.text_utils.special import SpecialTokens
from gpt1.training.fine_tuning import tower_batches, tower_gradients

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
VARIANTS = ("peer", "ours", "ours, shared prefix")


def draw_stories(n: int, seed: int, n_vocab: int = N_VOCAB) -> EncodedSplit:
    """Draw stories of random tokens whose lengths are distributed as in ROCStories."""
    rng = np.random.default_rng(seed)

    def texts(deciles: Sequence[int]) -> list[list[int]]:
        lengths = np.interp(rng.random(n), np.linspace(0, 1, len(deciles)), deciles).round()
        return [rng.integers(1, n_vocab, int(length)).tolist() for length in lengths]

    labels = rng.integers(0, 2, n).tolist()
    stories, *endings = (texts(each) for each in (STORY_DECILES, ENDING_DECILES, ENDING_DECILES))
    for ending in endings:  # No choice is longer than the longest one of ROCStories.
        ending[:] = [
            ids[: N_CTX - 3 - len(story)] for ids, story in zip(ending, stories, strict=True)
        ]
    special, layout = SpecialTokens.after(n_vocab), StoryChoices()
    examples = [
        layout.sequences(texts, special, 512) for texts in zip(stories, *endings, strict=True)
    ]
    return EncodedSplit.of(examples, special, labels)


def real_stories(data_dir: Path, model_dir: Path, n: int) -> EncodedSplit:
    """Return the first n training stories of the real data."""
    from gpt1.settings.training import Settings
    from gpt1.training.prepare import load_data
    from gpt1.training.sources import find_sources

    settings = Settings(data_dir=str(data_dir), model_dir=str(model_dir), n_transfer=-1)
    sources = find_sources(settings, ROCSTORIES)
    return load_data(settings, sources, verbose=False).train.take(slice(0, n))


class Ours:
    """gpt1's model and optimizer, used as in a training run."""

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

    def train(self, stories: EncodedSplit, precision: str, n_gpu: int) -> None:
        """Make one update on all stories, in n_gpu towers."""
        batches = tower_batches(
            stories,
            self.model.config.clf_token,
            self.ranks,
            n_towers=n_gpu,
            share_prefix=self.share_prefix,
        )
        tower_gradients(
            Replica(self.model, self.ranks),
            batches,
            seeds=range(n_gpu),
            lm_coef=LM_COEF,
            precision=precision,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, stories: EncodedSplit, precision: str) -> npt.NDArray[np.float32]:
        """Compute the logits of all stories."""
        return predict_logits(self.model, stories, self.ranks, n_batch=32, precision=precision)


class Peer:
    """transformers' double-heads GPT-1, trained as usual: with padding, AdamW and clipping."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.device = device
        n_tokens = config.n_vocab + config.n_special
        peer = peer_config(config, n_tokens=n_tokens, n_positions=512)
        self.model = require_transformers().OpenAIGPTDoubleHeadsModel(peer)
        ours = Ours(config, torch.device("cpu"), share_prefix=False)
        copy_weights(self.model.transformer, ours.model)  # Both models have the same weights.
        self.model.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=6.25e-5, weight_decay=0.01, fused=True
        )

    def inputs(self, stories: EncodedSplit) -> dict[str, Tensor]:
        """Make padded ids, the positions of ``_classify_``, and labels with -100 on padding."""
        lengths = torch.from_numpy(stories.lengths).long()
        mask = torch.arange(N_CTX) < lengths[..., None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.from_numpy(stories.ids.astype(np.int64))
        assert stories.targets is not None
        found = {
            "input_ids": ids,
            "mc_token_ids": lengths - 1,
            "labels": ids.masked_fill(~mask, -100),
            "mc_labels": torch.from_numpy(stories.targets.astype(np.int64)),
        }
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def train(self, stories: EncodedSplit, precision: str, n_gpu: int) -> None:
        """Make one update in ``n_gpu`` parts as gpt1 does, so that both keep equal activations."""
        size = stories.n_examples // n_gpu
        for part in range(n_gpu):
            inputs = self.inputs(stories.take(slice(part * size, (part + 1) * size)))
            with arithmetic(precision, self.device):
                out = self.model(**inputs)
                loss = out.mc_loss + LM_COEF * out.loss
            (loss / n_gpu).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, stories: EncodedSplit, precision: str) -> npt.NDArray[np.float32]:
        """Compute the logits of all stories; transformers always computes the LM head, too."""
        self.model.eval()
        found = []
        with torch.no_grad(), arithmetic(precision, self.device):
            for begin in range(0, stories.n_examples, 32):
                inputs = self.inputs(stories.take(slice(begin, begin + 32)))
                out = self.model(inputs["input_ids"], mc_token_ids=inputs["mc_token_ids"])
                found.append(out.mc_logits.float().cpu().numpy())
        self.model.train()
        return np.concatenate(found)


def flop_per_story(stories: EncodedSplit, config: ModelConfig, *, shared: bool) -> dict[str, float]:
    """Count FLOP per story in matrix products on real tokens, for training and prediction."""
    batch = pack(stories, config.clf_token, share_prefix=shared)
    n, n_lm = len(batch.tokens), len(batch.lm_rows)
    D, L = config.n_embd, config.n_layer
    body, head = 2 * 12 * L * D * D, 2 * config.n_rows * D
    B = stories.n_examples
    # The last layer of a prediction: keys and values everywhere, the rest at 2 tokens per story.
    last = 2 * 2 * D * D * n + 2 * 10 * D * D * 2 * B
    predict = n * body * (L - 1) / L + last
    return {"train": 3 * (n * body + n_lm * head) / B, "predict": predict / B}


def prepare(args: argparse.Namespace, stories: EncodedSplit, variant: str) -> Callable[..., float]:
    """Set up a variant in its process, as its users would; return the function for requests.

    The requests are ("train" or "predict", precision, towers) for seconds, and ("peak",) for GiB.
    """
    config = config_of(args, stories)
    if variant == "peer":
        side: Ours | Peer = Peer(config, args.device)
    else:
        if args.device.type == "cpu":
            keep_freed_memory()  # as a training run does
        side = Ours(config, args.device, share_prefix=variant == VARIANTS[2])
    batch = stories.take(slice(0, args.stories))

    def answer(work: str, precision: str = "fp32", n_gpu: int = 1) -> float:
        if work == "train":
            return timed(partial(side.train, batch, precision, n_gpu), args.device)
        if work == "predict":
            return timed(partial(side.predict, stories, precision), args.device)
        return peak_gib(args.device)

    return answer


def compare(args: argparse.Namespace, stories: EncodedSplit) -> dict[str, Any]:
    """Measure seconds per story, their ratios, and the used shares of the machine's speed."""
    workers = {variant: Worker(prepare, args, stories, variant) for variant in VARIANTS}
    for worker in workers.values():
        worker.ask("peak")  # The machine's limit must not be measured while the workers start.
    found: dict[str, Any] = {}
    for precision in args.precision:
        rate = matmul_rates(args.device, precision)["torch.mm"]
        for work in ("train", "predict"):
            # Prediction always shares prefixes.
            names = VARIANTS if work == "train" else VARIANTS[::2]
            ways = {
                name: partial(workers[name].seconds, work, precision, args.n_gpu) for name in names
            }
            seconds = in_turns(ways, args.rounds)
            for name, value in seconds.items():
                measured = stories if work == "predict" else stories.take(slice(0, args.stories))
                found[f"{work} {precision} {name}"] = entry(
                    args, measured, name, work, rate, value, seconds["peer"]
                )
        found[f"matmul {precision} GFLOP/s"] = rate / 1e9
        for name in VARIANTS[::2]:
            train, predict = (
                found[f"{work} {precision} {name}"]["seconds_per_story"]
                for work in ("train", "predict")
            )
            whole = TRAINED_STORIES * train + PREDICTED_STORIES * predict
            found[f"whole fine-tuning {precision} {name}, seconds (from the above)"] = whole
    for worker in workers.values():
        worker.close()
    return found


def entry(
    args: argparse.Namespace,
    stories: EncodedSplit,
    name: str,
    work: str,
    rate: float,
    seconds: float,
    of_the_peer: float,
) -> dict[str, float]:
    """Return the figures of one measurement, for the table and the JSON file."""
    figures = {"seconds_per_story": seconds / stories.n_examples}
    if name != "peer":
        flop = flop_per_story(stories, config_of(args, stories), shared=name == VARIANTS[2])
        figures |= {
            "limit_seconds_per_story": flop[work] / rate,
            "share_of_limit": flop[work] / rate / figures["seconds_per_story"],
            "times_the_peer": of_the_peer / seconds,
        }
    return figures


def config_of(args: argparse.Namespace, stories: EncodedSplit) -> ModelConfig:
    """Return a configuration of the sizes that the flags give, by default the paper's."""
    sizes = {name: getattr(args, name) for name in ("n_embd", "n_layer", "n_head")}
    return ModelConfig(n_vocab=N_VOCAB, n_ctx=N_CTX, **sizes)


def peak_memory(args: argparse.Namespace, stories: EncodedSplit, variant: str) -> float:
    """Measure the peak GiB of two updates in a separate process (device memory on a GPU)."""
    worker = Worker(prepare, args, stories, variant)
    for _ in range(WARM_UP):
        worker.ask("train", "fp32", args.memory_towers)
    peak = worker.seconds("peak")
    worker.close()
    return peak


def table(found: dict[str, Any]) -> str:
    """Format the figures as a table."""
    lines = [f"{'':62}{'s per story':>11}{'limit':>8}{'of limit':>10}{'times peer':>12}"]
    for name, value in found.items():
        if not isinstance(value, dict):
            lines.append(
                f"{name:62}{value:10.1f}" if isinstance(value, float) else f"{name:62}{value}"
            )
            continue
        line = f"{name:62}{value['seconds_per_story']:10.4f}"
        if "share_of_limit" in value:
            line += f"{value['limit_seconds_per_story']:8.4f}{value['share_of_limit']:10.0%}"
            line += f"{value['times_the_peer']:12.2f}"
        lines.append(line)
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and write the JSON file."""
    transformers = require_transformers()
    if args.stories % args.n_gpu:
        raise InputError(f"--stories {args.stories}: must be a multiple of --n_gpu {args.n_gpu}")
    n = max(args.stories, args.predict_stories)
    drawn = args.data_dir is None
    stories = draw_stories(n, seed=0) if drawn else real_stories(args.data_dir, args.model_dir, n)
    found: dict[str, Any] = {**machine(args.device), "transformers": transformers.__version__}
    found["tokens per story, padded / real / shared"] = " / ".join(
        map(str, tokens_per_story(stories))
    )
    found |= compare(args, stories)
    if not args.no_memory:
        for variant in VARIANTS:
            found[f"peak GiB, {variant}"] = peak_memory(args, stories, variant)
    print(table(found))
    write_json(args.json, found)
    return 0


def tokens_per_story(stories: EncodedSplit) -> list[float]:
    """Return mean tokens per story: with padding, without, and with the shared prefix once."""
    shared = pack(stories, N_VOCAB + 2, share_prefix=True)
    padded = 2 * N_CTX
    return [padded, round(len(stories.ids) / stories.n_examples, 1),
            round(len(shared.tokens) / stories.n_examples, 1)]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    add = flags.add_argument
    add("--data_dir", type=Path, help="the real CSVs [draw stories instead]")
    add("--model_dir", type=Path, default=Path("model"), help="vocabulary and merges [model]")
    add("--stories", type=positive, default=32, help="stories per update [32]")
    add("--predict_stories", type=positive, default=128, help="stories to predict [128]")
    add("--n_gpu", type=positive, default=4, help="towers per update [4]")
    add("--memory_towers", type=positive, default=1, help="towers when memory is measured [1]")
    add("--rounds", type=positive, default=3, help="rounds that count [3]")
    add("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    add("--no_memory", action="store_true", help="leave the memory out")
    for name, default in (("n_embd", 768), ("n_layer", 12), ("n_head", 12)):
        add(f"--{name}", type=positive, default=default, help=f"size of the model [{default}]")
    return report_errors("benchmarks.training", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
