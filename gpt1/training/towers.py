"""The gradients of an update as the mean over towers (the original's ``mgpu_train``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gpt1.model import DoubleHeadsModel
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Replica

TowerLoss = Callable[[int], tuple[Tensor, Tensor]]
"""A function of the number of a tower. It returns the loss to differentiate, a scalar, and the
classification cost and language-model cost for the log, [2], without gradient."""


def mean_over_towers(
    replica: Replica[DoubleHeadsModel],
    tower_loss: TowerLoss,
    *,
    seeds: Sequence[int],
    precision: str,
) -> Tensor:
    """Compute the gradients of an update in the replica's model.

    There are as many towers as seeds. This rank computes its share of the towers, one after
    another. The gradients are then averaged over all towers, and are the same on every rank.

    Args:
        replica: holds the model in training mode, on the rank's device, with gradients of None.
        tower_loss: computes the loss of a tower.
        seeds: the seed of each tower's dropout.
        precision: as ``--precision``.

    Returns:
        The mean of both costs [2] over all towers, on the rank's device.
    """
    ranks = replica.ranks
    towers = ranks.own_towers(len(seeds))
    costs = torch.zeros(2, device=ranks.device)

    def loss_of(tower: int) -> Tensor:
        torch.manual_seed(seeds[tower])
        loss, own = tower_loss(tower)
        costs.add_(own / len(towers))
        return loss

    with arithmetic(precision, ranks.device):
        replica.backward([partial(loss_of, tower) for tower in towers])
    return ranks.mean(costs)
