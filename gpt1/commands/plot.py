"""See what a run did and where a model looks: ``python -m gpt1 plot --help``.

Learning curves, the table of best epochs and TensorBoard's files are made from logs alone; the
pictures of attention need a model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.datasets import story_cloze as datasets
from gpt1.inference.pretrained import Pretrained, add_model_arguments, from_arguments
from gpt1.reports import figures
from gpt1.reports.runs import align, table
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.files import check_writable
from gpt1.settings.arguments import Parser, number
from gpt1.training.log_lines import Run, read_runs

if TYPE_CHECKING:
    from gpt1.inference.attention import AttentionShares, EncodedSentences

PROGRAM = "gpt1 plot"
N_STORIES = 100

DESCRIPTION = "See what a run did, from its logs, and where a model looks."
EXAMPLES = {
    "curves": """\
  # learning curves of two runs over one another
  gpt1 plot curves log/seed42.jsonl log/seed43.jsonl --out curves.png""",
    "table": """\
  # the best epochs of all runs
  gpt1 plot table log/*.jsonl""",
    "tensorboard": """\
  # the curves as TensorBoard shows them
  gpt1 plot tensorboard log/rocstories.jsonl --out runs/rocstories""",
    "attention": """\
  # what a fine-tuned model looks at, in all layers and heads
  gpt1 plot attention --params save/rocstories/best_params.jl --out maps.png \\
      --story "Ben lost his kite." --ending "Ben was sad."

  # the same in one head, large enough to read the words
  gpt1 plot attention --params save/rocstories/best_params.jl --out map.png \\
      --story "Ben lost his kite." --ending "Ben was sad." --layer 3 --head 0""",
    "attention-average": """\
  # what a fine-tuned model looks at in many stories
  gpt1 plot attention-average --params save/rocstories/best_params.jl --out split.png""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, 2 for bad input, 1 for other failures."""
    return report_errors(PROGRAM, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)
    return 0


def _note(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


# From logs


def _curves(args: argparse.Namespace) -> None:
    figures.check_picture(args.out)
    runs = read_runs(args.logs)
    _note_missing_updates(runs)
    figures.save(figures.curves(runs, args.smooth), args.out)


def _table(args: argparse.Namespace) -> None:
    print(table(read_runs(args.logs)))


def _tensorboard(args: argparse.Namespace) -> None:
    from gpt1.training.tensorboard import write_run

    (run,) = read_runs([args.log])
    _note_missing_updates([run])
    write_run(run, args.out)


def _note_missing_updates(runs: Sequence[Run]) -> None:
    names = [run.name for run in runs if not run.updates]
    if names:
        _note(f"no log of updates beside the log of {', '.join(names)}: evaluations only")


# Attention


def _attention(args: argparse.Namespace) -> None:
    """The maps of a model on one story with one ending."""
    figures.check_picture(args.out)
    if args.head is not None and args.layer is None:
        raise InputError("--head: needs a layer; give --layer N too")
    pretrained = _load(args)
    _check_number("--layer", args.layer, "layers", pretrained.model.config.n_layer)
    _check_number("--head", args.head, "heads", pretrained.model.config.n_head)

    from gpt1.inference import attention

    ids = _choice(args.story, args.ending, pretrained)
    maps = attention.attention_maps(pretrained.model, ids).cpu().numpy()
    source = figures.shortened(pretrained.source, 40)
    if args.layer is None:
        title = f"Attention of {source}, {len(ids)} tokens"
        delimiter = ids.index(pretrained.special.delimiter)
        figure = figures.map_grid(maps, title, delimiter)
    else:
        heads = range(maps.shape[1]) if args.head is None else [args.head]
        tokens = attention.token_labels(ids, pretrained.encoder, pretrained.special)
        title = f"Attention of {source}, layer {args.layer}"
        figure = figures.layer_maps(maps[args.layer, list(heads)], heads, tokens, title)
    figures.save(figure, args.out)


def _attention_average(args: argparse.Namespace) -> None:
    """How attention splits over the parts of many stories, as a table and a picture."""
    if args.out is not None:
        figures.check_picture(args.out)
        check_writable(Path(args.out).parent)
    from gpt1.inference import attention

    path = Path(args.data_dir or _default_data_dir()) / datasets.TEST_CSV
    if not path.exists():
        raise InputError(f"{path}: no such file; name the test CSV's directory with --data_dir")
    stories = attention.read_story_sentences(path)[: args.n_stories]
    pretrained = _load(args)
    source = figures.shortened(pretrained.source)
    usable = _usable(attention.encode_sentences(stories, pretrained.encoder), pretrained, path)
    split = attention.average_shares(pretrained.model, _with_bar(usable), pretrained.special)
    print(_split_table(split))
    if args.out is not None:
        title = (
            f"Attention of {source}: share of each part, mean of {split.n_stories} stories with "
            "their right endings\n"
            "(even: what the part would get if all tokens seen weighed the same)"
        )
        figures.save(figures.attention_split(split, attention.PARTS, title), args.out)


def _load(args: argparse.Namespace) -> Pretrained:
    """The model; one that was never fine-tuned does not know the special tokens."""
    pretrained = from_arguments(args, PROGRAM)
    if not pretrained.model.config.n_layer:
        raise InputError(f"{pretrained.source}: a model without layers has no attention")
    if not pretrained.has_choice_head:
        _note(
            f"{pretrained.source} is not fine-tuned: the rows of its special tokens are random "
            "numbers; name a fine-tuned model with --params"
        )
    return pretrained


def _check_number(flag: str, value: int | None, what: str, n: int) -> None:
    if value is not None and value >= n:
        raise InputError(f"{flag} {value}: the model has {n} {what}, 0 to {n - 1}")


def _choice(story: str, ending: str, pretrained: Pretrained) -> list[int]:
    """The tokens of one choice, if the model can take them."""
    from gpt1.inference.attention import choice_ids

    story_ids, ending_ids = pretrained.encoder.encode([story, ending], verbose=False)
    for flag, part in (("--story", story_ids), ("--ending", ending_ids)):
        if not part:
            raise InputError(f"{flag}: expected a text with at least one word")
    ids = choice_ids(story_ids, ending_ids, pretrained.special)
    n_ctx = pretrained.model.config.n_ctx
    if len(ids) > n_ctx:
        raise InputError(
            f"--story, --ending: {len(ids)} tokens with the three special ones, but "
            f"{pretrained.source} has positions for {n_ctx}; shorten the story"
        )
    return ids


def _usable(
    stories: Sequence[EncodedSentences | None], pretrained: Pretrained, path: Path
) -> list[EncodedSentences]:
    """The stories that can be averaged over; a note tells of the others."""
    n_ctx = pretrained.model.config.n_ctx
    apart = [story for story in stories if story is not None]
    short = [story for story in apart if len(story.parts()) <= n_ctx]
    reasons = {
        "whose sentences have other tokens apart than together": len(stories) - len(apart),
        f"longer than the model's {n_ctx} positions": len(apart) - len(short),
    }
    why = " and ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
    if not short:
        raise InputError(f"{path}: no story can be used: {why}; name other stories")
    if why:
        _note(f"{path}: of {len(stories)} stories, left out {why}")
    return short


def _with_bar(stories: list[EncodedSentences]) -> Sequence[EncodedSentences]:
    from tqdm import tqdm

    bar: Sequence[EncodedSentences] = tqdm(
        stories, "stories", leave=False, disable=not sys.stderr.isatty()
    )
    return bar


def _split_table(split: AttentionShares) -> str:
    """Both averages in percent, a row a layer, its heads averaged, and a column a part."""
    from gpt1.inference.attention import PARTS

    blocks = []
    for source, shares, even in (
        ("from _classify_", split.classify, split.even_classify),
        ("from the ending", split.ending, split.even_ending),
    ):
        layers = shares.mean(1)
        rows = [(f"layer {i}", layer) for i, layer in enumerate(layers)]
        rows += [("all layers", layers.mean(0)), ("even", even)]
        cells = [[name, *(f"{share * 100:.1f}" for share in row.tolist())] for name, row in rows]
        blocks.append(align([[source, *PARTS], *cells], rules=(0, len(layers))))
    heading = (
        f"Share of attention in percent, mean of {split.n_stories} stories with their right "
        "endings and of all heads.\neven: what a part would get if all tokens seen weighed the same"
    )
    return "\n\n".join([heading, *blocks])


def _default_data_dir() -> Path:
    """``data/``, or the bundled demo while there is no cloze CSV, as in training."""
    data_dir, demo = Path("data"), Path("data/demo")
    if len(datasets.missing_csvs(data_dir)) < 2 or datasets.missing_csvs(demo):
        return data_dir
    _note(f"no ROCStories in {data_dir}/, using the demo in {demo}/")
    return demo


# The command line


def _parser() -> Parser:
    parser = Parser("gpt1 plot", DESCRIPTION, "\n\n".join(EXAMPLES.values()))
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], what: str) -> Parser:
        description = what[0].upper() + what[1:] + "."
        command = commands.add_parser(
            name, help=what, description=description, examples=EXAMPLES[name]
        )
        command.set_defaults(run=run)
        return command

    _curves_arguments(add("curves", _curves, "draw learning curves from logs"))
    _logs_argument(add("table", _table, "print the best epoch of each run"))
    _tensorboard_arguments(
        add("tensorboard", _tensorboard, "write a run's figures for TensorBoard")
    )
    _attention_arguments(add("attention", _attention, "draw attention maps of one story"))
    _average_arguments(
        add(
            "attention-average",
            _attention_average,
            "average over stories how attention splits over sentences, special tokens and ending",
        )
    )
    return parser


def _logs_argument(parser: Parser) -> None:
    parser.add_argument(
        "logs",
        metavar="LOG",
        nargs="+",
        help="log/<desc>.jsonl of a run; log/<desc>.updates.jsonl is read from beside it",
    )


def _picture_argument(parser: Parser, *, required: bool) -> None:
    what = "the picture: .png, .svg or .pdf" + ("" if required else " [none]")
    parser.add_argument("--out", metavar="FILE", required=required, help=what)


def _curves_arguments(parser: Parser) -> None:
    _logs_argument(parser)
    _picture_argument(parser, required=True)
    what = "updates that a thick line averages [a twentieth of the longest run]"
    parser.add_argument("--smooth", metavar="N", type=number(int, 1), help=what)


def _tensorboard_arguments(parser: Parser) -> None:
    parser.add_argument("log", metavar="LOG", help="log/<desc>.jsonl of a run")
    what = "directory of the event files; what TensorBoard shows of it is replaced"
    parser.add_argument("--out", metavar="DIR", required=True, help=what)


def _attention_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--story", metavar="TEXT", required=True, help="the story")
    add("--ending", metavar="TEXT", required=True, help="how it ends")
    add("--layer", metavar="N", type=number(int, 0), help="one layer, large, with words [all]")
    add("--head", metavar="N", type=number(int, 0), help="one head of --layer [all]")
    _picture_argument(parser, required=True)
    add_model_arguments(parser)


def _average_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--data_dir", metavar="DIR", help="where the ROCStories test CSV is [data/, or data/demo]")
    what = f"its first N stories [{N_STORIES}]"
    add("--n_stories", metavar="N", type=number(int, 1), default=N_STORIES, help=what)
    _picture_argument(parser, required=False)
    add_model_arguments(parser)
