"""Generative pretraining as a job of the training loop (paper, sections 3.1 and 4.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt1.batches.corpus import Corpus
from gpt1.batches.windows import Starts, Windows
from gpt1.inference.perplexity import TextCost, mean_cost
from gpt1.model import DoubleHeadsModel, ModelConfig
from gpt1.results.log_lines import UpdateLine
from gpt1.runtime.ranks import Ranks, Replica
from gpt1.runtime.seeds import tower_seed
from gpt1.settings.pretraining import PretrainLoopSettings
from gpt1.training.checkpoint import TrainState
from gpt1.training.fine_tuning import divergence_warning
from gpt1.training.loop import Evaluation, Progress
from gpt1.training.towers import mean_over_towers


def window_gradients(
    replica: Replica[DoubleHeadsModel],
    towers: Sequence[Tensor],
    *,
    seeds: Sequence[int],
    precision: str = "fp32",
) -> Tensor:
    """Compute the gradients of an update in the replica's model.

    Args:
        replica: holds the model in training mode, on the rank's device, with gradients of None.
        towers: the windows of each tower of this rank, int64 [B, T].
        seeds: the seeds of the dropout of all towers.
        precision: as ``--precision``.

    Returns:
        0, since there is no classifier, and the mean language-model cost, [2].
    """
    device = replica.ranks.device

    def tower_loss(windows: Tensor) -> tuple[Tensor, Tensor]:
        loss, _ = replica.model.text_losses(windows.to(device, non_blocking=True))
        cost = loss.detach()
        return loss, torch.stack([torch.zeros_like(cost), cost])

    return mean_over_towers(replica, towers, tower_loss, seeds=seeds, precision=precision)


class Pretraining:
    """Predict the next token of the windows of a corpus.

    Args:
        corpus: the text.
        loop: batches, length and seed.
        config: the sizes of the model.
        precision: as ``--precision``.
        eval_every: number of updates between evaluations, besides the end of each epoch; 0 for no
            additional ones.
        settings: the settings that a resumed run must share, besides model and data.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        corpus: Corpus,
        loop: PretrainLoopSettings,
        *,
        config: ModelConfig,
        precision: str,
        eval_every: int,
        settings: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.corpus, self.loop, self.config = corpus, loop, config
        self.precision, self.eval_every = precision, eval_every
        self.windows = Windows(corpus.train, config.n_ctx)
        self.updates_per_epoch = self.windows.n_windows // loop.batch_size
        self.n_updates = loop.n_updates or self.updates_per_epoch * (loop.n_iter or 0)
        self._identity = {
            **settings,
            "model": asdict(config),
            "data": corpus.header.tokens_sha256,
            "n_held_out_tokens": corpus.header.n_held_out_tokens,
        }
        self._clock, self._began, self._n_timed = clock, 0.0, 0

    @property
    def tokens_per_update(self) -> int:
        """The number of tokens of an update, those included that are not predicted."""
        return self.loop.batch_size * self.config.n_ctx

    def work(self) -> Iterator[Starts]:
        """Yield the starts of the windows of each update.

        The last windows of an epoch are dropped if they do not fill an update. They are others in
        every epoch.
        """
        size = self.loop.batch_size
        for epoch in count():
            starts = self.windows.starts(self.loop.seed, epoch)
            for step in range(self.updates_per_epoch):
                if epoch * self.updates_per_epoch + step == self.n_updates:
                    return
                yield starts[step * size : (step + 1) * size]

    def prepare(self, work: Starts, ranks: Ranks) -> list[Tensor]:
        """Read the windows of each tower of this rank, int64 [B, T]."""
        towers = np.split(work, self.loop.n_gpu)
        found = [self.windows.take(towers[tower]) for tower in ranks.own_towers(len(towers))]
        # From pinned memory the copy to a GPU does not wait for the GPU.
        return [each.pin_memory() for each in found] if ranks.device.type == "cuda" else found

    def gradients(
        self, replica: Replica[DoubleHeadsModel], prepared: Sequence[Tensor], update: int
    ) -> Tensor:
        """Compute the gradients of an update, averaged over towers; return the costs [2]."""
        if not self._n_timed:  # What the program did before is not training.
            self._began = self._clock()
        self._n_timed += 1
        loop = self.loop
        return window_gradients(
            replica,
            prepared,
            seeds=[tower_seed(loop.seed, update, tower) for tower in range(loop.n_gpu)],
            precision=self.precision,
        )

    def warning(self, update: UpdateLine) -> str | None:
        """Return a warning if the cost of an update shows that the run diverges, else None."""
        return divergence_warning(
            update.n_updates,
            0.0,
            update.lm_cost or 0.0,
            n_classes=1,
            n_rows=self.config.n_vocab,
        )

    def evaluation_due(self, update: int) -> bool:
        """Return whether an evaluation follows an update."""
        ends_epoch = update % self.updates_per_epoch == 0 or update == self.n_updates
        return ends_epoch or bool(self.eval_every and update % self.eval_every == 0)

    def evaluate(self, state: TrainState, ranks: Ranks, progress: Progress) -> Evaluation:
        """Compute the cost and the perplexities of the held-out text, and the speed of training.

        The cost on training text is that of its first tokens, as many as are held out.
        """
        speed = self._tokens_per_second()
        held_out = self.corpus.held_out
        cost = partial(
            mean_cost,
            state.model,
            ranks=ranks,
            n_batch=self.loop.n_batch,
            precision=self.precision,
            progress=progress,
        )
        train_cost = cost(self.corpus.train[: len(held_out)])
        valid = TextCost(
            cost=cost(held_out),
            n_tokens=len(held_out),
            n_words=self.corpus.header.n_held_out_words,
        )
        return Evaluation(
            n_epochs=state.n_updates // self.updates_per_epoch,
            n_updates=state.n_updates,
            figures={
                "tr_cost": train_cost,
                "va_cost": valid.cost,
                "va_ppl": valid.perplexity,
                "va_word_ppl": valid.word_perplexity,
                "tokens_per_second": speed,
            },
            score=-valid.cost,
        )

    def _tokens_per_second(self) -> float:
        """Return the speed of the updates since the last evaluation; 0 if there were none.

        The time begins with the first of these updates.
        """
        n, self._n_timed = self._n_timed * self.tokens_per_update, 0
        return round(n / max(self._clock() - self._began, 1e-9), 1)

    def identity(self) -> Mapping[str, Any]:
        """Return the settings, model and data that a resumed run must share."""
        return self._identity

    def describe(self, work: Starts) -> str:
        """Name the places of an update's windows in the corpus."""
        places = ", ".join(map(str, sorted(work.tolist())))
        return (
            f"the windows of {self.config.n_ctx} tokens of {self.corpus.directory}/ that start at "
            f"its tokens {places}"
        )
