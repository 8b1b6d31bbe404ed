"""Measure the start of training on as many pairs of texts as MNLI has: encoding, memory, cache.

    python -m benchmarks.encoding --data_dir data/MNLI --book book.txt --model_dir model

The 392,702 training pairs are cut from a book or a collection of books; no two are equal. Their
numbers of words are those of the rows of the real ``train.tsv``. They are written to a temporary
directory in MNLI's format, read back, encoded, and encoded again by a second process that finds the
cache of the first one. The model has one small layer, so that the first update takes no time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch

from benchmarks.harness import Worker, machine, parser, peak_gib, positive, write_json
from benchmarks.training import Ours
from gpt1.batches.cache import Cache
from gpt1.batches.task_data import load_task_data
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import report_errors
from gpt1.tasks import ChoiceIndex, Entailment, Example, Splits, Task
from gpt1.text_utils.encoder import TextEncoder
from gpt1.weights.locate import vocabulary_files

N_TRAIN, N_OTHER = 392_702, 9815
LABELS = ("contradiction", "entailment", "neutral")
PREMISE, HYPOTHESIS, LABEL = 8, 9, -1  # columns of MNLI's train.tsv
BATCH = 32


def lengths_of(train_tsv: Path) -> list[tuple[int, int]]:
    """Return the numbers of words of both texts of each row of the real file."""
    rows = [line.split("\t") for line in train_tsv.read_text("utf-8").splitlines()[1:]]
    return [(len(row[PREMISE].split()), len(row[HYPOTHESIS].split())) for row in rows]


def cut_pairs(
    words: Sequence[str], lengths: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    """Yield different pairs of texts without end, taken from the words one after another.

    When the words are used up, the next round begins one word later, so that the texts differ.
    """
    seen: set[int] = set()
    at, turn = 0, 0
    for first, second in itertools.cycle(lengths):
        if at + first + second > len(words):
            turn += 1
            at = turn
        middle, end = at + first, at + first + second
        pair = " ".join(words[at:middle]), " ".join(words[middle:end])
        at = end
        if (key := hash(pair)) not in seen:
            seen.add(key)
            yield pair


def write_pairs(folder: Path, book: Path, real: Path, n_train: int) -> None:
    """Write ``train.tsv``, ``dev.tsv`` and ``test.tsv`` with MNLI's columns that are read."""
    pairs = cut_pairs(book.read_text("utf-8").split(), lengths_of(real / "train.tsv"))
    header = (real / "train.tsv").read_text("utf-8").partition("\n")[0]
    n_columns = header.count("\t") + 1
    for name, n in (("train", n_train), ("dev", N_OTHER), ("test", N_OTHER)):
        with open(folder / f"{name}.tsv", "w", encoding="utf-8", newline="\n") as file:
            file.write(header + "\n")
            for number, pair in enumerate(itertools.islice(pairs, n)):
                row = [str(number), *[""] * (n_columns - 1)]
                row[PREMISE], row[HYPOTHESIS] = pair
                row[LABEL] = LABELS[number % len(LABELS)]
                file.write("\t".join(row) + "\n")


def read_pairs(folder: Path) -> Splits:
    """Read the three files."""
    train, dev, test = (_read(folder / f"{name}.tsv") for name in ("train", "dev", "test"))
    return Splits(train, dev, {"MNLI": test})


def _read(path: Path) -> list[Example]:
    with open(path, encoding="utf-8", newline="\n") as file:
        next(file)
        rows = (line.rstrip("\n").split("\t") for line in file)
        return [
            Example((row[PREMISE], row[HYPOTHESIS]), LABELS.index(row[LABEL]), f"{path}, line {n}")
            for n, row in enumerate(rows, start=2)
        ]


def task() -> Task:
    """Return MNLI's task as far as it is needed here."""
    return replace(
        ROCSTORIES, name="mnli", title="MNLI", read=read_pairs, layout=Entailment(),
        target=ChoiceIndex(LABELS),
    )  # fmt: skip


def start(folder: Path, model_dir: Path, n_processes: int) -> partial[dict[str, float]]:
    """Prepare the measurement of a start of training in its own process."""
    return partial(_start, folder, model_dir, n_processes)


def _start(folder: Path, model_dir: Path, n_processes: int) -> dict[str, float]:
    """Read, encode and make one update; return seconds and GiB."""
    begin = time.perf_counter()
    encoder = TextEncoder(*vocabulary_files(model_dir))
    before = peak_gib()
    data = load_task_data(
        task(),
        folder,
        encoder,
        n_ctx=512,
        cache=Cache(folder / "cache", print),
        n_processes=n_processes,
    )
    loaded = time.perf_counter()
    peak = peak_gib()
    config = ModelConfig(n_ctx=data.n_ctx, n_embd=12, n_layer=1, n_classes=len(LABELS))
    ours = Ours(config, torch.device("cpu"), share_prefix=False)
    ours.train(data.train.take(slice(0, BATCH)), "fp32", 4)
    splits = (data.train, data.valid, *data.predicted.values())
    kept = sum(array.nbytes for split in splits for array in _arrays(split))
    n_tokens = sum(len(split.ids) for split in splits)
    return {
        "examples": data.train.n_examples,
        "tokens": n_tokens,
        "seconds until all is encoded": round(loaded - begin, 1),
        "seconds until the first update": round(time.perf_counter() - begin, 1),
        "peak GiB until all is encoded": round(peak, 2),
        "peak GiB before": round(before, 2),
        "bytes per token": round((kept + sum(map(sys.getsizeof, data.sources))) / n_tokens, 2),
    }


def _arrays(split: object) -> Iterator[np.ndarray]:
    return (value for value in vars(split).values() if isinstance(value, np.ndarray))


def run(args: argparse.Namespace) -> int:
    """Measure a first and a second start, each in a separate process."""
    print(machine(torch.device("cpu"))["device"])
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pairs(folder, args.book, args.data_dir, args.pairs)
        for name in ("first start", "second start"):
            worker = Worker(start, folder, args.model_dir, args.processes)
            found[name] = worker.ask()
            worker.close()
            print(name, *(f"  {key:32s} {x}" for key, x in found[name].items()), sep="\n")
    write_json(args.json, {**machine(torch.device("cpu")), **found})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    flags = parser(__doc__)
    flags.add_argument("--data_dir", type=Path, default=Path("data/MNLI"), help="has train.tsv")
    flags.add_argument("--book", type=Path, default=Path("book.txt"), help="any long English text")
    flags.add_argument("--model_dir", type=Path, default=Path("model/"))
    flags.add_argument("--pairs", type=positive, default=N_TRAIN)
    flags.add_argument("--processes", type=positive, default=int(joblib.cpu_count()))
    return report_errors("benchmarks.encoding", lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
