"""The demo's model is what ``make demo`` makes: vocabulary, sizes, and what it has learned."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from gpt1.batches.corpus import Corpus
from gpt1.commands import cli
from gpt1.inference.language_model import open_model
from gpt1.inference.perplexity import mean_cost
from gpt1.runtime.ranks import Ranks
from gpt1.text_utils.vocabulary import RELEASED_NAMES
from gpt1.weights.locate import SHAPES_FILE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"


def recipe() -> list[list[str]]:
    """Return the words of each command of ``make demo``, without the program."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert found
    commands = found[1].replace("\\\n", " ").splitlines()
    return [shlex.split(command)[1:] for command in commands]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo's whole corpus."""
    place = tmp_path_factory.mktemp("demo")
    (stories, corpus, _) = recipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(sys, "argv", stories)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / stories[0]), run_name="__main__")
        assert caught.value.code == 0
        assert cli.main(corpus) == 0
    return place


def test_the_demos_vocabulary_is_learned_from_its_stories(place: Path) -> None:
    for name in RELEASED_NAMES:
        assert (place / "out/demo/corpus" / name).read_bytes() == (DEMO / name).read_bytes()


def test_the_demos_model_has_learned_the_stories(place: Path) -> None:
    """The documented loss is that of stories that are held out."""
    text = (ROOT / "model/README.md").read_text()
    told = re.search(r"held-out\s+loss\s+of\s+(\d\.\d+)\s+nats", text)
    assert told
    model = open_model(DEMO, device="cpu").module
    tokens = Corpus.open(place / "out/demo/corpus").held_out
    cost = mean_cost(model, tokens, Ranks(0, 1, torch.device("cpu")), n_batch=16)
    assert cost == pytest.approx(float(told[1]), abs=6e-4)  # half of the last digit, and rounding


def test_the_recipe_trains_a_model_of_the_demos_sizes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    command = " ".join(recipe()[2])
    for whole, short in (("n_iter 3", "n_updates 2"), ("warmup_updates 100", "warmup_updates 1")):
        assert f"--{whole} " in command
        command = command.replace(f"--{whole} ", f"--{short} ")
    assert cli.main(command.split()) == 0
    made = place / "out/demo/model"
    assert (made / SHAPES_FILE).read_bytes() == (DEMO / SHAPES_FILE).read_bytes()
    assert {path.name for path in made.iterdir()} == {path.name for path in DEMO.iterdir()}
