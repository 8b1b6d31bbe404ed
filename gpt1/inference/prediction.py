"""Compute the logits of a model over a whole split, and their cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from gpt1.batches.arrays import ChoiceArrays
from gpt1.batches.packing import pack
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Ranks


@contextmanager
def evaluating(model: DoubleHeadsModel) -> Iterator[None]:
    """Switch dropout and gradients off within the block, and restore the model's mode after it."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def predict_logits(
    model: DoubleHeadsModel,
    arrays: ChoiceArrays,
    ranks: Ranks,
    *,
    n_batch: int,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the logits of all choices, float32 [B, S], the same on all ranks.

    Args:
        model: the model, on the rank's device.
        arrays: the stories, of which each rank computes a part.
        ranks: this process among those of the run.
        n_batch: number of stories per batch; the last batch may be smaller.
        precision: a value of ``--precision``.
    """
    part = arrays.take(ranks.own_part(arrays.n_stories))
    logits = np.zeros(part.X.shape[:2], dtype=np.float32)
    found = [torch.zeros(0, part.X.shape[1], device=ranks.device)]
    # A batch has stories of similar length, so that attention computes less padding.
    by_length = np.argsort(part.M.sum((1, 2)), kind="stable")
    with evaluating(model), arithmetic(precision, ranks.device):
        for begin in range(0, part.n_stories, n_batch):
            stories = part.take(by_length[begin : begin + n_batch])
            batch = pack(stories, model.config.clf_token, share_prefix=True)
            found.append(model.choice_logits(batch.to(ranks.device)).float())
            if progress is not None:
                progress(begin + stories.n_stories, part.n_stories)
    logits[by_length] = torch.cat(found).cpu().numpy()  # One transfer: each waits for the GPU.
    return ranks.gather(logits)


def mean_cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    """Return the mean cross entropy in nats (the cost of the original's ``log``).

    Args:
        logits: [n, C], the logits of the model, without scaling.
        labels: [n], the index of the right choice or class.
    """
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())
