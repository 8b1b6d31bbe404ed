"""Attention weights of a model on one choice, and their average over many stories.

Axes: L layers, H heads, T positions (the first axis T is the query's, the second the key's), K head
size, P parts of a choice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gpt1.datasets.story_cloze import read_cloze
from gpt1.inference.prediction import evaluating
from gpt1.model.contexts import Packed, attention_weights
from gpt1.runtime.files import read_text
from gpt1.tasks.layouts import pair
from gpt1.text_utils.special import SPECIAL_TOKENS, SpecialTokens

if TYPE_CHECKING:
    from gpt1.model.transformer import DoubleHeadsModel
    from gpt1.text_utils.encoder import TextEncoder

Ids = Sequence[int]

N_SENTENCES = 4
START, DELIMITER, CLASSIFY = SPECIAL_TOKENS
PARTS = (
    START,
    *(f"sentence {i}" for i in range(1, N_SENTENCES + 1)),
    DELIMITER,
    "ending",
    CLASSIFY,
)
"""The P parts of a choice, in order."""
ENDING = PARTS.index("ending")


# One choice


def token_labels(ids: Ids, encoder: TextEncoder, special: SpecialTokens) -> list[str]:
    """Return readable names of tokens; the name of a token inside a word ends in a hyphen."""
    names = {special.start: START, special.delimiter: DELIMITER, special.classify: CLASSIFY}
    names[0] = encoder.decoder[0]  # This id stands for everything outside the vocabulary.
    return [names.get(i) or _token_label(encoder.decoder[i]) for i in ids]


def _token_label(token: str) -> str:
    """Return the name of a token of the vocabulary."""
    ending = token.removesuffix("</w>")
    return (ending if ending != token else token + "-").replace("\n", "\\n")


def attention_maps(model: DoubleHeadsModel, ids: Ids) -> Tensor:
    """Return the attention weights of every layer and head on one sequence, without dropout.

    They are softmax(q k^T / sqrt(K)) over each position and those before it (the original's
    ``_attn``), from the queries and keys that the model computes.

    Args:
        model: a model in training or evaluation mode.
        ids: T token ids, from 1 to ``n_ctx`` of them.

    Returns:
        float32 [L, H, T, T] on the model's device. Row t sums to 1 and is 0 after column t.

    Raises:
        ValueError: there is no token, or there are more than ``n_ctx``.
    """
    T = len(ids)
    maps = [model.we.new_zeros(0, model.config.n_head, T, T)]

    def record(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
        maps.append(attention_weights(q, k, visible))
        return maps[-1] @ v

    with evaluating(model):
        tokens = torch.tensor([ids], device=model.we.device)
        model.sequence_states(tokens, Packed((1, T), attention=record))
        return torch.cat(maps)


# Many stories, by their sentences


class StorySentences(NamedTuple):
    """The four sentences of a story, and the right ending."""

    sentences: tuple[str, ...]
    ending: str


class EncodedSentences(NamedTuple):
    """The token ids of each sentence of a story, and of the right ending."""

    sentences: list[list[int]]
    ending: list[int]

    def ids(self, special: SpecialTokens) -> list[int]:
        """Return the T token ids of the choice."""
        return pair(list(chain(*self.sentences)), self.ending, special)

    def parts(self) -> list[int]:
        """Return the part of each of the T tokens, as an index into :data:`PARTS`."""
        lengths = [1, *map(len, self.sentences), 1, len(self.ending), 1]
        return [part for part, length in enumerate(lengths) for _ in range(length)]


@dataclass(frozen=True, kw_only=True)
class AttentionShares:
    """The share of attention that each part of a choice gets, averaged over stories.

    The shares of the P parts sum to 1.

    Attributes:
        classify: [L, H, P], the attention of the ``_classify_`` token, from whose state the
            classifier computes its logit.
        ending: [L, H, P], the attention of the ending's tokens, averaged over these tokens in each
            story.
        even_classify, even_ending: [P], the shares if all visible tokens had equal weights.
        n_stories: number of stories in the average.
    """

    classify: Tensor
    ending: Tensor
    even_classify: Tensor
    even_ending: Tensor
    n_stories: int


def read_story_sentences(path: str | Path) -> list[StorySentences]:
    """Read the sentences and the right ending of each story in a cloze CSV.

    Raises:
        InputError: the file cannot be read or is malformed (see
            :func:`gpt1.datasets.story_cloze.read_cloze`).
    """
    labels = read_cloze(path).labels
    rows = csv.reader(io.StringIO(read_text(path, "the cloze CSV"), newline=None))
    next(rows)  # the header
    return [
        StorySentences(sentences=tuple(cells[1 : 1 + N_SENTENCES]), ending=cells[5 + label])
        for cells, label in zip(rows, labels, strict=True)
    ]


def encode_sentences(
    stories: Sequence[StorySentences], encoder: TextEncoder
) -> list[EncodedSentences | None]:
    """Encode stories sentence by sentence.

    A model reads the four sentences as one text. Where the ids of that text are not those of the
    sentences one after another, a token cannot be assigned to a sentence.

    Returns:
        One entry per story: the ids, or None if the tokens cannot be assigned to sentences or a
        part has no token (for example because the part has only invisible characters).
    """
    joined = encoder.encode([" ".join(story.sentences) for story in stories], verbose=False)
    endings = encoder.encode([story.ending for story in stories], verbose=False)
    encoded: list[EncodedSentences | None] = []
    for story, ids, ending in zip(stories, joined, endings, strict=True):
        sentences = encoder.encode(story.sentences, verbose=False)
        is_split = list(chain(*sentences)) == ids and all(sentences) and bool(ending)
        encoded.append(EncodedSentences(sentences, ending) if is_split else None)
    return encoded


def average_shares(
    model: DoubleHeadsModel, stories: Iterable[EncodedSentences], special: SpecialTokens
) -> AttentionShares:
    """Average over stories the share of attention that each part of a choice gets.

    Args:
        model: a model in training or evaluation mode; there is no dropout here.
        stories: stories whose choices have at most ``n_ctx`` tokens and whose parts are not empty.
        special: ids of the special tokens.

    Raises:
        ValueError: there is no story, or a choice has more than ``n_ctx`` tokens.
    """
    shares = [
        _shares(attention_maps(model, story.ids(special)), story.parts()) for story in stories
    ]
    if not shares:
        raise ValueError("there is no story to average over")
    means = (torch.stack(values).mean(0) for values in zip(*shares, strict=True))
    classify, ending, even_classify, even_ending = means
    return AttentionShares(
        classify=classify,
        ending=ending,
        even_classify=even_classify,
        even_ending=even_ending,
        n_stories=len(shares),
    )


def _shares(maps: Tensor, parts: list[int]) -> list[Tensor]:
    """Return the four tensors of :class:`AttentionShares` for one story, float64 on the CPU.

    Args:
        maps: [L, H, T, T], from :func:`attention_maps`.
        parts: the part of each of the T tokens.
    """
    T = len(parts)
    maps = maps.cpu().double()  # Some devices have no float64.
    belongs = torch.nn.functional.one_hot(torch.tensor(parts), len(PARTS)).double()  # [T, P]
    even = torch.ones(T, T, dtype=torch.float64).tril() / torch.arange(1, T + 1)[:, None]
    in_ending = torch.tensor(parts) == ENDING
    split, even_split = maps @ belongs, even @ belongs  # [L, H, T, P], [T, P]
    return [
        split[:, :, -1],
        split[:, :, in_ending].mean(2),
        even_split[-1],
        even_split[in_ending].mean(0),
    ]
