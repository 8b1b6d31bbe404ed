"""One training step: the gradients of all towers averaged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gpt1.batches.arrays import ChoiceArrays
from gpt1.batches.packing import pack
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Replica


def tower_gradients(
    replica: Replica[DoubleHeadsModel],
    stories: ChoiceArrays,
    *,
    seeds: Sequence[int],
    lm_coef: float,
    precision: str = "fp32",
    share_prefix: bool = False,
) -> Tensor:
    """Leave the gradients of a batch in the replica's model (the original's ``mgpu_train``).

    The batch is cut into as many towers as there are seeds. This rank computes its own,
    one after another. The mean over all towers is then the same on every rank.

    Args:
        replica: its model is in training mode, on the rank's device, its gradients are None.
        stories: the whole batch, with labels; its size is a multiple of the number of towers.
        seeds: what each tower's dropout is drawn from.
        lm_coef: weight of the language-model loss.
        precision: as ``--precision``.
        share_prefix: as ``--share_prefix``.

    Returns:
        Mean classification and language-model cost [2], on the rank's device.
    """
    model, ranks, device = replica.model, replica.ranks, replica.ranks.device
    size, towers = stories.n_stories // len(seeds), ranks.own_towers(len(seeds))
    costs = torch.zeros(2, device=device)

    def tower_loss(tower: int) -> Tensor:
        part = stories.take(slice(tower * size, (tower + 1) * size))
        batch = pack(part, model.config.clf_token, share_prefix=share_prefix)
        if device.type == "cuda":
            batch = batch.pin()  # so that the copy does not wait for the GPU
        torch.manual_seed(seeds[tower])
        losses = model.losses(batch.to(device), lm_coef)
        costs[0] += losses.clf.detach().mean() / len(towers)
        if losses.lm is not None:
            costs[1] += losses.lm.mean() / len(towers)
        return losses.total

    with arithmetic(precision, device):
        replica.backward([partial(tower_loss, tower) for tower in towers])
    return ranks.mean(costs)
