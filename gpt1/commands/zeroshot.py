"""Predict with a model that was never fine-tuned: ``gpt1 zeroshot --dataset NAME``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpt1.commands.running import find_data_dir, note, note_written, open_model, run_command
from gpt1.settings.command import Values
from gpt1.settings.groups import OpenSettings
from gpt1.settings.zeroshot import ZEROSHOT, ZeroshotSettings

if TYPE_CHECKING:
    from gpt1.inference.zeroshot import ZeroshotResult, ZeroshotSplit

COMMAND = ZEROSHOT
WIDTH = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _zeroshot, argv)


def _zeroshot(values: Values) -> None:
    from gpt1.inference.zeroshot import prepare

    given = values[ZeroshotSettings]
    job = prepare(values)
    folder = find_data_dir(given.data_dir, COMMAND.program, job.task)
    model = open_model(values[OpenSettings], COMMAND.program)
    result = job.run(model, folder)
    for text in result.notes:
        note(COMMAND.program, text)
    for line in _report(result):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if given.json is not None:
        note_written(COMMAND.program, given.json)


def _report(result: ZeroshotResult) -> Iterator[str]:
    """Yield what is predicted, and for each split with labels its scores and the baselines."""
    yield f"{result.task.title}, zero-shot, {result.model}: {result.method.rule}"
    if result.threshold is not None:
        yield f"threshold chosen on the training split: {result.threshold:.4f} nats"
    for stem, split in result.splits.items():
        if split.labels is None:
            yield f"{stem}: {len(split.predictions)} predictions, labels are not known"
        else:
            yield from _scores(result, stem, split)


def _scores(result: ZeroshotResult, stem: str, split: ZeroshotSplit) -> Iterator[str]:
    """Yield the scores of a split with their intervals, and what they are without a model."""
    from gpt1.reports.analysis import score_lines
    from gpt1.reports.labelled import LabelledSplit
    from gpt1.tasks import ChoiceIndex

    task = result.task
    assert split.labels is not None
    labelled = LabelledSplit(task=task, stem=stem, labels=split.labels, source=result.model)
    yield from score_lines(stem, split.predictions, labelled)
    is_choice = isinstance(task.target, ChoiceIndex)
    what = "answers drawn at random" if is_choice else "the best class for all examples"
    found = [f"{each.title} {split.baseline(task, each):.2f} %" for each in task.metrics]
    yield f"{stem}: {what}: {', '.join(found)}"
