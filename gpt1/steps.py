"""One training step: the gradients of all towers averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt1.batches import ChoiceArrays, pack
from gpt1.device import arithmetic
from gpt1.model import DoubleHeadsModel
from gpt1.ranks import Ranks


def tower_gradients(
    model: DoubleHeadsModel,
    stories: ChoiceArrays,
    ranks: Ranks,
    *,
    seeds: Sequence[int],
    lm_coef: float,
    precision: str = "fp32",
    share_prefix: bool = False,
) -> Tensor:
    """Leave the gradients of a batch in ``model`` (the original's ``mgpu_train``).

    The batch is cut into as many towers as there are seeds. This rank computes its own,
    one after another. The mean over all towers is then the same on every rank.

    Args:
        model: in training mode, on the rank's device, its gradients None.
        stories: the whole batch, with labels; its size is a multiple of the number of towers.
        ranks: this process among those of the run.
        seeds: what each tower's dropout is drawn from.
        lm_coef: weight of the language-model loss.
        precision: as ``--precision``.
        share_prefix: as ``--share_prefix``.

    Returns:
        Mean classification and language-model cost [2], on the rank's device.
    """
    n_towers = len(seeds)
    size = stories.n_stories // n_towers
    costs = torch.zeros(2, device=ranks.device)
    with arithmetic(precision, ranks.device):
        for tower in ranks.own_towers(n_towers):
            part = stories.take(slice(tower * size, (tower + 1) * size))
            batch = pack(part, model.config.clf_token, share_prefix=share_prefix)
            if ranks.device.type == "cuda":
                batch = batch.pin()  # so that the copy does not wait for the GPU
            torch.manual_seed(seeds[tower])
            losses = model.losses(batch.to(ranks.device), lm_coef)
            (losses.total / n_towers).backward()  # type: ignore[no-untyped-call]
            costs[0] += losses.clf.detach().mean() / n_towers
            if losses.lm is not None:
                costs[1] += losses.lm.mean() / n_towers
    ranks.sum([p.grad for p in model.parameters() if p.grad is not None])
    ranks.sum([costs])
    return costs
