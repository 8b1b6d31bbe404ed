"""Read the examples of a task, and make arrays of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt1.batches.arrays import ChoiceArrays, to_arrays
from gpt1.tasks import Example, Task
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A data set ready for the model.

    Attributes:
        task: the task, with the layout and the metrics of the data set.
        train, valid, test: the arrays of the splits; ``train`` has the order of the file. ``test``
            has no labels, so that training cannot use them.
        examples: the training examples, in the order of ``train``.
        test_labels: the labels of the test split, for scores of a finished run; None if they are
            not known.
        notes: what a user should know about the files.
        n_vocab: number of tokens in the vocabulary.
        n_ctx: T, the number of tokens of the longest sequence in all splits.
    """

    task: Task
    train: ChoiceArrays
    valid: ChoiceArrays
    test: ChoiceArrays
    examples: Sequence[Example] = ()
    test_labels: Sequence[float] | None = None
    notes: Sequence[str] = ()
    n_vocab: int
    n_ctx: int

    def sha256(self) -> str:
        """Return a digest of all arrays, by which a resumed run checks that its data are equal."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            for array in (split.X, split.M, split.Y):
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
    test = next(iter(splits.predicted.values()))
    special = SpecialTokens.after(len(encoder.encoder))
    sequences = [
        [
            task.layout.sequences(texts, special, n_ctx)
            for texts in _encode(split, encoder, verbose=verbose)
        ]
        for split in (splits.train, splits.valid, test)
    ]
    longest = max(len(ids) for split in sequences for example in split for ids in example)
    train, valid, test_arrays = (
        to_arrays(split, special, n_ctx=longest, labels=labels)
        for split, labels in zip(
            sequences, (_labels(splits.train), _labels(splits.valid), None), strict=True
        )
    )
    return TaskData(
        task=task,
        train=train,
        valid=valid,
        test=test_arrays,
        examples=splits.train,
        test_labels=_labels(test),
        notes=splits.notes,
        n_vocab=len(encoder.encoder),
        n_ctx=longest,
    )


def _encode(
    examples: Sequence[Example], encoder: TextEncoder, *, verbose: bool
) -> list[list[list[int]]]:
    """Return the ids of each text of each example."""
    texts = [text for example in examples for text in example.texts]
    ids = iter(encoder.encode(texts, verbose=verbose))
    return [[next(ids) for _ in example.texts] for example in examples]


def _labels(examples: Sequence[Example]) -> list[float] | None:
    """Return the labels of a split; None if they are not known."""
    labels = [example.label for example in examples if example.label is not None]
    return labels or None
