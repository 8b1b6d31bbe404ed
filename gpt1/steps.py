"""One training step: the gradients of all towers averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt1.batches import ChoiceArrays, pack
from gpt1.distributed import Process
from gpt1.model import DoubleHeadsModel


def tower_gradients(
    model: DoubleHeadsModel,
    stories: ChoiceArrays,
    process: Process,
    *,
    seeds: Sequence[int],
    lm_coef: float,
    precision: str = "fp32",
    share_prefix: bool = False,
) -> Tensor:
    """Leave the gradients of a batch in ``model`` (the original's ``mgpu_train``).

    The batch is cut into as many towers as there are seeds. This process computes its own,
    one after another; the mean over all towers is then the same in every process.

    Args:
        model: in training mode, on the process's device, its gradients None.
        stories: the whole batch, with labels; its size is a multiple of the number of towers.
        process: this process.
        seeds: what each tower's dropout is drawn from.
        lm_coef: weight of the language-model loss.
        precision: as ``--precision``.
        share_prefix: as ``--share_prefix``.

    Returns:
        Mean classification and language-model cost [2], on the process's device.
    """
    n_towers = len(seeds)
    size = stories.n_stories // n_towers
    costs = torch.zeros(2, device=process.device)
    with process.arithmetic(precision):
        for tower in process.own_towers(n_towers):
            part = stories.take(slice(tower * size, (tower + 1) * size))
            batch = pack(part, model.config.clf_token, share_prefix=share_prefix)
            if process.device.type == "cuda":
                batch = batch.pin()  # so that the copy does not wait for the GPU
            torch.manual_seed(seeds[tower])
            losses = model.losses(batch.to(process.device), lm_coef)
            (losses.total / n_towers).backward()  # type: ignore[no-untyped-call]
            costs[0] += losses.clf.detach().mean() / n_towers
            if losses.lm is not None:
                costs[1] += losses.lm.mean() / n_towers
    process.sum([p.grad for p in model.parameters() if p.grad is not None])
    process.sum([costs])
    return costs
