"""``gpt1 COMMAND ...``: all programs under one name, the same as ``python -m gpt1 COMMAND``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import gpt1
from gpt1.commands.running import known_command, list_of_commands
from gpt1.runtime.errors import report_errors

COMMANDS = {
    "train": "fine-tune on a data set of the paper or on your own data, and predict",
    "pretrain": "train a language model on text of your own",
    "perplexity": "say how well a model predicts a text",
    "zeroshot": "predict a data set with a model that was never fine-tuned",
    "analysis": "say how good a submission is, and how sure that is",
    "predict": "predict the rows of your own file with a model that was trained on such rows",
    "score": "choose the endings of your own stories with a fine-tuned model",
    "generate": "continue a text with a pretrained or a fine-tuned model",
    "corpus": "encode text of your own, to pretrain on",
    "download": "fetch the released weights and check them",
    "convert": "between the released layout, parameter lists and the model hub's layout",
    "plot": "learning curves, tables of runs, attention maps",
    "reproduce": "run the paper's experiments, and show its results beside ours",
    "env": "show versions, devices, threads and processor",
}

_USAGE = """\
usage: gpt1 COMMAND ...      (the same as python -m gpt1 COMMAND ...)

Fine-tune GPT-1 as the paper did, with the same numbers step by step.

{commands}

  gpt1 COMMAND --help shows the flags of a command, with examples.
  gpt1 --version (or -V) shows the version.

examples:
  # fine-tune on the bundled demo, or on what is in data/ and model/
  gpt1 train --dataset rocstories --submit

  # how good is it?
  gpt1 analysis submission/rocstories/ROCStories.tsv --log log/rocstories.jsonl

  # the released weights, into model/
  gpt1 download"""


def usage() -> str:
    """Return what ``gpt1 --help`` shows."""
    return _USAGE.format(commands=list_of_commands(COMMANDS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit status."""
    return report_errors("gpt1", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"gpt1 {gpt1.__version__}")
        return 0
    name = known_command(argv[0], COMMANDS, "gpt1")
    status: int = importlib.import_module(f"gpt1.commands.{name}").main(argv[1:])
    return status
