"""Choose between two endings of any stories with a fine-tuned model.

The stories are laid out and predicted as in training, so that the stories of the test CSV get
exactly the choices in the run's submission.

Axes: n stories, C choices (2), T positions.
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
from gpt1.settings.groups import LoopSettings, ModelSettings
from gpt1.tasks.layouts import StoryChoices, max_part_length
from gpt1.tasks.targets import ChoiceIndex
from gpt1.text_utils.special import N_SPECIAL

N_BATCH = LoopSettings().batch_size
"""Number of stories per batch, by default as in the evaluations of training."""
N_CTX = ModelSettings().n_ctx
"""The default of ``--n_ctx`` in training."""
N_CHOICES = 2
"""Endings per story, also where there is no story."""


def score_stories(
    model: OpenedModel,
    stories: Sequence[str],
    endings1: Sequence[str],
    endings2: Sequence[str],
    n_batch: int = N_BATCH,
    *,
    n_ctx: int = N_CTX,
    precision: str = "fp32",
) -> npt.NDArray[np.float64]:
    """Compute the probabilities of both endings for each story.

    Args:
        model: a model with a choice head.
        stories, endings1, endings2: n texts each.
        n_batch: number of stories per batch.
        n_ctx: the ``--n_ctx`` of training; see :func:`encode_stories`.
        precision: a value of ``--precision``.

    Returns:
        The probabilities, [n, 2]: the softmax of the two logits in float64.

    Raises:
        InputError: the model has no choice head or too few position rows for a story, or the
            device cannot compute in this precision.
        ValueError: there are not as many stories as first and second endings.
    """
    check_choice_head(model)
    split, _ = encode_stories(model, stories, endings1, endings2, n_ctx=n_ctx)
    logits = choice_logits(model, split, n_batch=n_batch, precision=precision)
    return ChoiceIndex().probabilities(logits)


def encode_stories(
    model: OpenedModel,
    stories: Sequence[str],
    endings1: Sequence[str],
    endings2: Sequence[str],
    *,
    n_ctx: int = N_CTX,
    verbose: bool = False,
) -> tuple[EncodedSplit, int]:
    """Lay out stories as in training, cut to the length that the model has position rows for.

    A story and its endings are each cut as in training with ``n_ctx``. The model may have fewer
    position rows than ``n_ctx``, since it has as many as the longest choice in its training data.
    If a choice is longer than that, the three parts are cut again, by the same rule with the number
    of position rows in place of ``n_ctx``.

    Args:
        model: the model and its encoder.
        stories, endings1, endings2: n texts each.
        n_ctx: the ``--n_ctx`` of training.
        verbose: whether a progress bar may be shown.

    Returns:
        The sequences, and the number of stories that were cut.

    Raises:
        InputError: the model has too few position rows to cut a story to.
        ValueError: there are not as many stories as first and second endings.
    """
    parts = [
        model.text_encoder.encode(texts, verbose=verbose) for texts in (stories, endings1, endings2)
    ]
    layout, rows = StoryChoices(), model.module.config.n_ctx
    examples, n_cut = [], 0
    for index, whole in enumerate(zip(*parts, strict=True)):
        sequences = layout.sequences(whole, model.special, n_ctx)
        if max(map(len, sequences)) > rows:
            _check_room(model, index)
            sequences = layout.sequences(whole, model.special, rows)
        examples.append(sequences)
        story, *endings = whole
        uncut = [len(story) + len(ending) + N_SPECIAL for ending in endings]
        n_cut += [len(ids) for ids in sequences] != uncut
    return EncodedSplit.of(examples, model.special), n_cut


def _check_room(model: OpenedModel, index: int) -> None:
    """Raise an error if the model has too few position rows for a token of each part."""
    rows = model.module.config.n_ctx
    if max_part_length(rows) < 1:
        raise InputError(
            f"story {index} is too long: the model in {model.source} has {rows} position rows "
            "only, too few to cut a story to; leave it out, or use a model trained on longer ones"
        )


FINE_TUNED = "open the directory of a run, such as save/rocstories"


def check_choice_head(model: OpenedModel, remedy: str = FINE_TUNED) -> None:
    """Refuse a model that was never trained to choose.

    Args:
        model: the model.
        remedy: how to name a model that was, for the message.

    Raises:
        InputError: the model has no choice head.
    """
    if not model.has_choice_head:
        raise InputError(
            f"{model.source} was never trained to choose: a fine-tuned model is needed: {remedy}"
        )


def choice_logits(
    model: OpenedModel,
    split: EncodedSplit,
    *,
    n_batch: int = N_BATCH,
    precision: str = "fp32",
) -> npt.NDArray[np.float32]:
    """Compute the logits of the choices, [n, C].

    Args:
        model: a model with a choice head.
        split: the stories; see :func:`encode_stories`.
        n_batch: number of stories per batch.
        precision: a value of ``--precision``.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    ranks = Ranks(rank=0, world=1, device=model.module.we.device)
    check_precision(precision, ranks.device)
    set_matmul_precision(precision)
    logits = predict_logits(model.module, split, ranks, n_batch=n_batch, precision=precision)
    return logits.reshape(-1, N_CHOICES)
