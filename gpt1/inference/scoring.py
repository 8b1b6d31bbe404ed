"""Predict any examples with a fine-tuned model.

The examples are laid out and predicted as in training, so that the examples of a test file get
exactly the predictions in the run's submission.

Axes: n examples, C outcomes, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpt1.batches.encoded import EncodedSplit
from gpt1.inference.opened import OpenedModel
from gpt1.inference.prediction import predict_logits
from gpt1.runtime.device import check_precision, set_matmul_precision
from gpt1.runtime.errors import InputError
from gpt1.runtime.ranks import Ranks
from gpt1.settings.groups import LEAST_N_CTX, LoopSettings, ModelSettings
from gpt1.tasks.layouts import Classification, StoryChoices
from gpt1.tasks.record import TaskRecord
from gpt1.tasks.shapes import text_names
from gpt1.tasks.targets import ChoiceIndex
from gpt1.text_utils.special import N_SPECIAL

N_BATCH = LoopSettings().batch_size
"""Number of examples per batch, by default as in the evaluations of training."""
N_CTX = ModelSettings().n_ctx
"""The default of ``--n_ctx`` in training."""
STORIES = TaskRecord(layout=StoryChoices(), target=ChoiceIndex(("0", "1")), n_ctx=N_CTX)
"""The task of a model with a choice head that has no record, such as one of an earlier version."""
FINE_TUNED = "open the directory of a run, such as save/rocstories"


def task_of(model: OpenedModel, remedy: str = FINE_TUNED) -> TaskRecord:
    """Return the task that a model was trained on.

    Args:
        model: the model.
        remedy: how to name a model that was fine-tuned, for the message.

    Raises:
        InputError: the model was never fine-tuned, or has classes of which no file has the names.
    """
    if not model.has_choice_head:
        raise InputError(
            f"{model.source} was never trained to choose: a fine-tuned model is needed: {remedy}"
        )
    n_classes = model.module.config.n_classes
    if model.task is None and n_classes > 1:
        raise InputError(
            f"{model.source}: the model has {n_classes} classes, but no file says what they are "
            f"called and how texts are laid out; {remedy}"
        )
    return model.task or STORIES


def encode_examples(
    model: OpenedModel,
    examples: Sequence[Sequence[str]],
    *,
    task: TaskRecord = STORIES,
    n_ctx: int | None = None,
    verbose: bool = False,
) -> tuple[EncodedSplit, int]:
    """Lay out examples as in training, cut to the length that the model has position rows for.

    The texts of an example are cut as in training with ``n_ctx``. The model may have fewer position
    rows than ``n_ctx``, since it has as many as the longest sequence in its training data. If a
    sequence is longer than that, the texts are cut again, by the same rule with the number of
    position rows in place of ``n_ctx``.

    Args:
        model: the model and its encoder.
        examples: n examples, each of as many texts as the others.
        task: the task of the model, with the layout.
        n_ctx: the ``--n_ctx`` of training [as in the record of the task].
        verbose: whether a progress bar may be shown.

    Returns:
        The sequences, and the number of examples that were cut.

    Raises:
        InputError: the model has too few position rows to cut an example to.
    """
    n_texts = len(examples[0]) if examples else 0
    texts = [text for i in range(n_texts) for text in (example[i] for example in examples)]
    ids = model.text_encoder.encode(texts, verbose=verbose)
    rows, found, n_cut = model.module.config.n_ctx, [], 0
    for index in range(len(examples)):
        whole = ids[index :: len(examples)]
        uncut = task.layout.sequences(whole, model.special, 2 * sum(map(len, whole)) + 8)
        sequences = task.layout.sequences(whole, model.special, n_ctx or task.n_ctx)
        if max(map(len, sequences)) > rows:
            _check_room(model, task, index)
            sequences = task.layout.sequences(whole, model.special, rows)
        if not any(sequences):
            raise InputError(f"example {index + 1}: no answer has text; give at least one")
        found.append(sequences)
        n_cut += sequences != uncut
    return EncodedSplit.of(found, model.special), n_cut


def _check_room(model: OpenedModel, task: TaskRecord, index: int) -> None:
    """Raise an error if the model has too few position rows for a token of each text."""
    rows = model.module.config.n_ctx
    least = N_SPECIAL if isinstance(task.layout, Classification) else LEAST_N_CTX
    if rows < least:
        raise InputError(
            f"example {index + 1} is too long: the model in {model.source} has {rows} position "
            "rows only, too few to cut a text to; leave it out, or use a model trained on longer "
            "ones"
        )


def logits_of(
    model: OpenedModel,
    split: EncodedSplit,
    *,
    task: TaskRecord = STORIES,
    n_batch: int = N_BATCH,
    precision: str = "fp32",
) -> npt.NDArray[np.float32]:
    """Compute the logits of the outcomes, [n, C].

    Args:
        model: a fine-tuned model.
        split: the examples; see :func:`encode_examples`.
        task: the task of the model.
        n_batch: number of examples per batch.
        precision: a value of ``--precision``.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    ranks = Ranks(rank=0, world=1, device=model.module.we.device)
    check_precision(precision, ranks.device)
    set_matmul_precision(precision)
    if not split.n_examples:  # There are as many answers as in the smallest example.
        n_answers = len(text_names(task.layout)) - 1
        return np.zeros((0, max(model.module.config.n_classes, n_answers)), np.float32)
    return predict_logits(model.module, split, ranks, n_batch=n_batch, precision=precision)
