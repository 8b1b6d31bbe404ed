"""The settings of pretraining: its groups, the presets of ``--size``, and the command.

Flags that fine-tuning has too are declared as there, with the paper's values for pretraining as
defaults (section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from typing import Any

from gpt1.settings.command import Command, Values
from gpt1.settings.fields import as_in, at_least, plain_name, setting
from gpt1.settings.groups import (
    SCHEDULE_NAMES,
    DeviceSettings,
    LoopSettings,
    ModelSettings,
    OptimizerSettings,
    OutputSettings,
)

SIZES: Mapping[str, Mapping[str, Any]] = {
    "gpt1": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_ctx": 512},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_ctx": 256},
    "mini": {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_ctx": 128},
    "tiny": {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_ctx": 64},
}
"""The sizes of a fresh model by the name of its preset; ``gpt1`` is the paper's."""

PACES: Mapping[str, Mapping[str, Any]] = {
    "gpt1": {"lr": 2.5e-4, "warmup_updates": 2000},
    "small": {"lr": 2.5e-4, "warmup_updates": 1000},
    "mini": {"lr": 1e-3, "warmup_updates": 400},
    "tiny": {"lr": 1e-3, "warmup_updates": 200},
}
"""The peak learning rate and the warm-up of each preset.

The runs of small models are too short for the paper's warm-up. With a rate that rises too high too
early, a model with its layer norms after the residual sums learns how frequent the tokens are, and
nothing of what is before them: ``tiny`` stayed at that loss with 2e-3 after 50 updates.
"""

OWN_SCHEDULE = "warmup_then_cosine"


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Text, model and result."""

    corpus: str = setting(
        MISSING, "text to train on, which gpt1 corpus has encoded", metavar="DIR", may_change=True
    )
    out: str = setting(
        MISSING,
        "where the model goes, with its vocabulary, in the released layout",
        metavar="DIR",
        may_change=True,
    )
    model_dir: str | None = setting(
        None,
        "go on from the weights in this directory [fresh weights]",
        metavar="DIR",
        may_change=True,
    )
    size: str = setting(
        "gpt1",
        f"preset for what is not given: {', '.join(SIZES)} [gpt1]",
        choices=tuple(SIZES),
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class PretrainLoopSettings:
    """Length and batches."""

    seed: int = as_in(LoopSettings, "seed")
    n_iter: int | None = setting(None, "epochs; 0: no training [100]", at_least(0))
    n_updates: int | None = setting(None, "updates, in place of --n_iter", at_least(1))
    n_batch: int = setting(16, "windows of n_ctx tokens per tower and update", at_least(1))
    n_gpu: int = setting(
        4, "towers; an update takes n_batch * n_gpu windows on any hardware", at_least(1)
    )

    @property
    def batch_size(self) -> int:
        """Windows per update, over all towers."""
        return self.n_batch * self.n_gpu

    def contradictions(self) -> Iterator[str]:
        """Find out whether the length of the run is given twice."""
        if self.n_iter is not None and self.n_updates is not None:
            yield (
                f"--n_updates {self.n_updates}: the length of the run is given by --n_iter, too; "
                "leave one of the two out"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainOptimizerSettings:
    """Optimizer and learning-rate schedule."""

    opt: str = as_in(OptimizerSettings, "opt")
    lr: float | None = setting(None, "peak learning rate [2.5e-4, the preset's]", at_least(0))
    lr_schedule: str = as_in(
        OptimizerSettings,
        "lr_schedule",
        default=OWN_SCHEDULE,
        choices=(OWN_SCHEDULE, *SCHEDULE_NAMES),
    )
    warmup_updates: int | None = setting(
        None, "updates that warm up [2000, or fewer: the preset's]", at_least(0)
    )
    max_grad_norm: float = as_in(OptimizerSettings, "max_grad_norm")
    b1: float = as_in(OptimizerSettings, "b1")
    b2: float = as_in(OptimizerSettings, "b2")
    e: float = as_in(OptimizerSettings, "e")
    l2: float = as_in(OptimizerSettings, "l2")
    vector_l2: bool = as_in(OptimizerSettings, "vector_l2")


@dataclass(frozen=True, kw_only=True)
class PretrainModelSettings:
    """Model and dropout."""

    n_ctx: int | None = setting(
        None,
        "tokens in a window [those of --model_dir, else the preset's]",
        at_least(2),
        may_change=True,
    )
    n_embd: int | None = as_in(ModelSettings, "n_embd", help="width [as --n_ctx]")
    n_head: int | None = as_in(ModelSettings, "n_head", help="attention heads [as --n_ctx]")
    n_layer: int | None = as_in(ModelSettings, "n_layer", help="layers [as --n_ctx]")
    afn: str | None = as_in(
        ModelSettings, "afn", default=None, help="activation [that of --model_dir, else gelu]"
    )
    embd_pdrop: float = as_in(ModelSettings, "embd_pdrop")
    attn_pdrop: float = as_in(ModelSettings, "attn_pdrop")
    resid_pdrop: float = as_in(ModelSettings, "resid_pdrop")


@dataclass(frozen=True, kw_only=True)
class PretrainDeviceSettings:
    """Device and speed."""

    device: str | None = as_in(DeviceSettings, "device")
    precision: str = as_in(DeviceSettings, "precision")
    recompute: bool | None = as_in(DeviceSettings, "recompute")
    compile: bool = as_in(DeviceSettings, "compile")
    deterministic: bool = as_in(DeviceSettings, "deterministic")


@dataclass(frozen=True, kw_only=True)
class PretrainOutputSettings:
    """Evaluations, samples, logs and checkpoints."""

    desc: str = setting(
        "pretraining", "name of the run, used in file names", plain_name, may_change=True
    )
    eval_every: int = setting(
        0, "updates between evaluations, besides the end of each epoch", at_least(0)
    )
    sample: tuple[str, ...] = setting(
        (), "continue this text after each evaluation; give it again for more", may_change=True
    )
    keep_every: int = setting(
        0,
        "keep the model after every N updates, as SAVE_DIR/DESC/model-NNNNNNNN",
        at_least(0),
        may_change=True,
    )
    log_dir: str = as_in(OutputSettings, "log_dir")
    save_dir: str = as_in(OutputSettings, "save_dir")
    tensorboard: str | None = as_in(OutputSettings, "tensorboard")
    quiet: bool = as_in(OutputSettings, "quiet")
    resume: bool = as_in(OutputSettings, "resume")
    save_every: int = as_in(OutputSettings, "save_every", default=1000)


PRETRAIN = Command(
    name="pretrain",
    summary="Train a language model on text of your own, as the paper pretrained GPT-1.",
    groups=(
        CorpusSettings,
        PretrainLoopSettings,
        PretrainOptimizerSettings,
        PretrainModelSettings,
        PretrainDeviceSettings,
        PretrainOutputSettings,
    ),
    examples="""\
  # a small model on a corpus that gpt1 corpus has made
  gpt1 pretrain --corpus corpus --out mymodel --size mini --n_iter 10

  # go on from existing weights, with text of another domain
  gpt1 pretrain --corpus corpus --out mymodel --model_dir model/demo \\
      --n_updates 500 --warmup_updates 50""",
)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(
    PretrainOutputSettings,
    PretrainDeviceSettings,
    PretrainModelSettings,
    PretrainOptimizerSettings,
    PretrainLoopSettings,
    CorpusSettings,
):
    """All settings of a pretraining run."""

    @classmethod
    def of(cls, values: Values) -> PretrainSettings:
        """Make settings from the values that :data:`PRETRAIN` read."""
        return cls(**values.flat())

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.desc

    def optimizer(self, n_updates: int) -> OptimizerSettings:
        """Return the settings of the optimizer, with the warm-up as a share of all updates.

        Args:
            n_updates: number of updates of the whole run.
        """
        names = ("opt", "lr", "lr_schedule", "max_grad_norm", "b1", "b2", "e", "l2", "vector_l2")
        return OptimizerSettings(
            **{name: getattr(self, name) for name in names},
            lr_warmup=(self.warmup_updates or 0) / n_updates if n_updates else 0.0,
        )

    def paced(self) -> PretrainSettings:
        """Return these settings with numbers for the learning rate, the warm-up and the length."""
        pace = {
            name: value for name, value in PACES[self.size].items() if getattr(self, name) is None
        }
        n_iter = 100 if self.n_iter is None and self.n_updates is None else self.n_iter
        return replace(self, **pace, n_iter=n_iter)

    def as_flags(self) -> dict[str, Any]:
        """Return every setting's value by its name, in the order of ``--help``."""
        return {item.name: getattr(self, item.name) for item in PRETRAIN.settings}

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the run that it continues."""
        return {
            item.name: getattr(self, item.name) for item in PRETRAIN.settings if not item.may_change
        }
