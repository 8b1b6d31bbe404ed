"""Which ending a fine-tuned model gives your own stories: ``python -m gpt1 score STORIES.csv``.

The stories are laid out as in training and go through the same prediction, so that the test CSV
of a run gets exactly the choices of its submission.

Axes: n stories, C choices (2), T positions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt1.datasets import story_cloze as datasets
from gpt1.inference.pretrained import add_model_arguments, from_arguments
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.files import atomic_write, check_writable, read_text
from gpt1.settings.arguments import Parser, number
from gpt1.settings.groups import LEAST_N_CTX
from gpt1.text_utils.special import N_SPECIAL
from gpt1.training import submissions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gpt1.batches.arrays import ChoiceArrays
    from gpt1.inference.pretrained import Pretrained

PROGRAM = "gpt1 score"
N_BATCH = 32  # stories at a time, as training evaluates by default
N_CTX = 512  # the default of training's flag


class _Form(NamedTuple):
    """Columns of a CSV, by their names in its header; label and id may be left out."""

    sentences: tuple[str, ...]
    endings: tuple[str, str]
    label: str
    optional: tuple[str, ...]

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that must be there, each with text in every row."""
        return (*self.sentences, *self.endings)


CLOZE = _Form(
    sentences=datasets.COLUMNS[1:5],
    endings=(datasets.COLUMNS[5], datasets.COLUMNS[6]),
    label=datasets.COLUMNS[7],
    optional=(datasets.COLUMNS[0], datasets.COLUMNS[7]),
)
SIMPLE = _Form(
    sentences=("story",), endings=("ending1", "ending2"), label="label", optional=("label",)
)


class Stories(NamedTuple):
    """Stories with two endings each, and their labels if they are known.

    The fields are those of :class:`gpt1.datasets.story_cloze.Cloze`.
    """

    stories: list[str]
    endings1: list[str]
    endings2: list[str]
    labels: list[int] | None


# Reading


def read_stories(path: str | Path) -> Stories:
    """Read a CSV of stories as strictly as :func:`gpt1.datasets.story_cloze.read_cloze`.

    The header says which of two forms it has, in any order of columns: the cloze form, in which
    ``InputStoryid`` and ``AnswerRightEnding`` may be left out, or ``story,ending1,ending2`` and
    perhaps ``label``. Labels are 1 or 2, the right ending's number, in all rows or in none.

    Raises:
        InputError: the file cannot be read or breaks a rule; names the line, counted from 1.
    """
    rows = datasets.csv_rows(path, read_text(path, "the CSV of stories"))
    line, header = next(rows, (1, []))
    form = _form(f"{path}, line {line}", header)
    result, answers = Stories([], [], [], None), []
    for line, cells in rows:
        where = f"{path}, line {line}"
        row = _named(where, header, cells)
        _check_filled(where, form, row)
        result.stories.append(" ".join(row[name] for name in form.sentences))
        result.endings1.append(row[form.endings[0]])
        result.endings2.append(row[form.endings[1]])
        answers.append((line, row.get(form.label, "").strip()))
    if not answers:
        raise InputError(
            f"{path}, line 2: the file ends after its header, but at least one story was "
            "expected; add stories."
        )
    return result._replace(labels=_labels(path, form.label, answers))


def _form(where: str, header: list[str]) -> _Form:
    """The form that a header has, or an :class:`InputError` on what is wrong with it."""
    remedy = (
        f"make the first line {','.join(SIMPLE.required)}, with {SIMPLE.label} after them if the "
        f"answers are known, or {','.join(datasets.COLUMNS)}"
    )
    form = next((form for form in (CLOZE, SIMPLE) if set(form.required) & set(header)), None)
    if form is None:
        problem = "there is no header row" if header else "the file is empty or begins blank"
        raise InputError(f"{where}: {problem}; {remedy}")
    twice = [name for name in header if header.count(name) > 1]
    missing = [name for name in form.required if name not in header]
    unknown = [name for name in header if name not in form.required + form.optional]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r:.40} is there twice; leave one out.")
    if missing:
        raise InputError(f"{where}: the header lacks {', '.join(missing)}; {remedy}")
    if unknown:
        raise InputError(f"{where}: there is no column {unknown[0]!r:.40}; {remedy}")
    return form


def _named(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells of a row by their column."""
    if not cells:
        raise InputError(f"{where}: the line is blank, but a story was expected; delete the line.")
    if len(cells) != len(header):
        raise InputError(
            f"{where}: the row has {len(cells)} cells, but {len(header)} were expected as in the "
            "header; put cells with commas in double quotes and add what is missing."
        )
    return dict(zip(header, cells, strict=True))


def _check_filled(where: str, form: _Form, row: dict[str, str]) -> None:
    for name in form.required:
        if not row[name].strip():
            raise InputError(
                f"{where}: {name} is empty, but text was expected; fill the cell or delete the row."
            )


def _labels(path: str | Path, column: str, answers: list[tuple[int, str]]) -> list[int] | None:
    """Labels 0 or 1 from answers 1 or 2, or None if no line has one."""
    first_line, first = answers[0]
    for line, answer in answers:
        if answer not in ("", "1", "2"):
            raise InputError(
                f"{path}, line {line}: {column} is {answer[:20]!r}, but 1 or 2 was expected; write "
                "the number of the right ending, or leave the column empty throughout."
            )
        if bool(answer) != bool(first):
            empty, filled = (line, first_line) if first else (first_line, line)
            raise InputError(
                f"{path}, line {empty}: {column} is empty, but line {filled} has an answer; give "
                "all answers or none."
            )
    return [int(answer) - 1 for _, answer in answers] if first else None


# Scoring


def score_stories(
    pretrained: Pretrained,
    stories: Sequence[str],
    endings1: Sequence[str],
    endings2: Sequence[str],
    n_batch: int = N_BATCH,
    *,
    n_ctx: int = N_CTX,
    precision: str = "fp32",
) -> npt.NDArray[np.float64]:
    """The probability of either ending for each story, [n, 2], as a fine-tuned model sees it.

    Args:
        pretrained: a model with a choice head.
        stories, endings1, endings2: n texts each.
        n_batch: stories at a time.
        n_ctx: the ``--n_ctx`` of training; see :func:`encode_stories`.
        precision: as ``--precision`` of training.

    Raises:
        InputError: the model has no choice head, or is too short for a story.
        ValueError: the three are not equally long.
    """
    _check_choice_head(pretrained)
    arrays, _ = encode_stories(pretrained, stories, endings1, endings2, n_ctx=n_ctx)
    logits = _logits(pretrained, arrays, n_batch, precision)
    return submissions.choices_of(logits).probs


def encode_stories(
    pretrained: Pretrained,
    stories: Sequence[str],
    endings1: Sequence[str],
    endings2: Sequence[str],
    *,
    n_ctx: int = N_CTX,
    verbose: bool = False,
) -> tuple[ChoiceArrays, int]:
    """Lay out stories as in training, cut to what the model has position rows for.

    A story and its endings are each cut to what training leaves of them under ``n_ctx``. If a
    choice is still longer than the rows of the model (the longest choice of its training data),
    the three parts are cut once more, by the same rule under the model's own length.

    Args:
        pretrained: the model and its encoder.
        stories, endings1, endings2: n texts each.
        n_ctx: the ``--n_ctx`` of training.
        verbose: whether a progress bar may be shown.

    Returns:
        The arrays without labels, and of how many stories something was cut off.

    Raises:
        InputError: the model has too few position rows to cut a story to.
        ValueError: the three are not equally long.
    """
    from gpt1.batches.arrays import EncodedCloze, max_part_length, transform_roc

    parts = [
        pretrained.encoder.encode(texts, verbose=verbose) for texts in (stories, endings1, endings2)
    ]
    keep, rows = max_part_length(n_ctx), pretrained.model.config.n_ctx
    encoded, longest, n_cut = EncodedCloze([], [], [], None), N_SPECIAL, 0
    for index, whole in enumerate(zip(*parts, strict=True)):
        kept = [ids[:keep] for ids in whole]
        if _length(kept) > rows:
            kept = [ids[: _room(pretrained, index)] for ids in kept]
        n_cut += kept != list(whole)
        longest = max(longest, _length(kept))
        for column, ids in zip(encoded[:3], kept, strict=True):
            column.append(ids)
    arrays = transform_roc(encoded, pretrained.special, n_ctx=longest, max_len=keep)
    return arrays, n_cut


def _length(parts: Sequence[Sequence[int]]) -> int:
    """Tokens of the longer choice of a story and two endings."""
    story, one, two = parts
    return len(story) + max(len(one), len(two)) + N_SPECIAL


def _room(pretrained: Pretrained, index: int) -> int:
    """Tokens to leave of each part of story ``index``, which is too long for the model."""
    from gpt1.batches.arrays import max_part_length

    rows = pretrained.model.config.n_ctx
    room = max_part_length(rows)
    if room < 1:
        raise InputError(
            f"story {index} is too long: the model in {pretrained.source} has {rows} position rows "
            "only, too few to cut a story to; leave it out, or use a model trained on longer ones"
        )
    return room


def _check_choice_head(pretrained: Pretrained) -> None:
    if not pretrained.has_choice_head:
        raise InputError(
            f"{pretrained.source} was never trained to choose: a fine-tuned model is needed: "
            "--params FILE, such as save/rocstories/best_params.jl"
        )


def _logits(
    pretrained: Pretrained, arrays: ChoiceArrays, n_batch: int, precision: str
) -> npt.NDArray[np.float32]:
    """Choice logits, [n, C]."""
    from gpt1.inference.prediction import predict_logits
    from gpt1.runtime.device import check_precision, set_matmul_precision
    from gpt1.runtime.ranks import Ranks

    ranks = Ranks(rank=0, world=1, device=pretrained.model.we.device)
    check_precision(precision, ranks.device)
    set_matmul_precision(precision)
    return predict_logits(pretrained.model, arrays, ranks, n_batch=n_batch, precision=precision)


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 if something of the user's is wrong."""
    return report_errors(PROGRAM, lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    texts = read_stories(args.stories)
    if args.out is not None:
        _check_out(args)
    pretrained = from_arguments(args, PROGRAM)
    _check_choice_head(pretrained)
    arrays, n_cut = encode_stories(pretrained, *texts[:3], n_ctx=args.n_ctx, verbose=True)
    if n_cut:
        _say(
            f"{n_cut} of {arrays.n_stories} stories are longer than the model was trained on "
            f"(--n_ctx {args.n_ctx}, {pretrained.model.config.n_ctx} position rows): "
            "the ends of their parts were cut off"
        )
    choices = submissions.choices_of(_logits(pretrained, arrays, args.n_batch, args.precision))
    if args.out is None:
        sys.stdout.write(submissions.probs_table(choices))
        sys.stdout.flush()
    else:
        with atomic_write(args.out, "w") as file:
            file.write(submissions.probs_table(choices))
    if texts.labels is not None:
        from gpt1.reports.analysis import accuracy_line

        _say(accuracy_line("accuracy", choices.predictions.tolist(), texts.labels))
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """See before any work whether the result can be written, and over nothing that is read."""
    out = Path(args.out)
    for name in (args.stories, args.params):
        if name is not None and out.resolve() == Path(name).resolve():
            raise InputError(f"--out {out}: would overwrite what is read; name another file")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a directory; name a file in it")
    check_writable(out.parent)


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(
        "gpt1 score",
        "Choose between two endings of your own stories with a fine-tuned model.",
        """\
  # a CSV with the columns story,ending1,ending2: choices and probabilities to the terminal
  python -m gpt1 score stories.csv --params save/rocstories/best_params.jl

  # into a file, which scripts/analysis.py takes as --probs
  python -m gpt1 score stories.csv --params save/rocstories/best_params.jl --out scores.tsv""",
    )
    add = parser.add_argument
    add(
        "stories",
        metavar="STORIES.csv",
        help="columns story,ending1,ending2 and perhaps label (1 or 2), or those of the cloze CSVs",
    )
    add("--out", metavar="FILE", help="where index, prediction and probabilities go [stdout]")
    add_model_arguments(parser)
    add(
        "--n_ctx",
        metavar="N",
        type=number(int, LEAST_N_CTX),
        default=N_CTX,
        help=f"the --n_ctx of the model's training, by which long parts are cut [{N_CTX}]",
    )
    add(
        "--n_batch",
        metavar="N",
        type=number(int, 1),
        default=N_BATCH,
        help=f"stories at a time [{N_BATCH}]",
    )
    add(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="fp32",
        help="arithmetic: fp32, tf32 (CUDA) or bf16 [fp32]",
    )
    return parser
