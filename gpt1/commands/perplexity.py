"""Say how well a model predicts a text: ``gpt1 perplexity TEXT --model_dir DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from gpt1.commands.running import open_model, run_command
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import PRECISIONS, OpenSettings
from gpt1.settings.words import counted


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings:
    """Text and computation."""

    text: str = setting(MISSING, "a file of UTF-8 text", metavar="FILE", argument=True)
    n_batch: int = setting(8, "windows of n_ctx tokens at a time", at_least(1))
    precision: str = setting("fp32", "arithmetic; tf32 needs CUDA", choices=PRECISIONS)


COMMAND = Command(
    name="perplexity",
    summary="Say how well a model predicts a text: loss and perplexity per token and per word.",
    groups=(PerplexitySettings, OpenSettings),
    examples="""\
  # a text that the model was not trained on
  gpt1 perplexity chapter.txt --model_dir mymodel""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _perplexity, argv)


def _perplexity(values: Values) -> None:
    given = values[PerplexitySettings]
    if given.text.endswith((".json", ".jsonl")):
        raise InputError(
            f"{given.text}: is a file of JSON, whose braces and names would count as text; write "
            "the texts alone into a .txt file"
        )
    text = read_text(given.text, "the text")
    model = open_model(values[OpenSettings], COMMAND.program)

    import numpy as np

    from gpt1.inference.perplexity import TextCost, mean_cost
    from gpt1.runtime import device
    from gpt1.runtime.ranks import Ranks

    here = model.module.we.device
    device.set_up(here, precision=given.precision, deterministic=False)
    ids = np.array(model.encode(text), dtype=np.int64)
    if len(ids) < 2:
        raise InputError(f"{given.text}: has {len(ids)} tokens; name a file with 2 or more")
    cost = mean_cost(
        model.module, ids, Ranks(0, 1, here), n_batch=given.n_batch, precision=given.precision
    )
    found = TextCost(cost=cost, n_tokens=len(ids), n_words=len(text.split()))
    print(f"loss {found.cost:.4f} nats per token")
    print(f"perplexity {found.perplexity:.2f} per token, {found.word_perplexity:.2f} per word")
    print(
        f"{counted(found.n_tokens, 'token')}, {counted(found.n_words, 'word')}, in windows of "
        f"{model.module.config.n_ctx} tokens"
    )
