"""Report how good a submission is, and how certain this is: ``gpt1 analysis SUBMISSION``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass

from gpt1.commands.running import find_data_dir, note_written, run_command
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import PAPER_DATASETS


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Submission and related files."""

    submission: str = setting(
        MISSING, "predictions that training wrote with --submit", metavar="FILE", argument=True
    )
    second_submission: str | None = setting(
        None, "predictions for the same examples, to compare with", metavar="FILE", argument=True
    )
    data_dir: str | None = setting(
        None,
        "where the data are [data/, or data/demo if data/ has none]",
        metavar="DIR",
    )
    dataset: str | None = setting(
        None,
        "the data set, if no record beside SUBMISSION names it [rocstories]",
        choices=PAPER_DATASETS,
        metavar="NAME",
    )
    log: str | None = setting(
        None,
        "training log of the run that made SUBMISSION; that of another run is refused",
        metavar="FILE",
    )
    probs: str | None = setting(
        None,
        "probabilities of SUBMISSION, from --probs of training: adds calibration and mistakes",
        metavar="FILE",
    )
    plot: str | None = setting(
        None, "draw the calibration: a .png, .svg or .pdf file", metavar="FILE"
    )
    mistakes: int | None = setting(
        None, "most confident mistakes to show with --probs [5]", at_least(0)
    )

    def contradictions(self) -> Iterator[str]:
        """Find flags that need probabilities, if ``--probs`` is not given."""
        if self.probs is None:
            for name in ("plot", "mistakes"):
                if getattr(self, name) is not None:
                    yield f"--{name}: needs probabilities; give --probs FILE too"


COMMAND = Command(
    name="analysis",
    summary="Say how good a submission is, and how sure that is.",
    groups=(AnalysisSettings,),
    examples="""\
  # accuracy of the last run, its 95 % interval and the confusion table
  gpt1 analysis submission/ROCStories.tsv

  # with the best validation accuracy of the run
  gpt1 analysis submission/rocstories/ROCStories.tsv --log log/rocstories.jsonl

  # a data set whose test labels are hidden: the validation split
  gpt1 analysis submission/sst2/SST-2.dev.tsv --data_dir glue

  # is the second run really better? (exact McNemar test)
  gpt1 analysis first.tsv second.tsv --data_dir data/demo

  # how far its probabilities can be trusted, as numbers and as a picture
  gpt1 analysis submission/rocstories/ROCStories.tsv --mistakes 10 \\
      --probs submission/rocstories/ROCStories.probs.tsv \\
      --plot out/reliability.png""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _analyse, argv)


def _analyse(values: Values) -> None:
    from gpt1.reports.analysis import N_MISTAKES, analyse
    from gpt1.reports.figures import check_picture
    from gpt1.reports.labelled import find_task, read_labelled

    given = values[AnalysisSettings]
    if given.plot is not None:
        check_picture(given.plot, "--plot")
    task = find_task(given.submission, given.dataset)
    folder = find_data_dir(given.data_dir, COMMAND.program, task)
    text = analyse(
        read_labelled(task, folder, given.submission),
        given.submission,
        given.log,
        given.second_submission,
        probs_path=given.probs,
        plot_path=given.plot,
        n_mistakes=N_MISTAKES if given.mistakes is None else given.mistakes,
    )
    print(text)
    if given.plot is not None:
        note_written(COMMAND.program, given.plot)
