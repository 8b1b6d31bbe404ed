"""Compute the logits of a model over a whole split, and their cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import Batch, pack
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.ahead import made_ahead
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
    split: EncodedSplit,
    ranks: Ranks,
    *,
    n_batch: int,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the logits of all classes or choices, float32 [n, C], the same on all ranks.

    Args:
        model: the model, on the rank's device.
        split: the n examples, of which each rank computes a part.
        ranks: this process among those of the run.
        n_batch: number of examples per batch; the last batch may be smaller.
        precision: a value of ``--precision``.
    """
    part = split.take(ranks.own_part(split.n_examples))
    C = model.config.n_classes if model.config.n_classes > 1 else split.n_sequences
    logits = np.zeros((part.n_examples, C), dtype=np.float32)
    found = [torch.zeros(0, C, device=ranks.device)]
    # A batch has examples of similar length, so that attention computes less padding.
    by_length = np.argsort(part.lengths.sum(1), kind="stable")

    def batch_from(begin: int) -> Batch:
        examples = part.take(by_length[begin : begin + n_batch])
        batch = pack(examples, model.config.clf_token, share_prefix=True)
        return batch.pinned_for(ranks.device)

    begins = range(0, part.n_examples, n_batch)
    with (
        evaluating(model),
        arithmetic(precision, ranks.device),
        made_ahead(begins, batch_from) as batches,
    ):
        for begin, batch in batches:
            found.append(model.clf_logits(batch.to(ranks.device)).float())
            if progress is not None:
                progress(begin + batch.n_examples, part.n_examples)
    logits[by_length] = torch.cat(found).cpu().numpy()  # One transfer: each waits for the GPU.
    return ranks.gather(logits)


def mean_cross_entropy(logits: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> float:
    """Return the mean cross entropy in nats (the cost of the original's ``log``).

    Args:
        logits: [n, C], the logits of the model, without scaling.
        targets: int32 [n], indices of the right choices or classes, or float32 [n, C], their
            probabilities.
    """
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    if targets.ndim == 1:
        return float(-log_p[np.arange(len(targets)), targets].mean())
    return float(-(targets * log_p).sum(-1).mean())
