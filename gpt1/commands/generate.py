"""Let a model continue text: ``python -m gpt1 generate --prompt "..."``.

GPT-1 has no token that ends a text: a continuation has as many tokens as it was asked for, and
prompt and continuation together have at most ``n_ctx``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt1.inference.pretrained import add_model_arguments, from_arguments
from gpt1.runtime.errors import InputError, join_problems, report_errors
from gpt1.runtime.files import read_text
from gpt1.settings.arguments import Parser, number

if TYPE_CHECKING:
    from gpt1.inference.decoding import Decoder
    from gpt1.inference.pretrained import Pretrained

PROGRAM = "gpt1 generate"
PRECISIONS = ("fp32", "bf16")
BATCH_SIZE = 16
MAX_BATCH_SIZE = 256
INFINITY = float("inf")


def _option(default: Any, help: str, low: float, high: float = INFINITY) -> Any:
    return field(default=default, metadata={"help": help, "range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to choose tokens; the flags of the same names.

    Tokens are sampled if one of ``temperature``, ``top_k`` and ``top_p`` is given, and chosen by
    beam search if ``num_beams`` is at least 2. Otherwise each is the likeliest: greedy.

    Raises:
        InputError: values out of range, or that exclude one another; all in one message.
    """

    max_new_tokens: int = _option(40, "tokens to write", 1)
    temperature: float | None = _option(
        None, "sample; below 1 likely tokens more often, 0: the likeliest always", 0
    )
    top_k: int | None = _option(None, "sample from the N likeliest tokens", 1)
    top_p: float | None = _option(
        None, "sample from the fewest tokens whose probabilities reach X", 0, 1
    )
    repetition_penalty: float = _option(
        1.0, "above 1: tokens of the prompt and of what was written become less likely", 0.01, 100
    )
    num_beams: int = _option(1, "beam search that keeps the N likeliest beginnings", 1, 100)
    length_penalty: float = _option(
        1.0,
        "a beam's score is log-probability / tokens ** X; as all are equally long, X changes "
        "the scores in --json, not the texts",
        -10,
        10,
    )
    num_samples: int = _option(1, "continuations of each prompt", 1)
    seed: int = _option(42, "seed of sampling", 0)

    def __post_init__(self) -> None:
        problems = []
        for item in fields(self):
            value, (low, high) = getattr(self, item.name), item.metadata["range"]
            if value is not None and not (low <= value <= high and value != INFINITY):
                limit = f"at least {low:g}" if high == INFINITY else f"from {low:g} to {high:g}"
                problems.append(f"--{item.name} {value}: must be {limit}")
        problems += [] if problems else self._contradictions()
        if problems:
            raise InputError(join_problems(problems))

    @property
    def sampled(self) -> bool:
        """Whether chance has a part in the choice."""
        given = (self.temperature, self.top_k, self.top_p) != (None, None, None)
        return given and self.temperature != 0

    def _contradictions(self) -> Iterator[str]:
        n, beams = self.num_samples, self.num_beams
        if beams > 1:
            for name in ("temperature", "top_k", "top_p"):
                if getattr(self, name) is not None:
                    yield f"--{name}: beam search does not sample; leave it or --num_beams out"
            if n > beams:
                yield f"--num_samples {n}: {beams} beams end in {beams} texts; raise --num_beams"
        else:
            if self.length_penalty != 1:
                yield "--length_penalty: scores beams; leave it out or give --num_beams"
            if n > 1 and not self.sampled:
                yield f"--num_samples {n}: greedy texts are all the same; add --temperature 1"


class Continuation(NamedTuple):
    """What a model wrote after a prompt.

    Attributes:
        ids: its tokens.
        text: the same as text, without the prompt.
        score: of a beam, log-probability in nats / tokens ** length_penalty; else None.
    """

    ids: list[int]
    text: str
    score: float | None


def generate(
    pretrained: Pretrained,
    prompts: Sequence[str],
    options: Options | None = None,
    *,
    decoder: Decoder | None = None,
    batch_size: int = BATCH_SIZE,
    start_token: bool = False,
) -> list[list[Continuation]]:
    """Continue texts.

    What becomes of a prompt depends on its place in the list if it is sampled, not on the other
    prompts nor on ``batch_size`` (but for rounding, where two tokens are all but equally likely).

    Args:
        pretrained: the model; see :func:`gpt1.inference.pretrained.load_pretrained`.
        prompts: the texts.
        options: how to choose tokens [greedy, 40 tokens].
        decoder: of the same model, made once for many calls, or for bfloat16 [made here].
        batch_size: continuations at a time; bounds the memory.
        start_token: put ``_start_`` before each prompt, as fine-tuning does.

    Returns:
        ``num_samples`` continuations of each prompt; beams come best first.

    Raises:
        InputError: a prompt has no tokens, or not enough room in ``n_ctx``; names its number.
    """
    options = options or Options()
    places = [f"prompt {i}" for i in range(1, len(prompts) + 1)]
    ids = encode_prompts(pretrained, prompts, places, options, start_token=start_token)
    found = continuations(pretrained, ids, options, decoder=decoder, batch_size=batch_size)
    return list(found)


def stream(
    pretrained: Pretrained,
    prompt: str,
    options: Options | None = None,
    *,
    decoder: Decoder | None = None,
    start_token: bool = False,
) -> Iterator[str]:
    """The first continuation that :func:`generate` gives of a prompt, token by token.

    Prompt and pieces, put together, are the whole text: a piece that begins a word begins with
    a space.

    Args:
        pretrained, options, decoder, start_token: see :func:`generate`.
        prompt: the text.

    Raises:
        InputError: see :func:`generate`.
        ValueError: beam search has no text before its end.
    """
    options = options or Options()
    if options.num_beams > 1:
        raise ValueError(f"{options.num_beams} beams: only one text can be streamed")
    (ids,) = encode_prompts(pretrained, [prompt], ["the prompt"], options, start_token=start_token)
    return _pieces(pretrained, ids, options, decoder or _decoder(pretrained))


def _pieces(
    pretrained: Pretrained, prompt: Sequence[int], options: Options, decoder: Decoder
) -> Iterator[str]:
    """What each token adds to the text."""
    ids = list(prompt)
    text = _readable(pretrained, ids)
    for tokens in _one_by_one(decoder, [prompt], options, first_prompt=0, samples=range(1)):
        ids += tokens
        longer = _readable(pretrained, ids)
        yield longer[len(text) :]
        text = longer


def encode_prompts(
    pretrained: Pretrained,
    texts: Sequence[str],
    places: Sequence[str],
    options: Options,
    *,
    start_token: bool = False,
) -> list[list[int]]:
    """The token ids of prompts.

    Args:
        pretrained: the model.
        texts: the prompts.
        places: where each comes from, for messages.
        options: how many tokens must have room after each.
        start_token: put ``_start_`` before each.

    Raises:
        InputError: a prompt has no tokens, or is too long.
    """
    start = [pretrained.special.start] if start_token else []
    n_ctx, n_new = pretrained.model.config.n_ctx, options.max_new_tokens
    prompts = [start + ids for ids in pretrained.encoder.encode(texts)]
    for place, prompt in zip(places, prompts, strict=True):
        n = len(prompt)
        if not n:
            raise InputError(f"{place}: has no tokens; write a word at least")
        if n + n_new > n_ctx:
            remedy = f"give --max_new_tokens {n_ctx - n} or less, or " if n < n_ctx else ""
            raise InputError(
                f"{place}: its tokens ({n}) and the new ones ({n_new}) are more than the {n_ctx} "
                f"positions (n_ctx) of {pretrained.source}; {remedy}shorten the prompt"
            )
    return prompts


def continuations(
    pretrained: Pretrained,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    decoder: Decoder | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[Continuation]]:
    """As :func:`generate`, from token ids; one item a prompt, as soon as its batch is done."""
    decoder = decoder or _decoder(pretrained)
    decode = pretrained.encoder.decode
    n_texts = options.num_samples
    size = max(1, batch_size // max(n_texts, options.num_beams))  # prompts in a batch
    for begin in range(0, len(prompts), size):
        part = prompts[begin : begin + size]
        if options.num_beams > 1:
            for beams in _beams(decoder, part, options):
                yield [Continuation(ids, decode(ids), score) for ids, score in beams[:n_texts]]
        else:
            for texts in _lines(decoder, part, options, begin, batch_size):
                yield [Continuation(ids, decode(ids), None) for ids in texts]


def _decoder(pretrained: Pretrained) -> Decoder:
    from gpt1.inference.decoding import Decoder

    return Decoder(pretrained.model)


def _beams(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: Options
) -> Iterator[list[tuple[list[int], float]]]:
    """Tokens and score of all beams of each prompt, best first."""
    from gpt1.inference.search import beam_search

    n_new = options.max_new_tokens
    penalty = options.repetition_penalty
    found = beam_search(
        decoder, prompts, n_new, num_beams=options.num_beams, repetition_penalty=penalty
    )
    scores = found.log_probs / n_new**options.length_penalty
    for tokens, score in zip(found.tokens.tolist(), scores.tolist(), strict=True):
        yield list(zip(tokens, score, strict=True))


def _lines(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: Options,
    first_prompt: int,
    batch_size: int,
) -> list[list[list[int]]]:
    """Tokens of all samples of each prompt; more than fit in a batch come from several."""
    found: list[list[list[int]]] = [[] for _ in prompts]
    step = min(options.num_samples, batch_size)
    for first in range(0, options.num_samples, step):
        samples = range(first, min(first + step, options.num_samples))
        steps = _one_by_one(decoder, prompts, options, first_prompt=first_prompt, samples=samples)
        rows = [list(row) for row in zip(*steps, strict=True)]
        for i, lines in enumerate(found):
            lines += rows[i * len(samples) : (i + 1) * len(samples)]
    return found


def _one_by_one(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    first_prompt: int,
    samples: range,
) -> Iterator[list[int]]:
    """The tokens of each step, one for each sample of each prompt."""
    from gpt1.inference.search import draws, one_by_one

    n_new = options.max_new_tokens
    numbers = range(first_prompt, first_prompt + len(prompts))
    steps = one_by_one(
        decoder,
        prompts,
        n_new,
        u=draws(options.seed, numbers, samples, n_new) if options.sampled else None,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )
    return (tokens.tolist() for tokens in steps)


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 if something handed over is wrong."""
    return report_errors(PROGRAM, lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    options = Options(**{item.name: getattr(args, item.name) for item in fields(Options)})
    places, texts = _read_prompts(args)
    streamed = _is_streamed(args, options, len(texts))
    pretrained = from_arguments(args, PROGRAM)
    prompts = encode_prompts(pretrained, texts, places, options, start_token=args.start_token)

    from gpt1.inference.decoding import Decoder
    from gpt1.runtime.device import keep_freed_memory

    keep_freed_memory()
    decoder = Decoder(pretrained.model, args.precision)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors="replace")  # not every terminal has all of a vocabulary
    if streamed:
        _print_stream(pretrained, prompts[0], options, decoder)
        return 0
    found = continuations(pretrained, prompts, options, decoder=decoder, batch_size=args.batch_size)
    results = zip(texts, prompts, _with_bar(found, len(prompts)), strict=True)
    for index, (text, prompt, each) in enumerate(results):
        if args.json:
            _print_json(text, each)
        else:
            _print_texts(pretrained, prompt, each, after_others=index > 0)
    return 0


def _read_prompts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Where each prompt comes from, and the prompts."""
    if (args.prompt is None) == (args.prompt_file is None):
        raise InputError(
            '--prompt: give the text to continue, such as --prompt "once upon a time", or a file '
            "with one prompt a line by --prompt_file; not both"
        )
    if args.prompt is not None:
        texts = args.prompt
        places = [f"--prompt {text[:40]!r}" for text in texts]
    else:
        file = args.prompt_file
        whole = _read_stdin() if file == "-" else read_text(file, "the file of prompts")
        texts = [line.removesuffix("\r") for line in whole.removesuffix("\n").split("\n")]
        name = "standard input" if file == "-" else file
        places = [f"{name}, line {number}" for number in range(1, len(texts) + 1)]
    for place, text in zip(places, texts, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{place}: is not UTF-8 text; write it in UTF-8")
    return places, texts


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: is not UTF-8 text: {error.reason}") from error


def _is_streamed(args: argparse.Namespace, options: Options, n_prompts: int) -> bool:
    """Whether text appears token by token: on a terminal where that can be."""
    obstacles = [
        name
        for name, is_there in (
            ("several prompts", n_prompts > 1),
            ("--num_beams", options.num_beams > 1),
            ("--num_samples", options.num_samples > 1),
            ("--json", args.json),
        )
        if is_there
    ]
    if args.stream and obstacles:
        raise InputError(f"--stream: shows one text as it comes; not with {', '.join(obstacles)}")
    return args.stream or (sys.stdout.isatty() and not obstacles)


def _print_stream(
    pretrained: Pretrained, prompt: list[int], options: Options, decoder: Decoder
) -> None:
    print(_readable(pretrained, prompt), end="", flush=True)
    for piece in _pieces(pretrained, prompt, options, decoder):
        print(piece, end="", flush=True)
    print()


def _print_json(prompt: str, each: list[Continuation]) -> None:
    for sample, one in enumerate(each):
        print(json.dumps({"prompt": prompt, "sample": sample, **one._asdict()}), flush=True)


def _print_texts(
    pretrained: Pretrained, prompt: list[int], each: list[Continuation], *, after_others: bool
) -> None:
    """Prompt and continuation together; an empty line between texts."""
    for one in each:
        print("\n" * after_others + _readable(pretrained, prompt + one.ids), flush=True)
        after_others = True


def _readable(pretrained: Pretrained, ids: Sequence[int]) -> str:
    """The text of ids, special tokens left out."""
    n_vocab = pretrained.model.config.n_vocab
    return pretrained.encoder.decode(i for i in ids if i < n_vocab)


def _with_bar(found: Iterator[list[Continuation]], n_prompts: int) -> Iterator[list[Continuation]]:
    """A progress bar on a terminal, unless the texts themselves appear there."""
    from tqdm import tqdm

    hidden = True if sys.stdout.isatty() or n_prompts == 1 else None
    return iter(tqdm(found, "generate", n_prompts, disable=hidden))


def _parser() -> Parser:
    parser = Parser(
        "gpt1 generate",
        "Let a model continue text. Greedy unless a flag of sampling or --num_beams is given.",
        """\
  # the likeliest continuation, on the terminal as it comes
  python -m gpt1 generate --prompt "Ada made a kite"

  # three samples of each of two prompts
  python -m gpt1 generate --prompt "Ada made a kite" --prompt "Ben was afraid" \\
      --temperature 0.8 --top_p 0.9 --num_samples 3

  # beam search on each line of a file, as JSON lines
  python -m gpt1 generate --prompt_file prompts.txt --num_beams 4 --json""",
    )
    add = parser.add_argument
    add(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="the text to continue; give it again for more prompts",
    )
    add("--prompt_file", metavar="FILE", help="one prompt a line instead; -: standard input")
    for item in fields(Options):
        _add_option(parser, item)
    add("--stream", action="store_true", help="show each token at once [on a terminal, one text]")
    add(
        "--json",
        action="store_true",
        help="one JSON object a text: prompt, sample, ids, text, score",
    )
    add(
        "--start_token", action="store_true", help="put _start_ before prompts, as fine-tuning does"
    )
    add_model_arguments(parser)
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic: fp32 or bf16 [fp32]")
    add(
        "--batch_size",
        metavar="N",
        type=number(int, 1, MAX_BATCH_SIZE),
        default=BATCH_SIZE,
        help=f"texts or beams at a time; bounds the memory [{BATCH_SIZE}]",
    )
    return parser


def _add_option(parser: argparse.ArgumentParser, item: Field[Any]) -> None:
    """The flag of a field of :class:`Options`."""
    is_int = str(item.type).startswith("int")
    default = "" if item.default is None else f" [{item.default}]"
    parser.add_argument(
        f"--{item.name}",
        metavar="N" if is_int else "X",
        type=number(int if is_int else float, *item.metadata["range"]),
        default=item.default,
        help=item.metadata["help"] + default,
    )
