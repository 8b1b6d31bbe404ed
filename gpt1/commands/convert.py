"""Convert a model between layouts: ``python -m gpt1 convert SOURCE TARGET``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from gpt1.runtime.errors import report_errors
from gpt1.settings.command import Command
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import ACTIVATION_NAMES


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """What to convert, and into what."""

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
  python -m gpt1 convert model/demo demo_hub --to hub

  # a fine-tuned model, for transformers; its vocabulary is in model/
  python -m gpt1 convert save/rocstories/best_params.jl finetuned --to hub --model_dir model

  # a model from the hub, as OpenAI released it
  python -m gpt1 convert openai-gpt model --to released

  # a fine-tuned model from the hub, for --params or --init_params
  python -m gpt1 convert finetuned finetuned.safetensors""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return report_errors(COMMAND.program, lambda: _run(COMMAND.parse(argv)[ConversionSettings]))


def _run(settings: ConversionSettings) -> int:
    from gpt1.weights.conversion import convert
    from gpt1.weights.stored import as_model_flag

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
    for note in notes:
        print(f"{COMMAND.program}: note: {note}", file=sys.stderr)
    return 0
