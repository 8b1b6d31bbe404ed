"""A finished run on the tiny task: its files and its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tiny

from gpt1.commands import train
from gpt1.datasets.story_cloze import TEST_CSV
from gpt1.inference.language_model import LanguageModel, open_model


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run on the tiny task."""

    task: tiny.Tiny
    directory: Path

    @property
    def params(self) -> Path:
        return self.directory / "save" / "rocstories" / "best_params.jl"

    @property
    def submission(self) -> str:
        return (self.directory / "submission" / "ROCStories.tsv").read_text()

    @property
    def test_csv(self) -> Path:
        return self.task.data_dir / TEST_CSV

    def opened(self) -> LanguageModel:
        return open_model(self.params, vocabulary=self.task.model_dir, device="cpu")


def train_tiny(directory: Path, *words: str) -> Run:
    run = Run(tiny.write_tiny(directory / "task"), directory)
    kinds = ("log", "save", "submission")
    places = [word for kind in kinds for word in (f"--{kind}_dir", str(directory / kind))]
    flags = ["--submit", "--device", "cpu", "--n_batch", "2", "--n_iter", "2", "--lr", "0.01"]
    assert train.main([*run.task.flags, *places, *flags, *words]) == 0
    return run
