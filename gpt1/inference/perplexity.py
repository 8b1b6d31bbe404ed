"""How well a model predicts a text: loss and perplexity, per token and per word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf

import numpy as np

from gpt1.batches.windows import Tokens, in_order, stacked
from gpt1.inference.prediction import evaluating
from gpt1.model import DoubleHeadsModel
from gpt1.runtime.device import arithmetic
from gpt1.runtime.ranks import Ranks

LARGEST_EXPONENT = 700.0  # beyond it the perplexity is no number that float64 can hold


@dataclass(frozen=True, kw_only=True)
class TextCost:
    """The cost of predicting a text.

    Attributes:
        cost: mean cross entropy of the tokens that were predicted, in nats.
        n_tokens: number of tokens of the text.
        n_words: number of its words, which white space separates.
    """

    cost: float
    n_tokens: int
    n_words: int

    @property
    def perplexity(self) -> float:
        """The perplexity per token, exp(cost)."""
        return _exp(self.cost)

    @property
    def word_perplexity(self) -> float:
        """The perplexity per word, exp(cost * tokens per word).

        Unlike that per token, it can be compared between models of different vocabularies.
        """
        return _exp(self.cost * self.n_tokens / max(self.n_words, 1))


def _exp(x: float) -> float:
    return exp(x) if x <= LARGEST_EXPONENT else inf


def mean_cost(
    model: DoubleHeadsModel,
    tokens: Tokens,
    ranks: Ranks,
    *,
    n_batch: int,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Return the mean cross entropy of a text's tokens in nats, the same on all ranks.

    The text is cut into disjoint windows of ``n_ctx`` tokens, of which the first token is not
    predicted. The softmax runs over the rows of tokens.

    Args:
        model: the model, on the rank's device.
        tokens: the text, at least two tokens.
        ranks: this process among those of the run.
        n_batch: number of windows at a time.
        precision: a value of ``--precision``.
        progress: is called with the number of windows done and their total.
    """
    windows = in_order(tokens, model.config.n_ctx)
    own = windows[ranks.own_part(len(windows))]
    sums = np.zeros((1, 2))  # nats, predictions
    with evaluating(model), arithmetic(precision, ranks.device):
        for begin in range(0, len(own), n_batch):
            batch = own[begin : begin + n_batch]
            for each in stacked(batch):
                _, ce = model.text_losses(each.to(ranks.device))
                sums += [float(ce.cpu().double().sum()), ce.numel()]  # no GPU of Apple has float64
            if progress is not None:
                progress(begin + len(batch), len(own))
    nats, n = ranks.gather(sums).sum(0)
    return float(nats / n)
