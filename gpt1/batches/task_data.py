"""Read the examples of a task, and encode them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt1.batches.cache import WORTH_CACHING, Cache, key_of
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.encoding import Encoding, Texts, encode_examples, n_characters
from gpt1.runtime.errors import InputError
from gpt1.tasks import ChoiceIndex, Example, Task
from gpt1.tasks.targets import Labels, Target
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A data set ready for the model.

    Attributes:
        task: the task, with the layout and the metrics of the data set.
        train, valid: the splits to train on, in the order of the file, and to validate on.
        predicted: the splits that ``--submit`` predicts, by the stems of their submissions; without
            labels, so that training cannot use them.
        labels: the labels of these splits, for the scores of a finished run; None if they are not
            known.
        sources: where each training example was read, in the order of ``train``.
        notes: what a user should know about the files.
        n_vocab: number of tokens in the vocabulary.
        n_ctx: T, the number of tokens of the longest sequence in all splits.
    """

    task: Task
    train: EncodedSplit
    valid: EncodedSplit
    predicted: Mapping[str, EncodedSplit]
    labels: Mapping[str, Labels | None]
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()
    n_vocab: int
    n_ctx: int

    def sha256(self) -> str:
        """Return a digest of all splits, by which a resumed run checks that its data are equal."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, *self.predicted.values()):
            for array in (split.ids, split.lengths, split.targets):
                digest.update(b"none" if array is None else array.tobytes())
        return digest.hexdigest()


def load_task_data(
    task: Task,
    data_dir: str | Path,
    encoder: TextEncoder,
    *,
    n_ctx: int,
    cache: Cache | None = None,
    n_processes: int = 1,
    verbose: bool = False,
) -> TaskData:
    """Read the examples of a task and encode them; the texts are not kept.

    Args:
        task: the task, which reads the files.
        data_dir: the directory of the files.
        encoder: turns texts into token ids.
        n_ctx: the largest number of tokens in a sequence; longer texts are cut.
        cache: where encoded splits are kept for the next run [nowhere].
        n_processes: the largest number of processes that encode.
        verbose: whether a progress bar may be shown.

    Raises:
        InputError: a file is missing or malformed.
    """
    splits = task.read(Path(data_dir))
    special = SpecialTokens.after(len(encoder.encoder))
    encoding = Encoding(encoder, task.layout, special, n_ctx)

    def encode(examples: Sequence[Example]) -> EncodedSplit:
        texts = [example.texts for example in examples]
        split = encode_split(encoding, texts, cache=cache, n_processes=n_processes, verbose=verbose)
        if isinstance(task.target, ChoiceIndex):
            check_answers(split.lengths, examples)
        return split

    train, valid = encode(splits.train), encode(splits.valid)
    predicted = {
        name: valid if examples is splits.valid else encode(examples)
        for name, examples in splits.predicted.items()
    }
    return TaskData(
        task=task,
        train=_with_labels(train, splits.train, task.target),
        valid=_with_labels(valid, splits.valid, task.target),
        predicted=predicted,
        labels={name: _labels(examples) for name, examples in splits.predicted.items()},
        sources=[example.source for example in splits.train],
        notes=splits.notes,
        n_vocab=len(encoder.encoder),
        n_ctx=max(split.longest for split in (train, valid, *predicted.values())),
    )


def check_answers(lengths: npt.NDArray[np.int32], examples: Sequence[Example]) -> None:
    """Refuse answers that lose all their text in the encoder, such as a lone ``&nbsp;``.

    Args:
        lengths: [n, C], the number of tokens of each answer.
        examples: the n examples.

    Raises:
        InputError: the right answer, or all answers but one, have no tokens.
    """
    for there, example in zip(lengths > 0, examples, strict=True):
        if there.sum() < 2 or not (example.label is None or there[int(example.label)]):
            raise InputError(
                f"{example.source}: an answer has no text that the model can read; write it "
                "otherwise, or delete the example."
            )


def encode_split(
    encoding: Encoding,
    texts: Sequence[Texts],
    *,
    cache: Cache | None = None,
    n_processes: int = 1,
    verbose: bool = False,
) -> EncodedSplit:
    """Return encoded texts from the cache, or encode them and keep them there.

    Args:
        encoding: how texts become sequences.
        texts: the texts of each example.
        cache, n_processes, verbose: see :func:`load_task_data`.
    """
    encode = partial(encode_examples, encoding, n_processes=n_processes, verbose=verbose)
    if cache is None or n_characters(texts) < WORTH_CACHING:
        return encode(texts)
    key = key_of(encoding, texts)
    split = cache.load(key)
    if split is None:
        split = encode(texts)
        cache.save(key, split)
    return split


def _with_labels(split: EncodedSplit, examples: Sequence[Example], target: Target) -> EncodedSplit:
    labels = _labels(examples)
    assert labels is not None  # Both splits have labels.
    return replace(split, labels=labels, targets=target.encode(labels.tolist()))


def _labels(examples: Sequence[Example]) -> Labels | None:
    """Return the labels of a split, [n]; None if they are not known."""
    labels = [example.label for example in examples if example.label is not None]
    return np.array(labels) if labels else None
