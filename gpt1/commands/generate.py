"""Continue texts with a model: ``gpt1 generate --prompt "..."``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt1.commands.running import note, open_model, run_command
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import between, setting
from gpt1.settings.groups import GENERATION_BATCH_SIZE, OpenSettings, SamplingSettings
from gpt1.settings.words import shorten

if TYPE_CHECKING:
    from gpt1.inference.generation import Continuation
    from gpt1.inference.opened import OpenedModel


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Prompts and output."""

    prompt: tuple[str, ...] = setting((), "the text to continue; give it again for more prompts")
    prompt_file: str | None = setting(
        None, "one prompt per line instead; -: standard input", metavar="FILE"
    )
    stream: bool = setting(False, "show each token at once [on a terminal, one text]")
    json: bool = setting(False, "one JSON object per text: prompt, sample, ids, text, score")
    start_token: bool = setting(False, "put _start_ before prompts, as fine-tuning does")
    precision: str = setting("fp32", "arithmetic", choices=("fp32", "bf16"))
    batch_size: int = setting(
        GENERATION_BATCH_SIZE, "texts or beams at a time; bounds the memory", between(1, 256)
    )

    def contradictions(self) -> Iterator[str]:
        """Find out whether prompts are missing, or given both by flags and in a file."""
        if bool(self.prompt) == (self.prompt_file is not None):
            yield (
                '--prompt: give the text to continue, such as --prompt "once upon a time", or a '
                "file with one prompt per line by --prompt_file; not both"
            )


COMMAND = Command(
    name="generate",
    summary="Let a model continue text. Greedy unless a flag of sampling or --num_beams is given.",
    groups=(PromptSettings, SamplingSettings, OpenSettings),
    examples="""\
  # the likeliest continuation, on the terminal as it comes
  gpt1 generate --prompt "Ada made a kite"

  # three samples of each of two prompts
  gpt1 generate --prompt "Ada made a kite" --prompt "Ben was afraid" \\
      --temperature 0.8 --top_p 0.9 --num_samples 3

  # beam search on each line of a file, as JSON lines
  gpt1 generate --prompt_file prompts.txt --num_beams 4 --json""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag, a file or a prompt is wrong."""
    return run_command(COMMAND, _generate, argv)


def _generate(values: Values) -> None:
    given, sampling = values[PromptSettings], values[SamplingSettings]
    places, texts = _read_prompts(given)
    is_streamed = _is_streamed(given, sampling, len(texts))
    model = open_model(values[OpenSettings], COMMAND.program)

    from gpt1.inference import generation
    from gpt1.inference.decoding import Decoder
    from gpt1.runtime.device import keep_freed_memory

    prompts = generation.encode_prompts(
        model, texts, places, sampling, start_token=given.start_token
    )
    _warn_of_unknown(model, places, texts)
    keep_freed_memory()
    decoder = Decoder(model.module, given.precision)
    if hasattr(sys.stdout, "reconfigure"):  # The stdout of a notebook has no such method.
        sys.stdout.reconfigure(errors="replace")  # Not every terminal can show all characters.
    if is_streamed:
        _print_stream(texts[0], generation.stream_ids(model, prompts[0], sampling, decoder))
        return
    found = generation.continuations(
        model, prompts, sampling, decoder=decoder, batch_size=given.batch_size
    )
    results = zip(texts, _with_bar(found, len(prompts)), strict=True)
    for index, (text, each) in enumerate(results):
        if given.json:
            _print_json(text, each)
        else:
            _print_texts(text, each, after_others=index > 0)


def _read_prompts(given: PromptSettings) -> tuple[list[str], list[str]]:
    """Return where each prompt comes from, and the prompts; blank lines of a file are left out."""
    if given.prompt_file is None:
        texts = list(given.prompt)
        places = [f"--prompt {text[:40]!r}" for text in texts]
    else:
        file = given.prompt_file
        whole = _read_stdin() if file == "-" else read_text(file, "the file of prompts")
        texts = [line.removesuffix("\r") for line in whole.removesuffix("\n").split("\n")]
        name = "standard input" if file == "-" else file
        places = [f"{name}, line {number}" for number, text in enumerate(texts, 1) if text.strip()]
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise InputError(f"{name}: has no prompts; write one on each line")
    for place, text in zip(places, texts, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{place}: is not UTF-8 text; write it in UTF-8")
    return places, texts


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: is not UTF-8 text: {error.reason}") from error


def _is_streamed(given: PromptSettings, sampling: SamplingSettings, n_prompts: int) -> bool:
    """Return whether to show text token by token: if asked to, or by default on a terminal."""
    reasons = {
        "several prompts": n_prompts > 1,
        "--num_beams": sampling.num_beams > 1,
        "--num_samples": sampling.num_samples > 1,
        "--json": given.json,
    }
    obstacles = [name for name, is_there in reasons.items() if is_there]
    if given.stream and obstacles:
        raise InputError(f"--stream: shows one text as it comes; not with {', '.join(obstacles)}")
    return given.stream or (sys.stdout.isatty() and not obstacles)


def _warn_of_unknown(model: OpenedModel, places: Sequence[str], texts: Sequence[str]) -> None:
    """Say how many characters of each prompt the model cannot read."""
    for place, text in zip(places, texts, strict=True):
        unknown = model.text_encoder.unknown_characters(text)
        if unknown:
            shown = " ".join(dict.fromkeys(unknown))
            count = f"{len(unknown)} character{'s' * (len(unknown) > 1)}"
            note(
                COMMAND.program,
                f"{place}: the model's vocabulary lacks {count}, which it reads as <unk>: "
                f"{shorten(shown, 40)}",
            )


def _print_stream(prompt: str, parts: Iterator[str]) -> None:
    """Print the prompt as the user wrote it, then each part as it comes."""
    print(prompt, end="", flush=True)
    is_first = True
    for part in parts:
        print(_after(prompt, part) if is_first else part, end="", flush=True)
        is_first = is_first and not part
    print()


def _after(prompt: str, text: str) -> str:
    """Return a text as it follows a prompt: after a space, unless there is white space already."""
    text = text.lstrip(" ")
    is_apart = prompt[-1:].isspace() or text[:1].isspace()
    return text if is_apart or not text else f" {text}"


def _print_json(prompt: str, each: list[Continuation]) -> None:
    for sample, one in enumerate(each):
        print(json.dumps({"prompt": prompt, "sample": sample, **one._asdict()}), flush=True)


def _print_texts(prompt: str, each: list[Continuation], *, after_others: bool) -> None:
    """Print prompt and continuation together, with an empty line between texts."""
    for one in each:
        print("\n" * after_others + prompt + _after(prompt, one.text), flush=True)
        after_others = True


def _with_bar(found: Iterator[list[Continuation]], n_prompts: int) -> Iterator[list[Continuation]]:
    """Show a progress bar on a terminal, unless the texts themselves appear there."""
    from tqdm import tqdm

    is_hidden = True if sys.stdout.isatty() or n_prompts == 1 else None
    return iter(tqdm(found, "generate", n_prompts, disable=is_hidden))
