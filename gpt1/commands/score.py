"""Choose the endings of a user's stories with a fine-tuned model: ``gpt1 score STORIES.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from gpt1.commands.predict import check_out, logits_of, write
from gpt1.commands.running import note, open_model, run_command
from gpt1.runtime.errors import InputError
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
    from gpt1.datasets.story_cloze import ROCSTORIES
    from gpt1.results import submissions

    given = values[ScoreSettings]
    stories = read_stories(given.stories)
    check_out(given.out, (given.stories, values[OpenSettings].params))
    model = open_model(values[OpenSettings], COMMAND.program)

    from gpt1.inference import scoring
    from gpt1.tasks.shapes import first_answer, has_answers

    remedy = "--params FILE, such as save/rocstories/best_params.jl"
    task = scoring.task_of(model, remedy)
    if not has_answers(task.layout) or first_answer(task.layout) != 1:
        raise InputError(f"{model.source} was not trained to choose; use gpt1 predict, or {remedy}")
    examples = list(zip(*stories[:3], strict=True))
    logits = logits_of(model, examples, task, given, program=COMMAND.program, noun="stories")
    choices = submissions.choices_of(logits)
    write(submissions.probs_table(choices), given.out)
    if stories.labels is not None:
        import numpy as np

        from gpt1.reports.analysis import accuracy_line

        line = accuracy_line("accuracy", choices.predictions, np.array(stories.labels))
        note(COMMAND.program, f"{line} (prediction {ROCSTORIES.legend})")
