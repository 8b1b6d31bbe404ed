"""Where a model looks: attention weights of one choice, and their average over many stories.

Axes: L layers, H heads, T positions (the one that looks, then the one looked at), D width,
K head size, P parts of a choice.
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
from gpt1.text_utils.special import SpecialTokens

if TYPE_CHECKING:
    from gpt1.model.transformer import DoubleHeadsModel
    from gpt1.text_utils.encoder import TextEncoder

Ids = Sequence[int]

N_SENTENCES = 4
START, DELIMITER, CLASSIFY = "_start_", "_delimiter_", "_classify_"
PARTS = (
    START,
    *(f"sentence {i}" for i in range(1, N_SENTENCES + 1)),
    DELIMITER,
    "ending",
    CLASSIFY,
)
"""The parts of a choice, in its order: the P of the axes."""
ENDING = PARTS.index("ending")


# One choice


def choice_ids(story: Ids, ending: Ids, special: SpecialTokens) -> list[int]:
    """The tokens of a story with one ending, as the model reads them (`transform_roc`)."""
    return [special.start, *story, special.delimiter, *ending, special.classify]


def token_labels(ids: Ids, encoder: TextEncoder, special: SpecialTokens) -> list[str]:
    """A word for each token; one that does not end its word ends in a hyphen."""
    names = {special.start: START, special.delimiter: DELIMITER, special.classify: CLASSIFY}
    names[0] = encoder.decoder[0]  # stands for all pieces outside the vocabulary
    return [names.get(i) or _piece_label(encoder.decoder[i]) for i in ids]


def _piece_label(piece: str) -> str:
    whole = piece.removesuffix("</w>")
    return (whole if whole != piece else piece + "-").replace("\n", "\\n")


def attention_maps(model: DoubleHeadsModel, ids: Ids) -> Tensor:
    """The attention weights of every layer and head on one sequence, dropout off.

    They are softmax(q k^T / sqrt(K)) over the positions that are not later (the original's
    ``_attn``), of the queries and keys that the model itself computes.

    Args:
        model: in training or evaluation mode, which is kept.
        ids: T rows of ``we``, from 1 to ``n_ctx`` of them.

    Returns:
        float32 [L, H, T, T] on the model's device: row t sums to 1 and is 0 after column t.

    Raises:
        ValueError: no token, or more than the model has positions.
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


class SplitStory(NamedTuple):
    """A story whose sentences are known apart, and the ending that belongs to it."""

    sentences: tuple[str, ...]
    ending: str


class EncodedSentences(NamedTuple):
    """The ids of each sentence of a story, and those of its ending."""

    sentences: list[list[int]]
    ending: list[int]

    def ids(self, special: SpecialTokens) -> list[int]:
        """The T tokens of this choice."""
        return choice_ids(list(chain(*self.sentences)), self.ending, special)

    def parts(self) -> list[int]:
        """For each of those T tokens, which of the :data:`PARTS` it belongs to."""
        lengths = [1, *map(len, self.sentences), 1, len(self.ending), 1]
        return [part for part, length in enumerate(lengths) for _ in range(length)]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How attention splits over the :data:`PARTS`, averaged over stories; a row sums to 1.

    Attributes:
        classify: [L, H, P], seen from the ``_classify_`` token, which chooses.
        ending: [L, H, P], seen from the ending's tokens, averaged over these in each story first.
        even_classify, even_ending: [P], the same if every visible token got an equal weight.
        n_stories: stories in the average.
    """

    classify: Tensor
    ending: Tensor
    even_classify: Tensor
    even_ending: Tensor
    n_stories: int


def read_split_stories(path: str | Path) -> list[SplitStory]:
    """The stories of a cloze CSV, sentence by sentence, each with its right ending.

    Raises:
        InputError: as :func:`gpt1.datasets.story_cloze.read_cloze`, which checks the file.
    """
    labels = read_cloze(path).labels
    rows = csv.reader(io.StringIO(read_text(path, "the cloze CSV"), newline=None))
    next(rows)  # the header
    return [
        SplitStory(sentences=tuple(cells[1 : 1 + N_SENTENCES]), ending=cells[5 + label])
        for cells, label in zip(rows, labels, strict=True)
    ]


def encode_sentences(
    stories: Sequence[SplitStory], encoder: TextEncoder
) -> list[EncodedSentences | None]:
    """Each story's ids by sentence; None where the parts cannot be told apart.

    The model reads the four sentences as one text. Where its ids are not those of the sentences
    one after another, no token can be said to belong to one of them. A part may also have no
    token at all, as one of invisible characters has not.
    """
    joined = encoder.encode([" ".join(story.sentences) for story in stories], verbose=False)
    endings = encoder.encode([story.ending for story in stories], verbose=False)
    encoded: list[EncodedSentences | None] = []
    for story, ids, ending in zip(stories, joined, endings, strict=True):
        sentences = encoder.encode(story.sentences, verbose=False)
        is_split = list(chain(*sentences)) == ids and all(sentences) and bool(ending)
        encoded.append(EncodedSentences(sentences, ending) if is_split else None)
    return encoded


def average_split(
    model: DoubleHeadsModel, stories: Iterable[EncodedSentences], special: SpecialTokens
) -> Split:
    """Average over stories how each head splits its attention over the parts.

    Args:
        model: in whatever mode; dropout is off.
        stories: each at most ``n_ctx`` tokens long as a choice, none of its parts empty.
        special: ids of the special tokens.

    Raises:
        ValueError: there is no story, or one that is too long.
    """
    shares = [
        _shares(attention_maps(model, story.ids(special)), story.parts()) for story in stories
    ]
    if not shares:
        raise ValueError("there is no story to average over")
    means = (torch.stack(values).mean(0) for values in zip(*shares, strict=True))
    classify, ending, even_classify, even_ending = means
    return Split(
        classify=classify,
        ending=ending,
        even_classify=even_classify,
        even_ending=even_ending,
        n_stories=len(shares),
    )


def _shares(maps: Tensor, parts: list[int]) -> list[Tensor]:
    """Of one story: the four tensors of :class:`Split`, float64 on the CPU."""
    T = len(parts)
    maps = maps.cpu().double()  # not every device has float64
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
