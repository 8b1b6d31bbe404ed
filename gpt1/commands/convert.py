"""Convert a model between layouts: ``python -m gpt1 convert SOURCE TARGET``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from gpt1.commands.running import as_model_flag, note, run_command
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import ACTIVATION_NAMES


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """Source, target and layout."""

    source: str = setting(
        MISSING, "a model directory, or a full list .jl or .safetensors", argument=True
    )
    target: str = setting(
        MISSING, "where to write: a directory, or a .jl or .safetensors", argument=True
    )
    to: str | None = setting(
        None,
        "layout to write [the suffix of TARGET]",
        choices=("hub", "released", "jl", "safetensors"),
    )
    model_dir: str | None = setting(
        None, "where the vocabulary is [SOURCE; of a list, model/]", metavar="DIR"
    )
    n_head: int | None = setting(None, "attention heads [recorded, else 12]", at_least(1))
    afn: str | None = setting(None, "activation [recorded, else gelu]", choices=ACTIVATION_NAMES)
    force: bool = setting(False, "replace an earlier conversion in TARGET")


COMMAND = Command(
    name="convert",
    summary="Convert a model between the released layout, full parameter lists and transformers'.",
    groups=(ConversionSettings,),
    examples="""\
  # the demo's pretrained model, for transformers
  gpt1 convert model/demo out/demo_hub --to hub

  # a fine-tuned model, for transformers; its vocabulary is in model/
  gpt1 convert save/rocstories out/finetuned --to hub --model_dir model

  # a model from the hub, as OpenAI released it
  gpt1 convert openai-gpt model --to released

  # a fine-tuned model from the hub, for --params or --init_params
  gpt1 convert out/finetuned out/finetuned.safetensors""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(COMMAND, _convert, argv)


def _convert(values: Values) -> None:
    from gpt1.weights.conversion import convert

    settings = values[ConversionSettings]

    written, notes = convert(
        settings.source,
        settings.target,
        settings.to,
        vocabulary=settings.model_dir,
        n_head=settings.n_head,
        afn=settings.afn,
        force=settings.force,
        spell=as_model_flag,
    )
    print(written)
    for text in notes:
        note(COMMAND.program, f"note: {text}")
