"""Token ids for measurements on a machine that has no data: made beforehand, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training import draw_stories
from gpt1.batches.corpus import Corpus, Header, smallest_dtype
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.task_data import TaskData
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.runtime.errors import InputError
from gpt1.settings.training import Settings
from gpt1.training.prepare import load_data
from gpt1.training.sources import find_sources

SPLITS = ("train", "valid", "test")


def make_ids(path: Path, data_dir: Path, model_dir: Path) -> None:
    """Encode ROCStories, and write its token ids, lengths and labels, without any text.

    Args:
        path: the file to write, ``.npz``.
        data_dir: the directory of the two CSVs.
        model_dir: the directory of the vocabulary and the merges.
    """
    settings = Settings(data_dir=str(data_dir), model_dir=str(model_dir), n_transfer=-1)
    data = load_data(settings, find_sources(settings, ROCSTORIES), verbose=False)
    test = next(iter(data.predicted.values()))
    arrays: dict[str, Any] = {"n_vocab": np.array(data.n_vocab)}
    for name, split in zip(SPLITS, (data.train, data.valid, test), strict=True):
        arrays |= {f"{name}_ids": split.ids, f"{name}_lengths": split.lengths}
        if split.targets is not None:
            arrays[f"{name}_targets"] = split.targets
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_ids(path: Path, n: Sequence[int]) -> TaskData:
    """Read the file of :func:`make_ids`.

    Args:
        path: the file.
        n: the largest number of stories of each split.

    Raises:
        InputError: it is missing, or another file.
    """
    try:
        with np.load(path) as arrays:
            splits = [
                _split(arrays, name).take(slice(0, k)) for name, k in zip(SPLITS, n, strict=True)
            ]
            return _task_data(splits, int(arrays["n_vocab"]))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as a file of ids ({error}); make it with "
            "python -m benchmarks.gpu --make_ids FILE --data_dir DIR --model_dir DIR"
        ) from error


def _split(arrays: np.lib.npyio.NpzFile, name: str) -> EncodedSplit:
    targets = arrays.get(f"{name}_targets")
    return EncodedSplit(
        arrays[f"{name}_ids"], arrays[f"{name}_lengths"], labels=targets, targets=targets
    )


def stand_in_data(n: Sequence[int], n_vocab: int) -> TaskData:
    """Draw stories of random tokens with ROCStories' lengths, ``n`` of each split."""
    return _task_data([draw_stories(k, seed, n_vocab) for seed, k in enumerate(n)], n_vocab)


def _task_data(splits: Sequence[EncodedSplit], n_vocab: int) -> TaskData:
    """Join the splits to the data of a run, which predicts test and validation stories."""
    train, valid, test = splits
    stem = ROCSTORIES.submission
    predicted = {stem: test, f"{stem}.dev": valid}
    return TaskData(
        task=ROCSTORIES,
        train=train,
        valid=valid,
        predicted={
            name: replace(split, labels=None, targets=None) for name, split in predicted.items()
        },
        labels=dict.fromkeys(predicted),
        sources=[f"story {number}" for number in range(train.n_examples)],
        n_vocab=n_vocab,
        n_ctx=max(split.longest for split in splits),
    )


def stand_in_corpus(n_tokens: int, n_vocab: int) -> Corpus:
    """Draw a corpus of random tokens, in memory, with nothing held out."""
    tokens = np.random.default_rng(0).integers(0, n_vocab, n_tokens)
    dtype = smallest_dtype(n_vocab)
    header = Header(
        dtype=dtype,
        n_vocab=n_vocab,
        vocabulary_sha256="",
        tokens_sha256="",
        n_documents=1,
        n_tokens=n_tokens,
        n_words=n_tokens,
        n_characters=n_tokens,
        n_held_out_documents=0,
        n_held_out_tokens=0,
        n_held_out_words=0,
        n_held_out_characters=0,
    )
    return Corpus(Path("drawn"), header, tokens.astype(dtype), np.zeros((2, 3), np.int64))
