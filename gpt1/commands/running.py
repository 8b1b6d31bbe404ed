"""Functions that the commands share: run a command, open a model, find the data, print notes."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.runtime.demo import is_demo_dir
from gpt1.runtime.errors import InputError, Stopped, report_errors
from gpt1.runtime.stopping import StopRequests, end_with_parent
from gpt1.settings.command import Command, Values, as_flag
from gpt1.settings.groups import OpenSettings
from gpt1.settings.help import WIDTH
from gpt1.settings.words import did_you_mean, shorten

if TYPE_CHECKING:
    from gpt1.inference.language_model import LanguageModel
    from gpt1.tasks import Task

Body = Callable[[Values], None]


def run_command(command: Command, body: Body, argv: Sequence[str] | None) -> int:
    """Run a command; return the exit status: 0, or the status of the error that ended it.

    Args:
        command: the command, whose settings are read.
        body: the function that does the work.
        argv: the words after the command's name; None for the command line of this process.
    """
    return report_errors(command.program, lambda: _run(command, body, argv))


def run_one_of(
    program: str, summary: str, bodies: Mapping[Command, Body], argv: Sequence[str] | None
) -> int:
    """Run the command that the first word names, one of several, and return its exit status.

    Args:
        program: the words before the command's name, such as ``gpt1 plot``.
        summary: one sentence on what the commands do.
        bodies: for each command, the function that does the work.
        argv: the words from the command's name on; None for the command line of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    return report_errors(program, lambda: _run_one_of(program, summary, bodies, words))


def _run(command: Command, body: Body, argv: Sequence[str] | None) -> int:
    body(command.parse(argv))
    return 0


def run_until_stopped(
    program: str,
    module: str,
    body: Callable[[Sequence[str], StopRequests], int],
    argv: Sequence[str],
    resume: Sequence[str] = ("--resume",),
) -> int:
    """Run a command that trains, and return its exit status.

    If a signal ends the run, the message has the command that continues it.

    Args:
        program: the program's name, for messages.
        module: the command by which Python starts the program, ``python -m ...``.
        body: the function that does the work, of the words after the command's name and the
            requests to end.
        argv: these words.
        resume: the flags that the command needs to go on with a run.
    """

    def run() -> int:
        if "WORLD_SIZE" in os.environ:
            end_with_parent()
        with StopRequests() as stop:
            try:
                return body(argv, stop)
            except Stopped as error:
                to_go_on = _command_to_resume(module, argv, resume)
                stopped = Stopped(error.request, f"{error}; to go on: {to_go_on}")
                stopped.reported_elsewhere = os.environ.get("RANK", "0") != "0"
                raise stopped from None

    return report_errors(program, run)


def is_restarted() -> bool:
    """Return whether ``torchrun --max-restarts`` has started this run again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _command_to_resume(module: str, argv: Sequence[str], resume: Sequence[str]) -> str:
    """Return the command that continues a run."""
    words = [*argv, *(flag for flag in resume if flag not in argv)]
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    program = module.replace("python", "torchrun ...") if by_torchrun else module
    return f"{program} {shlex.join(words)}"


def _run_one_of(
    program: str, summary: str, bodies: Mapping[Command, Body], words: Sequence[str]
) -> int:
    commands = {command.name.split()[-1]: command for command in bodies}
    if not words:
        raise InputError(
            f"COMMAND: must be given; give one of {', '.join(commands)}, see {program} --help"
        )
    if words[0] in ("-h", "--help"):
        print(_help_of_all(program, summary, commands))
        raise SystemExit(0)
    name = known_command(words[0], commands, program)
    return _run(commands[name], bodies[commands[name]], words[1:])


def _help_of_all(program: str, summary: str, commands: Mapping[str, Command]) -> str:
    """Return the text of ``--help`` for several commands together."""
    summaries = {name: command.summary for name, command in commands.items()}
    examples = "\n\n".join(command.examples for command in commands.values())
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            f"\n{summary}\n",
            list_of_commands(summaries),
            f"\n  {program} COMMAND --help shows the flags of a command.\n",
            f"examples:\n{examples}",
        ]
    )


def list_of_commands(summaries: Mapping[str, str]) -> str:
    """List commands with their summaries, as ``--help`` shows them."""
    indent = max(map(len, summaries)) + 4
    rows = [
        textwrap.fill(
            summary,
            WIDTH,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
        )
        for name, summary in summaries.items()
    ]
    return "\n".join(["commands:", *rows])


def known_command(word: str, commands: Mapping[str, object], program: str) -> str:
    """Return the word if it is the name of a command.

    Raises:
        InputError: the word is not the name of a command; the message names the most similar one.
    """
    if word in commands:
        return word
    guess = did_you_mean(word, commands)
    give = " Give" if guess else "; give"
    raise InputError(
        f"{shorten(word)}: there is no such command{guess}{give} one of {', '.join(commands)}, "
        f"see {program} --help"
    )


def note(program: str, text: str) -> None:
    """Print a remark on stderr, after the program's name."""
    print(f"{program}: {text}", file=sys.stderr)


def note_written(program: str, path: str, hint: str = "") -> None:
    """Say on stderr that a file or directory was written, and perhaps what to try next."""
    note(program, f"written: {path}{hint and f' ({hint})'}")


def open_model(settings: OpenSettings, program: str) -> LanguageModel:
    """Open the model that the settings name, else the one in ``model/`` or the demo's.

    A directory that ``--params`` names has a vocabulary itself; that of a parameter list is in
    ``--model_dir``.

    Args:
        settings: the paths, the device and other settings of the model.
        program: the program's name, for the note that the demo's model is used.

    Raises:
        InputError: see :func:`gpt1.inference.language_model.open_model`; the message names flags.
    """
    from gpt1.inference import language_model
    from gpt1.runtime.device import choose_device
    from gpt1.weights import locate

    path, model_dir = settings.params, settings.model_dir
    is_list = path is not None and locate.list_file(path) is not None
    if path is not None and not is_list:
        locate.require_model(Path(path))
    if model_dir is None and path is not None and is_list:
        own = locate.vocabulary_beside(path)
        model_dir = None if own is None else str(own)
    if model_dir is None and (path is None or is_list):
        model_dir = str(locate.default_model_dir())
        if model_dir != "model" and path is None:
            note(program, f"no model in model/, using the demo's in {model_dir}/")
    return language_model.open_model(
        path or str(model_dir),
        vocabulary=model_dir if path else None,
        n_head=settings.n_head,
        afn=settings.afn,
        device=choose_device(settings.device),
        spacy_rules=settings.spacy_rules,
        spell=as_model_flag,
    )


def as_model_flag(name: str, value: object) -> str:
    """Spell an argument of a function that opens a model as the flag of a command."""
    return as_flag("model_dir" if name == "vocabulary" else name, value)


def find_data_dir(data_dir: str | None, program: str, task: Task) -> Path:
    """Return the folder of a data set.

    Args:
        data_dir: the directory that the user named; if None, it is ``data/``, or the bundled demo
            while ``data/`` holds no file of the data set, as in training.
        program: the program's name, for the note that the demo is used.
        task: the task of the data set.
    """
    folder = task.find_folder(data_dir)
    if data_dir is None and is_demo_dir("data", folder):
        note(program, f"no {task.title} in {task.folder('data')}/, using the demo in {folder}/")
    return folder
