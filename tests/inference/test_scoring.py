"""Scores of stories: the choices are those of training, and long stories are cut by its rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cloze import EncodedCloze, lay_out
from finished import Run, train_tiny

from gpt1.batches.packing import pack
from gpt1.datasets.story_cloze import read_cloze
from gpt1.inference import scoring
from gpt1.inference.opened import OpenedModel
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.results.submissions import choices_of
from gpt1.runtime.errors import InputError
from gpt1.tasks.layouts import max_part_length
from gpt1.tasks.targets import ChoiceIndex


def scores(
    opened: OpenedModel, columns: Sequence[Sequence[str]], **options: Any
) -> npt.NDArray[np.float64]:
    """Return the probabilities of the endings of stories, whose parts are in three columns."""
    split, _ = scoring.encode_examples(opened, list(zip(*columns, strict=True)))
    return ChoiceIndex().probabilities(scoring.logits_of(opened, split, **options))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tmp_path_factory.mktemp("run"))


def test_probabilities_are_those_of_choices_one_by_one(run: Run) -> None:
    """The probabilities agree with those of single choices, one per batch, in training's arrays."""
    opened, test = run.opened(), read_cloze(run.test_csv)
    encoded = EncodedCloze(*(opened.text_encoder.encode(texts) for texts in test[:3]), labels=None)
    rows = opened.module.config.n_ctx
    arrays = lay_out(encoded, opened.special, length=rows)
    logits = []
    with torch.no_grad():
        for i in range(len(test[0])):
            story = arrays.take(slice(i, i + 1)).encoded()
            batch = pack(story, opened.special.classify, share_prefix=False)
            logits.append(opened.module.clf_logits(batch).numpy())
    found = scores(opened, test[:3])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, choices_of(np.concatenate(logits)).probs, atol=1e-5)
    assert np.ptp(found[:, 0]) > 0.01


def test_order_of_the_endings_and_neighbours_do_not_matter(run: Run) -> None:
    opened, test = run.opened(), read_cloze(run.test_csv)
    found = scores(opened, test[:3], n_batch=5)
    stories, one, two = (texts[::-1] for texts in test[:3])
    turned = scores(opened, (stories, two, one), n_batch=5)
    np.testing.assert_allclose(turned[::-1, ::-1], found, atol=1e-5)


def test_no_stories(run: Run) -> None:
    assert scores(run.opened(), ([], [], [])).shape == (0, 2)


def test_precision_is_used(run: Run) -> None:
    opened, test = run.opened(), read_cloze(run.test_csv)
    exact = scores(opened, test[:3])
    rough = scores(opened, test[:3], precision="bf16")
    assert 0 < np.abs(exact - rough).max() < 0.2
    with pytest.raises(InputError, match="tf32"):
        scores(opened, test[:3], precision="tf32")


# Too long


def test_only_what_does_not_fit_is_cut(run: Run) -> None:
    opened = run.opened()
    rows = opened.module.config.n_ctx
    room = max_part_length(rows)
    texts = ["so " * (rows - 4), "so " * (rows - 3), "so " * 3]
    endings = ["big", "big", "ran " * rows]
    stories = list(zip(texts, ["won"] * 3, endings, strict=True))
    split, n_cut = scoring.encode_examples(opened, stories)
    lengths = split.lengths.tolist()
    # Full to the last row; one more, cut to the room; a long ending, which cuts itself alone.
    assert lengths == [[rows, rows], [room + 4, room + 4], [7, 6 + room]]
    assert n_cut == 2
    assert split.longest == rows


def test_a_cut_story_scores_as_what_is_left_of_it(run: Run) -> None:
    opened = run.opened()
    room = max_part_length(opened.module.config.n_ctx)
    begin, rest = "anna had a kite. " + "so " * (room - 5), "ben lost. " * 20
    assert len(opened.text_encoder.encode([begin])[0]) == room
    found = scores(opened, ([begin + rest, begin], ["won"] * 2, ["cried"] * 2))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    stories = [(story, "won", "cried") for story in (begin + rest, begin)]
    _, n_cut = scoring.encode_examples(opened, stories)
    assert n_cut == 1


def test_a_model_of_hardly_any_rows_is_named(run: Run) -> None:
    opened = run.opened()
    small = DoubleHeadsModel(dataclasses.replace(opened.module.config, n_ctx=5))
    small.init_parameters()
    short = dataclasses.replace(opened, module=small)
    assert scores(short, (["so"], ["won"], ["ran"])).shape == (1, 2)
    with pytest.raises(InputError, match=r"example 2 is too long: .* 5 position rows only"):
        scores(short, (["so", "so so"], ["won"] * 2, ["ran"] * 2))
