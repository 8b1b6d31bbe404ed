"""The settings of ``gpt1 reproduce``: which of the paper's experiments to run, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import Check, as_in, at_least, seed_number, setting, settings_of
from gpt1.settings.groups import (
    PAPER_DATASETS,
    DeviceSettings,
    LoopSettings,
    ModelSettings,
    OptimizerSettings,
    OutputSettings,
    SourceSettings,
)

FULL, NO_PRETRAINING, NO_LM, LAYERS, ZEROSHOT = EXPERIMENTS = (
    *("full", "no_pretraining", "no_lm", "layers", "zeroshot"),
)
"""The experiments: full fine-tuning, fine-tuning from fresh parameters and fine-tuning without the
auxiliary language-model loss (table 5 of the paper); score against layers transferred and zero-shot
score against updates of pretraining (figure 2)."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "rocstories": {
        "data_dir": "data",
        "model_dir": "model",
        "tasks": "rocstories",
        "what": FULL,
        "seeds": 10,
        "out": "out/rocstories",
    },
}
"""Settings by the name of their preset. ``rocstories`` stands for the ten runs with the released
weights of which the original's README reports the median; the demo does not take their place."""


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text with commas between them, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def names_of(known: tuple[str, ...]) -> Check:
    """Accept texts that are some of these names with commas between them."""

    def check(text: str) -> str | None:
        unknown = [name for name in split_names(text) if name not in known]
        if not unknown:
            return None
        return f"there is no {unknown[0]!r}; give some of {','.join(known)}"

    return check


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings:
    """Experiments and results."""

    preset: str | None = setting(
        None,
        "settings for what is not given: rocstories: ten runs with the released weights",
        choices=tuple(PRESETS),
    )
    tasks: str | None = setting(
        None,
        "data sets, with commas between them [those whose files are in DATA_DIR]",
        names_of(PAPER_DATASETS),
        metavar="NAMES",
    )
    what: str | None = setting(
        None,
        f"experiments, with commas between them, of {','.join(EXPERIMENTS)} "
        "[all; zeroshot only with --checkpoints]",
        names_of(EXPERIMENTS),
        metavar="NAMES",
    )
    seeds: int = setting(3, "seeds for each data set and experiment", at_least(1))
    first_seed: int = setting(1, "the first seed; the others follow it", seed_number)
    layers_of: str | None = setting(
        None,
        "data sets of the experiment layers [of TASKS those of RACE and MNLI, as in the paper]",
        names_of(PAPER_DATASETS),
        metavar="NAMES",
    )
    checkpoints: str | None = setting(
        None,
        "SAVE_DIR/DESC of a run of pretraining with --keep_every, for zeroshot",
        metavar="DIR",
    )
    out: str = setting("out/reproduction", "where all results go", metavar="DIR")
    keep_models: bool = setting(False, "keep the best parameters of each run, too")
    jobs: int | None = setting(
        None, "runs at a time [one on each GPU; 1 with --device]", at_least(1)
    )
    dry_run: bool = setting(False, "list the runs and what is left of them, and end")
    report: bool = setting(False, "only write the tables and figures of what is finished")
    verbose: bool = setting(False, "show the progress of each run; with --dry_run its command")

    def experiments(self) -> tuple[str, ...]:
        """Return the experiments to run, in the order of :data:`EXPERIMENTS`."""
        chosen = set(EXPERIMENTS if self.what is None else split_names(self.what))
        if self.what is None and self.checkpoints is None:
            chosen.remove(ZEROSHOT)
        return tuple(name for name in EXPERIMENTS if name in chosen)

    def contradictions(self) -> Iterator[str]:
        """Find settings that exclude or need one another."""
        experiments = self.experiments()
        if ZEROSHOT in experiments and self.checkpoints is None:
            yield (
                "--what zeroshot: the checkpoints of a run of pretraining are needed; name their "
                "directory with --checkpoints"
            )
        if self.checkpoints is not None and ZEROSHOT not in experiments:
            yield "--checkpoints: is for --what zeroshot; add that, or leave it out"
        if self.layers_of is not None and LAYERS not in experiments:
            yield "--layers_of: is for --what layers; add that, or leave it out"
        if self.first_seed + self.seeds > 2**32:
            yield f"--seeds {self.seeds}: the last seed must be less than 2**32; give fewer"


@dataclass(frozen=True, kw_only=True)
class ReproductionSourceSettings:
    """Data and pretrained model."""

    data_dir: str | None = as_in(
        SourceSettings,
        "data_dir",
        help="where the folders of the data sets are [data/, or the demo]",
    )
    model_dir: str | None = as_in(SourceSettings, "model_dir")
    encoder_path: str | None = as_in(SourceSettings, "encoder_path")
    bpe_path: str | None = as_in(SourceSettings, "bpe_path")
    spacy_rules: str = as_in(SourceSettings, "spacy_rules")
    cache_dir: str | None = as_in(SourceSettings, "cache_dir")


@dataclass(frozen=True, kw_only=True)
class ReproductionLoopSettings:
    """Length and batches."""

    n_iter: int = as_in(LoopSettings, "n_iter")
    n_batch: int = as_in(LoopSettings, "n_batch")
    n_gpu: int = as_in(LoopSettings, "n_gpu")
    lm_coef: float = as_in(
        LoopSettings, "lm_coef", help="weight of the language-model loss, except in no_lm"
    )
    save_every: int = as_in(OutputSettings, "save_every")


_PASSED_ON = (
    ReproductionSourceSettings,
    ReproductionLoopSettings,
    OptimizerSettings,
    ModelSettings,
    DeviceSettings,
)
REPRODUCE = Command(
    name="reproduce",
    summary=(
        "Run the experiments of the paper's tables and of its figure 2, and write their results "
        "beside the paper's. A run that is finished is not made again, and an interrupted run "
        "goes on; several processes may work on the same --out."
    ),
    groups=(ExperimentSettings, *_PASSED_ON),
    examples="""\
  # what there would be to run for the bundled demo
  gpt1 reproduce --dry_run

  # full fine-tuning, two seeds, one epoch each; tables: out/quick/results.md
  gpt1 reproduce --what full --seeds 2 --n_iter 1 --out out/quick

  # the tables and figures of what is finished
  gpt1 reproduce --out out/quick --report

  # the original's result on ROCStories, with the released weights
  gpt1 reproduce --preset rocstories""",
)


@dataclass(frozen=True, kw_only=True)
class ReproductionSettings(
    DeviceSettings,
    ModelSettings,
    OptimizerSettings,
    ReproductionLoopSettings,
    ReproductionSourceSettings,
    ExperimentSettings,
):
    """All settings of ``gpt1 reproduce``.

    Attributes:
        given: names of the settings that the user or the preset gave.
    """

    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, values: Values) -> ReproductionSettings:
        """Make settings from the values that :data:`REPRODUCE` read, with those of the preset.

        Raises:
            InputError: settings that were given contradict those of the preset.
        """
        made = cls(**values.flat(), given=values.given)
        preset = PRESETS[made.preset] if made.preset is not None else {}
        added = {name: value for name, value in preset.items() if name not in values.given}
        made = replace(made, **added, given=values.given | added.keys())
        if problems := list(made.contradictions()):
            raise InputError(
                join_problems([f"--preset {made.preset}: {each}" for each in problems])
            )
        return made

    def passed_on(self) -> dict[str, Any]:
        """Return the settings that every run of fine-tuning gets, by the names of its flags."""
        return {
            item.name: getattr(self, item.name)
            for group in _PASSED_ON
            for item in settings_of(group)
            if item.name in self.given
        }
