"""Fine-tuning as a job of the training loop: the batches, gradients and evaluations of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import shuffle
from torch import Tensor

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import Batch, pack
from gpt1.batches.task_data import TaskData
from gpt1.inference.prediction import mean_cross_entropy, predict_logits
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.results.log_lines import UpdateLine
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.seeds import tower_seed
from gpt1.settings.groups import DeviceSettings, LoopSettings
from gpt1.tasks.task import describe_sources
from gpt1.training.checkpoint import TrainState
from gpt1.training.loop import Evaluation, Progress
from gpt1.training.towers import mean_over_towers
from gpt1.weights.stored import special_rows

Rows = npt.NDArray[np.int64]

EXTRA_EVALUATIONS = (1000, 2000, 4000, 8000, 16000, 32000)
"""Updates of the first epoch after which the original evaluates, besides the end of each epoch."""


CLF_LIMIT, LM_LIMIT = 10, 3
"""A run is said to diverge when the mean cost of an update exceeds so many times the cost of a
uniform guess, the logarithm of the number of outcomes.

A language model begins at about that cost with fresh weights, and far below with trained ones. At
three times, the right token has on average (the geometric mean) the probability V**-3: only weights
that were destroyed are so sure of wrong tokens. There are few classes, so that one example costs
several times ln 2 where a sound model is confidently wrong, and a batch may be small: at ten times,
two classes give the right one a probability of 2**-10 on average.
"""


def divergence_warning(
    update: int, clf_cost: float, lm_cost: float, *, n_classes: int, n_rows: int
) -> str | None:
    """Return a warning if the mean costs of an update show that the run diverges, else None.

    Args:
        update: number of the update.
        clf_cost: classification cost, in nats per example.
        lm_cost: language-model cost, in nats per token; 0 without that loss.
        n_classes: number of classes or choices.
        n_rows: number of rows of ``we``, over which the softmax of the language model runs.
    """
    limits = (
        ("classification", clf_cost, CLF_LIMIT, n_classes),
        ("language-model", lm_cost, LM_LIMIT, n_rows),
    )
    found = [
        f"the {name} cost is {cost:.4g}, above {factor} times ln {n} = {factor * log(n):.4g}"
        for name, cost, factor, n in limits
        if cost > factor * log(n)
    ]
    if not found:
        return None
    return (
        f"update {update}: {', and '.join(found)}. The run has probably diverged, and then its "
        "results are of no use: train anew with a lower --lr."
    )


def tower_gradients(
    replica: Replica[DoubleHeadsModel],
    batches: Sequence[Batch],
    *,
    seeds: Sequence[int],
    lm_coef: float,
    precision: str = "fp32",
) -> Tensor:
    """Compute the gradients of a batch in the replica's model (the original's ``mgpu_train``).

    See :func:`gpt1.training.towers.mean_over_towers`.

    Args:
        replica: holds the model in training mode, on the rank's device, with gradients of None.
        batches: the towers of this rank, from :func:`tower_batches`.
        seeds: the seeds of the dropout of all towers.
        lm_coef: weight of the language-model loss.
        precision: as ``--precision``.

    Returns:
        Mean classification and language-model cost [2], on the rank's device.
    """
    model, device = replica.model, replica.ranks.device

    def tower_loss(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = model.losses(batch.to(device), lm_coef)
        clf = losses.clf.detach().mean()
        lm = torch.zeros_like(clf) if losses.lm is None else losses.lm.sum() / batch.n_sequences
        return losses.total, torch.stack([clf, lm.to(clf.dtype)])

    return mean_over_towers(replica, batches, tower_loss, seeds=seeds, precision=precision)


def tower_batches(
    examples: EncodedSplit,
    clf_token: int,
    ranks: Ranks,
    *,
    n_towers: int,
    share_prefix: bool = False,
) -> list[Batch]:
    """Cut a batch into towers, and pack those of this rank.

    Args:
        examples: the whole batch; its size is a multiple of the number of towers.
        clf_token: id of ``_classify_``.
        ranks: this process among those of the run.
        n_towers: the number of towers of all ranks together.
        share_prefix: as ``--share_prefix``.
    """
    size = examples.n_examples // n_towers
    parts = (
        examples.take(slice(tower * size, (tower + 1) * size))
        for tower in ranks.own_towers(n_towers)
    )
    return [
        pack(part, clf_token, share_prefix=share_prefix).pinned_for(ranks.device) for part in parts
    ]


def _tell_part(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report the progress within one split as the progress of the whole evaluation.

    Args:
        progress: is called with the examples done and their total.
        before: number of examples in the splits before this one.
        total: number of examples in all splits.
        done: number of examples of this split that are done.
    """
    progress(before + done, total)


class FineTuning:
    """Fine-tuning on a task, with the language-model loss as auxiliary loss (paper, section 3.2).

    Args:
        data: the task and its encoded splits.
        loop: batches, epochs, seed and the weight of the language-model loss.
        device: precision, and whether the answers to a context share its computation.
        config: the sizes of the model.
        settings: the settings that a resumed run must share, besides model and data.
    """

    def __init__(
        self,
        data: TaskData,
        loop: LoopSettings,
        device: DeviceSettings,
        *,
        config: ModelConfig,
        settings: Mapping[str, Any],
    ) -> None:
        self.data, self.loop, self.device, self.config = data, loop, device, config
        self.updates_per_epoch = data.train.n_examples // loop.batch_size
        self.n_updates = self.updates_per_epoch * loop.n_iter
        self._identity = {**settings, "model": asdict(config), "data": data.sha256()}

    @property
    def n_outcomes(self) -> int:
        """C, the number of classes, or the largest number of choices of an example."""
        n_classes = self.config.n_classes
        return n_classes if n_classes > 1 else self.data.train.n_sequences

    def work(self) -> Iterator[Rows]:
        """Yield the training rows of each update; the last partial batch of an epoch is dropped.

        The random numbers come from one NumPy stream, in the original's order: first the rows of
        special tokens, then one shuffle per epoch.
        """
        stream = np.random.RandomState(self.loop.seed)
        special_rows(stream, self.config.n_embd)
        size = self.loop.batch_size
        for _ in range(self.loop.n_iter):
            order = shuffle(np.arange(self.data.train.n_examples), random_state=stream)
            for step in range(self.updates_per_epoch):
                yield order[step * size : (step + 1) * size]

    def prepare(self, work: Rows, ranks: Ranks) -> list[Batch]:
        """Pack the towers of this rank."""
        return tower_batches(
            self.data.train.take(work),
            self.config.clf_token,
            ranks,
            n_towers=self.loop.n_gpu,
            share_prefix=self.device.share_prefix,
        )

    def gradients(
        self, replica: Replica[DoubleHeadsModel], prepared: list[Batch], update: int
    ) -> Tensor:
        """Compute the gradients of an update, averaged over towers; return the costs [2]."""
        loop = self.loop
        return tower_gradients(
            replica,
            prepared,
            seeds=[tower_seed(loop.seed, update, tower) for tower in range(loop.n_gpu)],
            lm_coef=loop.lm_coef,
            precision=self.device.precision,
        )

    def warning(self, update: UpdateLine) -> str | None:
        """Return a warning if the costs of an update show that the run diverges, else None."""
        return divergence_warning(
            update.n_updates,
            update.clf_cost or 0.0,
            update.lm_cost or 0.0,
            n_classes=self.n_outcomes,
            n_rows=self.config.n_rows,
        )

    def evaluation_due(self, update: int) -> bool:
        """Return whether an evaluation follows an update.

        It does at the end of each epoch and, as in the original, some times in the first epoch.
        """
        extra = update in EXTRA_EVALUATIONS and update < self.updates_per_epoch
        return extra or update % self.updates_per_epoch == 0

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        """Compute costs and metrics on training and validation examples.

        As in the original, the training examples are the first ``n_valid`` ones.
        """
        valid = self.data.valid
        splits = {"tr": self.data.train.take(slice(0, valid.n_examples)), "va": valid}
        total, before = sum(split.n_examples for split in splits.values()), 0
        found = {}
        for prefix, split in splits.items():
            tell = partial(_tell_part, progress, before, total)
            found[prefix] = self._figures(split, state, ranks, tell)
            before += split.n_examples
        figures = {
            f"{prefix}_{name}": found[prefix][name] for name in found["tr"] for prefix in splits
        }
        return Evaluation(
            n_epochs=state.n_updates // self.updates_per_epoch,
            n_updates=state.n_updates,
            figures=figures,
            score=figures[f"va_{self.data.task.metrics[0].name}"],
        )

    def _figures(
        self, split: EncodedSplit, state: TrainState, ranks: Ranks, progress: Progress
    ) -> dict[str, float]:
        """Return the cost and the metrics of a split, by name."""
        labels, targets = split.labels, split.targets
        assert labels is not None  # Both splits that are evaluated have labels.
        assert targets is not None
        logits = self.predict(state.model, split, ranks, progress)
        predictions = self.data.task.target.decide(logits)
        metrics = self.data.task.metrics
        return {
            "cost": mean_cross_entropy(logits, targets),
            **{metric.name: metric.compute(predictions, labels) for metric in metrics},
        }

    def predict(
        self,
        model: DoubleHeadsModel,
        split: EncodedSplit,
        ranks: Ranks,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the logits [n, C] of a split, the same on every rank."""
        return predict_logits(
            model,
            split,
            ranks,
            n_batch=self.loop.batch_size,
            precision=self.device.precision,
            progress=progress,
        )

    def identity(self) -> Mapping[str, Any]:
        """Return the settings, model and data that a resumed run must share."""
        return self._identity

    def describe(self, work: Rows) -> str:
        """Name the file and the numbers of the examples of an update."""
        return describe_sources([self.data.sources[row] for row in work])
