"""The settings of fine-tuning: all groups together, and the command that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt1.settings.command import Command, Values
from gpt1.settings.groups import (
    DeviceSettings,
    LoopSettings,
    ModelSettings,
    OptimizerSettings,
    OutputSettings,
    OwnSettings,
    SourceSettings,
)

DEMO_DEFAULTS: dict[str, Any] = {"lr": 2e-3, "n_iter": 15}
"""Defaults for the demo, whose model has a hundredth of GPT-1's size and which has few stories."""

GROUPS = (
    SourceSettings,
    OwnSettings,
    LoopSettings,
    OptimizerSettings,
    ModelSettings,
    DeviceSettings,
    OutputSettings,
)
TRAIN = Command(
    name="train",
    summary="Fine-tune GPT-1 as the paper did, with an auxiliary language-model loss.",
    groups=GROUPS,
    examples="""\
  # on what is in data/ and model/, else on the bundled demo
  python -m gpt1.train --dataset rocstories --submit

  # on a file of your own with the columns text and label
  gpt1 train --dataset own --shape classification --submit \\
      --train_file reviews.csv

  # as a run before, with one flag changed
  gpt1 train --config log/rocstories.jsonl --seed 43 --desc second""",
)


@dataclass(frozen=True, kw_only=True)
class Settings(
    OutputSettings,
    DeviceSettings,
    ModelSettings,
    OptimizerSettings,
    LoopSettings,
    OwnSettings,
    SourceSettings,
):
    """All settings of a run.

    An instance can be passed to every function that takes one of the groups. A default of None
    means that the value is taken from the data set's name, the checkpoint or the machine.

    Attributes:
        given: names of the settings that the user gave.
    """

    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, values: Values) -> Settings:
        """Make settings from the values that the command :data:`TRAIN` read."""
        return cls(**values.flat(), given=values.given)

    @property
    def name(self) -> str:
        """The name of the run: ``desc``, or the data set's name if no ``desc`` was given."""
        return self.desc or self.dataset

    def as_flags(self) -> dict[str, Any]:
        """Return every setting's value by its name, in the order of ``--help``."""
        return {item.name: getattr(self, item.name) for item in TRAIN.settings}

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the run that it continues."""
        return {
            item.name: getattr(self, item.name) for item in TRAIN.settings if not item.may_change
        }

    def made_fast(self, *, has_bf16: bool, is_cuda: bool) -> Settings:
        """Return these settings with those that ``--fast`` stands for.

        A precision that the user gave stays.

        Args:
            has_bf16: whether the device computes in bfloat16.
            is_cuda: whether the device is a CUDA device.
        """
        keep = "precision" in self.given or not has_bf16
        return replace(
            self,
            precision=self.precision if keep else "bf16",
            share_prefix=True,
            compile=self.compile or is_cuda,
        )

    def for_demo(self) -> Settings:
        """Return these settings with :data:`DEMO_DEFAULTS` for those that the user did not give."""
        own = {name: value for name, value in DEMO_DEFAULTS.items() if name not in self.given}
        return replace(self, **own)


def parse(argv: Sequence[str] | None) -> Settings:
    """Read the command line of ``gpt1 train``; ``--help`` prints the help and ends the program.

    Raises:
        InputError: a setting is wrong; the message has every problem.
    """
    return Settings.of(TRAIN.parse(argv))


def from_keywords(settings: Mapping[str, Any]) -> Settings:
    """Read settings that a Python call gave by the names of the flags.

    Raises:
        InputError: a setting is wrong; the message has every problem and names arguments, not
            flags.
    """
    return Settings.of(TRAIN.values(settings))
