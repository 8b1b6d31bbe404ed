"""Measure one part of what benchmarks/gpu.sh measures, on token ids, in this process.

    python -m benchmarks.gpu_parts fast --json out/fast.json
    python -m benchmarks.gpu_parts pretraining --device cpu --small

No text is read, so that spaCy and ftfy need not be installed. The figures are written after each
measurement: what was measured before an error or a time limit is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import generation, training
from benchmarks.cost import flop_per_token
from benchmarks.gpu_data import read_ids, stand_in_corpus, stand_in_data
from benchmarks.gpu_profile import summarize
from benchmarks.harness import (
    machine,
    matmul_rates,
    parser,
    peak_gib,
    synchronize,
    timed,
    write_json,
)
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.task_data import TaskData
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.runtime import device as devices
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.ranks import Ranks
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.groups import OptimizerSettings
from gpt1.settings.pretraining import PretrainSettings
from gpt1.settings.training import Settings
from gpt1.training.checkpoint import Checkpoints, TrainState
from gpt1.training.fine_tuning import FineTuning
from gpt1.training.logs import History, Keeper
from gpt1.training.loop import Evaluation, Job, Listener, Progress, Trainer
from gpt1.training.pretraining import Pretraining
from gpt1.training.runs import make_optimizer
from gpt1.weights import from_list, jl, to_list
from gpt1.weights.parameters import read_params

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of all measurements.

    Attributes:
        model: the sizes of the model.
        n_vocab: tokens in the vocabulary, unless there is a file of ids.
        stories: training, validation and test stories of the fine-tuning.
        first: as many stories of each split make the first, short run, which compiles.
        n_ctx: tokens in a window of pretraining.
        windows: windows in an update of pretraining.
        updates: updates that are timed together, after half as many that are not.
        profiled: updates in a profile.
        product: rows and columns of the matrices of the product rate.
        new_tokens: tokens to generate.
    """

    model: Mapping[str, Any]
    n_vocab: int
    stories: tuple[int, int, int]
    first: tuple[int, int, int]
    n_ctx: int
    windows: int
    updates: int
    profiled: int
    product: int
    new_tokens: int


REAL = Size(
    model={"n_embd": 768, "n_layer": 12, "n_head": 12},
    n_vocab=training.N_VOCAB,
    stories=(1497, 374, 1871),  # those of ROCStories
    first=(256, 64, 64),
    n_ctx=512,
    windows=64,
    updates=20,
    profiled=3,
    product=8192,
    new_tokens=64,
)
SMALL = Size(
    model={"n_embd": 16, "n_layer": 2, "n_head": 2},
    n_vocab=300,
    stories=(64, 8, 8),
    first=(32, 8, 8),
    n_ctx=16,
    windows=8,
    updates=2,
    profiled=1,
    product=64,
    new_tokens=4,
)


@dataclass(kw_only=True)
class Bench:
    """What every part is given, and the figures that it has measured.

    Attributes:
        size: the sizes.
        device: the device that is measured.
        ids: the file of ``python -m benchmarks.gpu --make_ids``; None to draw stories.
        json: where the figures go.
    """

    size: Size
    device: torch.device
    ids: Path | None = None
    json: Path | None = None
    figures: Figures = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def ranks(self) -> Ranks:
        """The only process of the run."""
        return Ranks(0, 1, self.device)

    def add(self, figures: Mapping[str, Any]) -> None:
        """Print figures, and write all figures so far."""
        self.figures |= figures
        for name, value in figures.items():
            print(f"{name}: {value}", flush=True)
        write_json(self.json, self.figures)

    def data(self) -> TaskData:
        """Return the stories, which are drawn unless there is a file of ids."""
        n = self.size.stories
        return stand_in_data(n, self.size.n_vocab) if self.ids is None else read_ids(self.ids, n)

    def settings(self, *, fast: bool, **changes: Any) -> Settings:
        """Return the default settings of fine-tuning, or those of ``--fast`` on this device."""
        settings = Settings(**changes)
        if not fast:
            return settings
        return settings.made_fast(has_bf16=devices.has_bf16(self.device), is_cuda=self.is_cuda)

    def model(self, config: ModelConfig) -> DoubleHeadsModel:
        """Return a model with random weights, always the same, on the device."""
        model = DoubleHeadsModel(config)
        model.init_parameters(torch.Generator().manual_seed(0))
        return model.to(self.device)

    def fine_tuned(self, data: TaskData) -> DoubleHeadsModel:
        """Return the model of a fine-tuning."""
        return self.model(ModelConfig(n_vocab=data.n_vocab, n_ctx=data.n_ctx, **self.size.model))

    def peak(self) -> Figures:
        """Return the peak memory since it was reset; on a CPU since the process began."""
        found = {"peak GiB": round(peak_gib(self.device), 2)}
        if self.is_cuda:
            reserved = torch.cuda.max_memory_reserved(self.device) / 2**30
            found["peak GiB with the allocator's reserve"] = round(reserved, 2)
        return found

    def reset_peak(self) -> None:
        """Forget the peak memory of the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


# ------------------------------------------------------------------- one training run, timed


class Spans:
    """The seconds that kinds of work have taken, the work of the device included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a kind of work."""
        synchronize(self._device)
        begin = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] += time.perf_counter() - begin


class _TimedFineTuning(FineTuning):
    """Fine-tuning whose evaluations are timed."""

    spans: Spans

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        with self.spans.span("evaluations"):
            return super().evaluate(state, ranks, progress)


class _TimedCheckpoints(Checkpoints):
    """Checkpoints whose writing is timed."""

    spans: Spans

    def save(self, state: TrainState, identity: Mapping[str, Any]) -> None:
        with self.spans.span("checkpoints"):
            super().save(state, identity)


def trainer_of(
    bench: Bench,
    job: Job[Any, Any],
    model: DoubleHeadsModel,
    optimizer: OptimizerSettings,
    listeners: Sequence[Listener],
    checkpoints: Checkpoints,
    stop: StopRequests,
) -> Trainer:
    """Return the training loop of a job, as a run makes it."""
    state = TrainState(
        model=model,
        optimizer=make_optimizer(model, optimizer, n_updates=job.n_updates),
        best_score=-1.0,  # so that the first evaluation is kept
    )
    return Trainer(job, state, bench.ranks, checkpoints=checkpoints, listeners=listeners, stop=stop)


def whole_run(
    bench: Bench, settings: Settings, model: DoubleHeadsModel, data: TaskData
) -> tuple[Figures, History]:
    """Fine-tune, evaluate, keep checkpoints and the best parameters, and predict as --submit does.

    Returns:
        The seconds of each kind of work and of all, and the figures that the run logged.
    """
    spans, history, ranks = Spans(bench.device), History(), bench.ranks
    job = _TimedFineTuning(data, settings, settings, config=model.config, settings={})
    job.spans = spans
    with tempfile.TemporaryDirectory() as directory, StopRequests() as stop:
        best = Path(directory) / "best_params.jl"
        checkpoints = _TimedCheckpoints(Path(directory), ranks, print)
        checkpoints.spans = spans

        def keep() -> None:
            with spans.span("best parameters"):
                jl.write_jl(best, to_list(model))

        listeners = [Keeper(keep), history]
        trainer = trainer_of(bench, job, model, settings, listeners, checkpoints, stop)
        with spans.span("whole"):
            trainer.train(resumed=False)
            with spans.span("best parameters"):
                from_list(model, read_params(best), str(best))
            with spans.span("predictions"):
                for split in data.predicted.values():
                    job.predict(model, split, ranks)
    seconds = {name: round(value, 3) for name, value in spans.seconds.items()}
    rest = seconds["whole"] - sum(value for name, value in seconds.items() if name != "whole")
    n = job.n_updates
    seconds |= {"updates": round(rest, 3), "one update": round(rest / n, 5)}
    return {"updates": n, "seconds": seconds}, history


def fine_tuning(bench: Bench, *, fast: bool) -> None:
    """Measure a whole fine-tuning: a short first run, which compiles, and the run itself."""
    settings, data = bench.settings(fast=fast), bench.data()
    chosen = {
        name: getattr(settings, name) for name in ("precision", "compile", "share_prefix", "n_gpu")
    }
    bench.add({"settings": chosen, "tokens": len(data.train.ids), "n_ctx": data.n_ctx})
    devices.set_up(bench.device, precision=settings.precision, deterministic=False)
    model = bench.fine_tuned(data)
    bench.add({"parameters": sum(p.numel() for p in model.parameters())})
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    if settings.compile:
        model.compile_layers()
    short = replace(settings, n_iter=1)
    first, _ = whole_run(bench, short, model, first_of(data, bench.size.first))
    bench.add({"first run, with compilation": first, "graphs of the first run": n_graphs()})
    model.load_state_dict(initial)
    bench.reset_peak()
    graphs = n_graphs()
    whole, history = whole_run(bench, settings, model, data)
    costs = [update.lm_cost for update in history.updates]
    bench.add(
        {
            "whole run": whole,
            "graphs compiled meanwhile": n_graphs() - graphs,
            **bench.peak(),
            "language-model cost, first and last update": [costs[0], costs[-1]],
            "validation accuracy (random weights)": history.evaluations[-1].score,
        }
    )


def first_of(data: TaskData, n: Sequence[int]) -> TaskData:
    """Return the first examples of each split."""
    train, valid, test = (slice(0, each) for each in n)
    return replace(
        data,
        train=data.train.take(train),
        valid=data.valid.take(valid),
        predicted={name: split.take(test) for name, split in data.predicted.items()},
        sources=data.sources[train],
    )


def n_graphs() -> int:
    """Return the number of graphs that torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


# ------------------------------------------------------------------------- a few updates


class _EnoughError(Exception):
    """The updates that are measured have been made."""


class Watch(Listener):
    """Times some updates, then perhaps profiles some more, and ends the training.

    Args:
        bench: the sizes and the device.
        profile: whether to profile.

    Attributes:
        seconds: the seconds of an update.
        profile: the profile in figures and as text; None without one.
    """

    def __init__(self, bench: Bench, *, profile: bool = False) -> None:
        size = bench.size
        self._bench, self._wants_profile = bench, profile
        self._begin = max(1, size.updates // 2)
        self._end = self._begin + size.updates
        self.n_updates = self._end + size.profiled + 1
        self.seconds = float("nan")
        self.profile: Figures | None = None

    def stepped(self, n_updates: int) -> None:
        """Start or stop a clock or the profiler after an update."""
        if n_updates == self._begin:
            synchronize(self._bench.device)
            self._clock = time.perf_counter()
        elif n_updates == self._end:
            synchronize(self._bench.device)
            self.seconds = (time.perf_counter() - self._clock) / self._bench.size.updates
            if not self._wants_profile:
                raise _EnoughError
            self._start()
        elif n_updates == self._end + self._bench.size.profiled:
            self._stop()
            raise _EnoughError

    def _start(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._bench.is_cuda:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=kinds)
        self._profiler.start()

    def _stop(self) -> None:
        synchronize(self._bench.device)
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self.profile = summarize(
                path,
                self._bench.size.profiled,
                seconds_per_update=self.seconds,
                on_gpu=self._bench.is_cuda,
            )


def watch(
    bench: Bench,
    watcher: Watch,
    job: Job[Any, Any],
    model: DoubleHeadsModel,
    settings: OptimizerSettings,
) -> None:
    """Train until the watcher has seen enough."""
    with tempfile.TemporaryDirectory() as directory, StopRequests() as stop:
        checkpoints = Checkpoints(Path(directory), bench.ranks, print)
        with suppress(_EnoughError):
            trainer_of(bench, job, model, settings, [watcher], checkpoints, stop).train(
                resumed=False
            )


def watch_fine_tuning(bench: Bench, settings: Settings, watcher: Watch) -> None:
    """Make updates of a fine-tuning; they are all in one epoch, without an evaluation."""
    n = settings.batch_size * watcher.n_updates
    data = stand_in_data((n, 1, 1), bench.size.n_vocab)
    model = bench.fine_tuned(data)
    if settings.compile:
        model.compile_layers()
    job = FineTuning(data, settings, settings, config=model.config, settings={})
    watch(bench, watcher, job, model, settings)


def watch_pretraining(bench: Bench, watcher: Watch, *, n_gpu: int, is_compiled: bool) -> None:
    """Make updates of a pretraining in bfloat16; they are all in one epoch."""
    size = bench.size
    settings = PretrainSettings(
        corpus="drawn",
        out="nowhere",
        n_batch=size.windows // n_gpu,
        n_gpu=n_gpu,
        n_updates=watcher.n_updates,
        warmup_updates=watcher.n_updates,
        precision="bf16",
    ).paced()
    config = pretrained_config(size)
    model = bench.model(config)
    model.clf.requires_grad_(False)
    if is_compiled:
        model.compile_layers()
    n_tokens = settings.batch_size * size.n_ctx * (watcher.n_updates + 2)
    job = Pretraining(
        stand_in_corpus(n_tokens, config.n_vocab),
        settings,
        config=config,
        precision=settings.precision,
        eval_every=0,
        settings={},
    )
    watch(bench, watcher, job, model, settings.optimizer(watcher.n_updates))


def pretrained_config(size: Size) -> ModelConfig:
    """Return the configuration of a model in pretraining."""
    return ModelConfig(n_vocab=size.n_vocab, n_special=0, n_ctx=size.n_ctx, **size.model)


# ------------------------------------------------------------------------------- the parts


def part_machine(bench: Bench) -> None:
    """Describe the machine, and measure its products and copies."""
    bench.add({**machine(bench.device), "versions of packages": package_versions()})
    if bench.is_cuda:
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit"
        with suppress(OSError):
            done = subprocess.run(
                ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
            )
            bench.add({"nvidia-smi": done.stdout.strip()})
        count = torch.cuda.device_count()
        bench.add({"GPUs": count, "capability": torch.cuda.get_device_capability(bench.device)})
    devices.set_matmul_precision("fp32")
    for precision in ("bf16", "fp32"):
        rate = product_rate(bench, precision)
        bench.add({f"TFLOP/s of large products, {precision}": round(rate / 1e12, 3)})
        if bench.is_cuda:  # A CPU would take long.
            rate = matmul_rates(bench.device, precision)["torch.mm"]
            bench.add({f"TFLOP/s of GPT-1's products, {precision}": round(rate / 1e12, 3)})
    bench.add({"TB/s of a copy, read and write": round(copy_rate(bench) / 1e12, 3)})


def package_versions() -> dict[str, str]:
    """Return the versions of packages that the parts use, and of those that they do without."""
    found = {}
    for name in ("transformers", "triton", "numpy", "pytest", "filelock", "spacy", "ftfy"):
        found[name] = "missing"
        if is_installed(name):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def is_installed(package: str) -> bool:
    """Return whether a package could be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def product_rate(bench: Bench, precision: str) -> float:
    """Measure the FLOP/s of large matrix products of random numbers."""
    n, rounds = bench.size.product, 20
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(rounds):
            torch.mm(a, b, out=out)

    timed(products, bench.device)
    return rounds * 2 * n**3 / timed(products, bench.device)


def copy_rate(bench: Bench) -> float:
    """Measure the bytes per second, read and written, of a copy within the device's memory."""
    n, rounds = 16 * bench.size.product**2, 20
    source = torch.randn(n // 4, device=bench.device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(rounds):
            target.copy_(source)

    timed(copies, bench.device)
    return rounds * 2 * n / timed(copies, bench.device)


def part_pretraining(bench: Bench) -> None:
    """Measure the tokens per second of pretraining, and their share of the product rate."""
    config = pretrained_config(bench.size)
    flop = flop_per_token(config)
    rate = product_rate(bench, "bf16")
    bench.add({"TFLOP/s of large products, bf16": round(rate / 1e12, 3), "FLOP per token": flop})
    devices.set_up(bench.device, precision="bf16", deterministic=False)
    for n_gpu in (4, 1):
        for is_compiled in (True, False) if bench.is_cuda else (False,):
            watcher = Watch(bench)
            bench.reset_peak()
            begin = time.perf_counter()
            watch_pretraining(bench, watcher, n_gpu=n_gpu, is_compiled=is_compiled)
            tokens = bench.size.windows * bench.size.n_ctx / watcher.seconds
            name = f"{n_gpu} towers of {bench.size.windows // n_gpu} windows"
            bench.add(
                {
                    f"{name}, {'compiled' if is_compiled else 'not compiled'}": {
                        "seconds with the start and the compilation": time.perf_counter() - begin,
                        "seconds per update": watcher.seconds,
                        "tokens per second": tokens,
                        "share of the product rate": tokens * flop / rate,
                        **bench.peak(),
                    }
                }
            )


def part_peer(bench: Bench) -> None:
    """Measure transformers on the work of the whole fine-tuning, without files."""
    if not is_installed("transformers"):
        raise InputError("left out: transformers is not installed")
    data = bench.data()
    model = bench.fine_tuned(data)
    evaluated = [data.train.take(slice(0, data.valid.n_examples)), data.valid]
    predicted = [*evaluated * 3, *data.predicted.values()]
    config = model.config
    del model
    for precision in ("bf16", "fp32"):
        bench.reset_peak()
        bench.add({precision: _measure_peer(bench, config, data.train, predicted, precision)})


def _measure_peer(
    bench: Bench,
    config: ModelConfig,
    train: EncodedSplit,
    predicted: Sequence[EncodedSplit],
    precision: str,
) -> Figures:
    """Time transformers: all updates of three epochs in one tower, and all predictions."""
    devices.set_up(bench.device, precision=precision, deterministic=False)
    peer, size = training.Peer(config, bench.device), Settings().batch_size
    per_epoch = train.n_examples // size

    def updates(n: int) -> None:
        for step in range(n):
            begin = step % per_epoch * size
            peer.train(train.take(slice(begin, begin + size)), precision, 1)

    def predictions() -> None:
        for split in predicted:
            peer.predict(_with_targets(split), precision)

    updates(2)
    peer.predict(_with_targets(predicted[0].take(slice(0, size))), precision)
    n = 3 * per_epoch
    seconds = {
        "updates": timed(partial(updates, n), bench.device),
        "evaluations and predictions": timed(predictions, bench.device),
    }
    return {"updates": n, "seconds": seconds, **bench.peak()}


def _with_targets(split: EncodedSplit) -> EncodedSplit:
    """Return a split with targets, which the benchmark of transformers takes everywhere."""
    if split.targets is not None:
        return split
    return replace(split, targets=np.zeros(split.n_examples, np.int32))


def part_profile(bench: Bench) -> None:
    """Profile an update of fine-tuning with ``--fast``, and one of pretraining."""
    for name, settings in (
        ("fine-tuning, --fast", bench.settings(fast=True)),
        ("fine-tuning, default flags", bench.settings(fast=False)),
    ):
        devices.set_up(bench.device, precision=settings.precision, deterministic=False)
        watcher = Watch(bench, profile=True)
        watch_fine_tuning(bench, settings, watcher)
        bench.add({name: watcher.profile})
    devices.set_up(bench.device, precision="bf16", deterministic=False)
    watcher = Watch(bench, profile=True)
    watch_pretraining(bench, watcher, n_gpu=4, is_compiled=bench.is_cuda)
    bench.add({"pretraining, bf16": watcher.profile})


def part_deterministic(bench: Bench) -> None:
    """Train twice with ``--deterministic``, and compare all bits of the parameters."""
    data = bench.data()
    for name, settings in (
        ("default flags", bench.settings(fast=False)),
        ("bf16, shared prefix, not compiled", bench.settings(fast=True)),
    ):
        devices.set_up(bench.device, precision=settings.precision, deterministic=True)
        found = [_digest(_a_few_updates(bench, settings, data)) for _ in range(2)]
        bench.add({f"{name}: the bits are equal": found[0] == found[1], f"{name}: sha256": found})


def _a_few_updates(bench: Bench, settings: Settings, data: TaskData) -> DoubleHeadsModel:
    """Return a model after a few updates."""
    model = bench.fine_tuned(data).train()
    job = FineTuning(data, settings, settings, config=model.config, settings={})
    watcher = Watch(bench)
    watch(bench, watcher, job, model, settings)
    return model


def _digest(model: DoubleHeadsModel) -> str:
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def part_generation(bench: Bench) -> None:
    """Measure generation, by itself and beside transformers."""
    has_peer = is_installed("transformers")
    if not has_peer:
        bench.add({"transformers": "left out: not installed"})
    for no_peer in (True, False) if has_peer else (True,):
        args = argparse.Namespace(
            device=bench.device,
            **bench.size.model,
            n_vocab=bench.size.n_vocab,
            n_ctx=bench.size.n_ctx,
            batch=16,
            prompt=min(32, bench.size.n_ctx // 2),
            precision=["fp32", "bf16"],
            new_tokens=[bench.size.new_tokens],
            rounds=3,
            no_peer=no_peer,
        )
        found = {each["precision"]: each for each in generation.benchmark(args)}
        bench.add({"gpt1" if no_peer else "gpt1 beside transformers": found})


def part_memory(bench: Bench) -> None:
    """Measure the peak memory of an update on 32 stories in one tower."""
    data = bench.data()
    batch = data.train.take(slice(0, 32))
    for precision in ("fp32", "bf16"):
        for recompute in (False, True):
            bench.reset_peak()
            model = bench.fine_tuned(data)
            ours = training.Ours(model.config, bench.device, share_prefix=False)
            ours.model.recompute = recompute
            n = sum(p.numel() for p in model.parameters())
            del model
            for _ in range(2):
                ours.train(batch, precision, 1)
            found = bench.peak()
            kept = 16 * n / 2**30
            found["GiB of parameters, gradients and moments"] = round(kept, 2)
            bench.add({f"{precision}{', --recompute' if recompute else ''}": found})
            del ours


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "machine": part_machine,
    "fast": partial(fine_tuning, fast=True),
    "default": partial(fine_tuning, fast=False),
    "pretraining": part_pretraining,
    "peer": part_peer,
    "profile": part_profile,
    "deterministic": part_deterministic,
    "generation": part_generation,
    "memory": part_memory,
}


def run(args: argparse.Namespace) -> int:
    """Measure a part."""
    bench = Bench(
        size=SMALL if args.small else REAL, device=args.device, ids=args.ids, json=args.json
    )
    PARTS[args.part](bench)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("part", choices=list(PARTS))
    flags.add_argument("--ids", type=Path, metavar="IDS.npz", help="real token ids [drawn ones]")
    flags.add_argument("--small", action="store_true", help="in small, to try the program")
    return report_errors("benchmarks.gpu_parts", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
