"""Predict the rows of a user's file with a fine-tuned model: ``gpt1 predict FILE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt1.commands.running import note, open_model, run_command
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_writable
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import LEAST_N_CTX, PRECISIONS, LoopSettings, OpenSettings

if TYPE_CHECKING:
    import numpy.typing as npt

    from gpt1.inference.language_model import LanguageModel
    from gpt1.tasks import Metric, TaskRecord


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Examples and predictions."""

    file: str = setting(
        MISSING,
        "examples to predict: .csv, .tsv (without quotes) or .jsonl, with or without labels",
        metavar="FILE",
        argument=True,
    )
    out: str | None = setting(None, "where index and prediction go [stdout]", metavar="FILE")
    probs: bool = setting(False, "write the probability of each outcome, too")
    text_columns: str | None = setting(
        None, "columns of the texts, with commas between them [those of training]", metavar="NAMES"
    )
    label_column: str | None = setting(
        None, "column of the label [that of training, if it is there]", metavar="NAME"
    )
    n_ctx: int | None = setting(
        None,
        "the --n_ctx of the training of the model, by which long texts are cut [as it records]",
        at_least(LEAST_N_CTX),
    )
    n_batch: int = setting(LoopSettings().batch_size, "examples at a time", at_least(1))
    precision: str = setting("fp32", "arithmetic; tf32 needs CUDA", choices=PRECISIONS)


COMMAND = Command(
    name="predict",
    summary="Predict the rows of your own file with a model that was fine-tuned on such rows.",
    groups=(PredictSettings, OpenSettings),
    examples="""\
  # a model of gpt1 train --dataset own; predictions to the terminal
  gpt1 predict new.csv --model_dir save/own

  # with probabilities, into a file
  gpt1 predict new.csv --model_dir save/own --probs --out out/new.tsv""",
)

FINE_TUNED = "--model_dir DIR, such as save/own"


class Options(Protocol):
    """How to compute predictions; the settings of ``predict`` and ``score`` have these."""

    @property
    def n_ctx(self) -> int | None: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def precision(self) -> str: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _predict, argv)


def _predict(values: Values) -> None:
    from gpt1.datasets.own import read_to_predict
    from gpt1.results import submissions

    given = values[PredictSettings]
    check_out(given.out, (given.file, values[OpenSettings].params))
    model = open_model(values[OpenSettings], COMMAND.program)

    from gpt1.inference import scoring

    task = scoring.task_of(model, FINE_TUNED)
    found = read_to_predict(given.file, task, given.text_columns, given.label_column)
    logits = logits_of(model, found.texts, task, given, program=COMMAND.program)
    choices = submissions.choices_of(logits, found.target)
    predictions = choices.predictions
    table = submissions.table([found.target.spell(each) for each in predictions.tolist()])
    write(submissions.probs_table(choices, found.target) if given.probs else table, given.out)
    if found.labels is not None:
        for metric in task.scores():
            note(COMMAND.program, score_line(metric, predictions, found.labels))


def logits_of(
    model: LanguageModel,
    examples: Sequence[Sequence[str]],
    task: TaskRecord,
    given: Options,
    *,
    program: str,
    noun: str = "examples",
) -> npt.NDArray[Any]:
    """Compute the logits [n, C] of examples; a note says how many of them were cut.

    Args:
        model: the fine-tuned model.
        examples: the texts of each example.
        task: the task of the model.
        given: how to compute.
        program: the program's name, for the note.
        noun: what the examples are, for the note.
    """
    from gpt1.inference import scoring

    n_ctx = given.n_ctx or task.n_ctx
    split, n_cut = scoring.encode_examples(model, examples, task=task, n_ctx=n_ctx, verbose=True)
    if n_cut:
        note(
            program,
            f"{n_cut} of {split.n_examples} {noun} are longer than the model was trained on "
            f"(--n_ctx {n_ctx}, {model.module.config.n_ctx} position rows): "
            "the ends of their parts were cut off",
        )
    return scoring.logits_of(
        model, split, task=task, n_batch=given.n_batch, precision=given.precision
    )


def score_line(metric: Metric, predictions: npt.NDArray[Any], labels: Sequence[float]) -> str:
    """Return one line with a score of predictions, for accuracy with its 95 % interval."""
    import numpy as np

    from gpt1.reports.analysis import accuracy_line

    if metric.title == "accuracy":
        return accuracy_line(metric.title, predictions, np.asarray(labels))
    return f"{metric.title}: {metric.compute(predictions, np.asarray(labels)):.2f} %"


def write(table: str, out: str | None) -> None:
    """Write a table into a file, or to stdout if none is named."""
    if out is None:
        sys.stdout.write(table)
        sys.stdout.flush()
        return
    with atomic_write(out, "w") as file:
        file.write(table)


def check_out(name: str | None, read: Sequence[str | None]) -> None:
    """Check before any work that the result can be written and overwrites no file that is read."""
    if name is None:
        return
    out = Path(name)
    for other in read:
        if other is not None and out.resolve() == Path(other).resolve():
            raise InputError(f"--out {out}: would overwrite a file that is read; name another file")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a directory; name a file in it")
    check_writable(out.parent)
