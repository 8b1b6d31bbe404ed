"""The gradients of an update as the mean over towers (the original's ``mgpu_train``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from gpt1.model import DoubleHeadsModel
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Replica

Part = TypeVar("Part")


def mean_over_towers(
    replica: Replica[DoubleHeadsModel],
    parts: Sequence[Part],
    tower_loss: Callable[[Part], tuple[Tensor, Tensor]],
    *,
    seeds: Sequence[int],
    precision: str,
) -> Tensor:
    """Compute the gradients of an update in the replica's model.

    There are as many towers as seeds. This rank computes its share of the towers, one after
    another. The gradients are then averaged over all towers, and are the same on every rank.

    Args:
        replica: holds the model in training mode, on the rank's device, with gradients of None.
        parts: the parts of the batch that the towers of this rank compute.
        tower_loss: a function of a part. It returns the loss to differentiate, a scalar, and the
            classification cost and language-model cost for the log, [2], without gradient.
        seeds: the seeds of the dropout of all towers.
        precision: as ``--precision``.

    Returns:
        The mean of both costs [2] over all towers, on the rank's device.
    """
    ranks = replica.ranks
    towers = ranks.own_towers(len(seeds))
    costs = torch.zeros(2, device=ranks.device)

    def loss_of(tower: int, part: Part) -> Tensor:
        torch.manual_seed(seeds[tower])
        loss, own = tower_loss(part)
        costs.add_(own / len(towers))
        return loss

    with arithmetic(precision, ranks.device):
        losses = [partial(loss_of, *each) for each in zip(towers, parts, strict=True)]
        replica.backward(losses)
    return ranks.mean(costs)
