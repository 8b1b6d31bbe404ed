"""Make a data set, a vocabulary and a checkpoint so small that a whole run takes a second.

The stories are made of a few words; which ending is right follows from the story. The
checkpoint has random weights in the released layout, 16 wide, with two layers of four heads.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

import released

from gpt1.datasets.story_cloze import COLUMNS, TEST_CSV, VALIDATION_CSV
from gpt1.settings.training import Settings
from gpt1.training.sources import Sources

N_TRAIN, N_VALID, N_TEST = 32, 8, 24  # stories of each split
N_EMBD, N_HEAD, N_LAYER, N_POSITIONS = 16, 4, 2, 64

_NAMES = ("anna", "ben", "carl", "dora")
_THINGS = ("kite", "boat", "drum", "cake")
_TURNS = (("lost", "cried"), ("won", "smiled"))  # what happened, and how it ends


@dataclass(frozen=True)
class Tiny:
    """The directory of a tiny task, and the flags that name its files."""

    directory: Path

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def model_dir(self) -> Path:
        return self.directory / "model"

    @property
    def flags(self) -> list[str]:
        return ["--data_dir", str(self.data_dir), "--model_dir", str(self.model_dir)]

    def sources(self) -> Sources:
        """The sources that the flags name."""
        return Sources(
            data_dir=self.data_dir,
            model_dir=self.model_dir,
            encoder_path=self.model_dir / "encoder_bpe_40000.json",
            bpe_path=self.model_dir / "vocab_40000.bpe",
            demo=False,
        )

    def settings(self, **changes: object) -> Settings:
        """Return settings of a run on the task; ``changes`` are fields of :class:`Settings`."""
        places = {"data_dir": str(self.data_dir), "model_dir": str(self.model_dir)}
        return Settings(**{**places, **changes})  # type: ignore[arg-type]


def write_tiny(directory: Path) -> Tiny:
    """Write both CSVs into ``data/`` and vocabulary, merges and weights into ``model/``."""
    tiny = Tiny(directory)
    rng = random.Random(7)
    write_stories(tiny.data_dir / VALIDATION_CSV, N_TRAIN + N_VALID, rng)
    write_stories(tiny.data_dir / TEST_CSV, N_TEST, rng)
    n_vocab = write_vocabulary(tiny.model_dir)
    released.write_released(
        tiny.model_dir,
        n_embd=N_EMBD,
        n_layer=N_LAYER,
        n_ctx=N_POSITIONS,
        n_vocab=n_vocab,
        n_head=N_HEAD,
        std=0.1,
    )
    return tiny


def write_stories(path: Path, n: int, rng: random.Random) -> None:
    """Write a cloze CSV of ``n`` stories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number in range(n):
            rows.writerow(_story(number, rng))


def _story(number: int, rng: random.Random) -> list[str]:
    name, thing, turn = rng.choice(_NAMES), rng.choice(_THINGS), rng.randrange(2)
    endings = [f"{name} {end}" + "." * rng.randrange(2) for _, end in _TURNS]
    right = rng.randrange(2)
    if right != turn:
        endings.reverse()
    sentences = [
        f"{name} had a {thing}.",
        " ".join(["it was", *["so"] * rng.randrange(3), "big."]),  # lengths differ
        f"{name} ran.",
        f"{name} {_TURNS[turn][0]}.",
    ]
    return [f"s{number}", *sentences, *endings, str(right + 1)]


def write_vocabulary(directory: Path) -> int:
    """Write a vocabulary and merges that make one token of each word; return its size."""
    words = [*_NAMES, *_THINGS, *(word for turn in _TURNS for word in turn)]
    words += ["had", "it", "was", "so", "big", "ran"]
    letters = "abcdefghijklmnopqrstuvwxyz."
    pieces = {letter + end: None for letter in letters for end in ("", "</w>")}
    merges = {}
    for word in words:
        start = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"]:
            merges[start, letter] = None
            start += letter
            pieces[start] = None
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (directory / "encoder_bpe_40000.json").write_text(json.dumps(vocabulary), "utf-8")
    lines = ["#version: 0.2", *(f"{one} {two}" for one, two in merges)]
    (directory / "vocab_40000.bpe").write_text("\n".join(lines) + "\n", "utf-8")
    return len(vocabulary)
