"""Read the examples of a task, and encode them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt1.batches.encoded import EncodedSplit
from gpt1.tasks import Example, Task
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
        examples: the training examples, in the order of ``train``.
        n_vocab: number of tokens in the vocabulary.
        n_ctx: T, the number of tokens of the longest sequence in all splits.
    """

    task: Task
    train: EncodedSplit
    valid: EncodedSplit
    predicted: Mapping[str, EncodedSplit]
    labels: Mapping[str, Labels | None]
    examples: Sequence[Example] = ()
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
    task: Task, data_dir: str | Path, encoder: TextEncoder, *, n_ctx: int, verbose: bool = False
) -> TaskData:
    """Read the examples of a task and encode them.

    Args:
        task: the task, which reads the files.
        data_dir: the directory of the files.
        encoder: turns texts into token ids.
        n_ctx: the largest number of tokens in a sequence; longer texts are cut.
        verbose: whether a progress bar may be shown.

    Raises:
        InputError: a file is missing or malformed.
    """
    splits = task.read(Path(data_dir))
    special = SpecialTokens.after(len(encoder.encoder))

    def encode(examples: Sequence[Example]) -> EncodedSplit:
        texts = _encode(examples, encoder, verbose=verbose)
        sequences = (task.layout.sequences(each, special, n_ctx) for each in texts)
        return EncodedSplit.of(sequences, special)

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
        examples=splits.train,
        n_vocab=len(encoder.encoder),
        n_ctx=max(split.longest for split in (train, valid, *predicted.values())),
    )


def _encode(
    examples: Sequence[Example], encoder: TextEncoder, *, verbose: bool
) -> list[list[list[int]]]:
    """Return the ids of each text of each example."""
    texts = [text for example in examples for text in example.texts]
    ids = iter(encoder.encode(texts, verbose=verbose))
    return [[next(ids) for _ in example.texts] for example in examples]


def _with_labels(split: EncodedSplit, examples: Sequence[Example], target: Target) -> EncodedSplit:
    labels = _labels(examples)
    assert labels is not None  # Both splits have labels.
    return replace(split, labels=labels, targets=target.encode(labels.tolist()))


def _labels(examples: Sequence[Example]) -> Labels | None:
    """Return the labels of a split, [n]; None if they are not known."""
    labels = [example.label for example in examples if example.label is not None]
    return np.array(labels) if labels else None
