"""Choose the endings of a user's stories with a fine-tuned model: ``gpt1 score STORIES.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from gpt1.commands.running import note, open_model, run_command
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_writable
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import (
    LEAST_N_CTX,
    PRECISIONS,
    LoopSettings,
    ModelSettings,
    OpenSettings,
)


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Stories and scores."""

    stories: str = setting(
        MISSING,
        "a CSV with the columns story,ending1,ending2 and perhaps label (1 or 2), or with those "
        "of the cloze CSVs",
        metavar="FILE",
        argument=True,
    )
    out: str | None = setting(
        None, "where index, prediction and probabilities go [stdout]", metavar="FILE"
    )
    n_ctx: int = setting(
        ModelSettings().n_ctx,
        "the --n_ctx of the training of the model, by which long parts are cut",
        at_least(LEAST_N_CTX),
    )
    n_batch: int = setting(LoopSettings().batch_size, "stories at a time", at_least(1))
    precision: str = setting("fp32", "arithmetic; tf32 needs CUDA", choices=PRECISIONS)


COMMAND = Command(
    name="score",
    summary="Choose between two endings of your own stories with a fine-tuned model.",
    groups=(ScoreSettings, OpenSettings),
    examples="""\
  # a CSV with the columns story,ending1,ending2: choices and probabilities to
  # the terminal
  gpt1 score stories.csv --params save/rocstories/best_params.jl

  # into a file, which gpt1 analysis takes as --probs
  gpt1 score stories.csv --params save/rocstories/best_params.jl \\
      --out out/scores.tsv""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _score, argv)


def _score(values: Values) -> None:
    from gpt1.datasets.own_stories import read_stories

    given = values[ScoreSettings]
    stories = read_stories(given.stories)
    if given.out is not None:
        _check_out(Path(given.out), (given.stories, values[OpenSettings].params))
    model = open_model(values[OpenSettings], COMMAND.program)

    from gpt1.inference import scoring
    from gpt1.results import submissions

    scoring.check_choice_head(model, "--params FILE, such as save/rocstories/best_params.jl")
    split, n_cut = scoring.encode_stories(model, *stories[:3], n_ctx=given.n_ctx, verbose=True)
    if n_cut:
        note(
            COMMAND.program,
            f"{n_cut} of {split.n_examples} stories are longer than the model was trained on "
            f"(--n_ctx {given.n_ctx}, {model.module.config.n_ctx} position rows): "
            "the ends of their parts were cut off",
        )
    logits = scoring.choice_logits(model, split, n_batch=given.n_batch, precision=given.precision)
    choices = submissions.choices_of(logits)
    _write(submissions.probs_table(choices), given.out)
    if stories.labels is not None:
        import numpy as np

        from gpt1.datasets.story_cloze import ROCSTORIES
        from gpt1.reports.analysis import accuracy_line

        line = accuracy_line("accuracy", choices.predictions, np.array(stories.labels))
        note(COMMAND.program, f"{line} (prediction {ROCSTORIES.legend})")


def _write(table: str, out: str | None) -> None:
    if out is None:
        print(table, end="", flush=True)
    else:
        with atomic_write(out, "w") as file:
            file.write(table)


def _check_out(out: Path, read: Sequence[str | None]) -> None:
    """Check before any work that the result can be written and overwrites no file that is read."""
    for name in read:
        if name is not None and out.resolve() == Path(name).resolve():
            raise InputError(f"--out {out}: would overwrite a file that is read; name another file")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a directory; name a file in it")
    check_writable(out.parent)
