"""Every setting of a run: one frozen dataclass, its command line, and all checks at the edge."""

from __future__ import annotations

import argparse
import math
import os
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.arguments import Parser
from gpt1.weights import locate

DATASETS = ("rocstories",)
DEMO = "demo"  # the directory of the bundled demo, in data/ and in model/
# What suits the demo's model, a hundredth of GPT-1's size, and its few stories.
DEMO_DEFAULTS: dict[str, Any] = {"lr": 2e-3, "n_iter": 15}
LEAST_N_CTX = 6  # leaves one token each of a story and an ending (batches.max_part_length)

Check = Callable[[Any], str | None]


def _at_least(low: float) -> Check:
    return lambda x: None if x >= low else f"must be at least {low:g}"


def _above(low: float) -> Check:
    return lambda x: None if x > low else f"must be greater than {low:g}"


def _not_negative(x: float) -> str | None:
    """Refuse a negative value, which the original takes for 0: the log would name another run."""
    return None if x >= 0 else "must be at least 0; the original takes a negative value for 0"


def _fraction(x: float) -> str | None:
    return None if 0 <= x < 1 else "must be at least 0 and less than 1"


def _rate(x: float) -> str | None:
    """Refuse what is no dropout rate."""
    return _not_negative(x) if x < 0 else _fraction(x)


def _warmup(x: float) -> str | None:
    """Refuse a number of updates, which would leave the rate close to 0 for the whole run."""
    return None if 0 <= x <= 1 else "must be from 0 to 1: a share of all updates, not their number"


def _seed(x: int) -> str | None:
    """What NumPy takes."""
    return None if 0 <= x < 2**32 else "must be at least 0 and less than 2**32"


def _plain_name(x: str) -> str | None:
    """``desc`` names files and a directory, so it must stay inside them."""
    if x in ("", ".", "..") or set(x) & set("/\\\0\n"):
        return "must be a plain name, without slashes: it names log and save files"
    return None if len(x) <= 100 else "must be at most 100 characters: it names log and save files"


def _one_of(*choices: str) -> Check:
    return lambda x: None if x in choices else f"must be one of {', '.join(choices)}"


def _flag(default: Any, help: str, check: Check | None = None) -> Any:
    return field(default=default, metadata={"help": help, "check": check})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of the original under its names and defaults, then ours.

    A default of None means: taken from the data set's name, the checkpoint, or the machine.

    Attributes:
        given: names of the flags that the command line gave.

    Raises:
        InputError: from :func:`parse`, with every problem in one message.
    """

    desc: str | None = _flag(
        None, "name of the run, used in file names [the data set]", _plain_name
    )
    dataset: str = _flag("rocstories", "what to train on", _one_of(*DATASETS))
    log_dir: str = _flag("log/", "where log files go")
    save_dir: str = _flag("save/", "where parameters and checkpoints go")
    data_dir: str | None = _flag(None, "where the CSVs are [data/, or the demo if it has none]")
    submission_dir: str = _flag("submission/", "where the submission goes")
    submit: bool = _flag(False, "keep the best parameters and predict the test set with them")
    analysis: bool = _flag(False, "with --submit: print accuracies at the end")
    seed: int = _flag(42, "seed of all random numbers", _seed)
    n_iter: int = _flag(3, "epochs; 0: no training", _at_least(0))
    n_batch: int = _flag(8, "stories a tower and step", _at_least(1))
    max_grad_norm: float = _flag(1.0, "global norm to clip gradients at; 0 or less: no clipping")
    lr: float = _flag(6.25e-5, "peak learning rate", _at_least(0))
    lr_warmup: float = _flag(0.002, "share of all updates that warm up", _warmup)
    n_ctx: int = _flag(
        512, "longest sequence, in tokens; longer parts are cut", _at_least(LEAST_N_CTX)
    )
    n_embd: int | None = _flag(None, "width [the checkpoint's, else 768]", _at_least(1))
    n_head: int | None = _flag(None, "attention heads [the checkpoint's, else 12]", _at_least(1))
    n_layer: int | None = _flag(None, "layers [the checkpoint's, else 12]", _at_least(1))
    embd_pdrop: float = _flag(0.1, "dropout on the embedding matrix", _rate)
    attn_pdrop: float = _flag(0.1, "dropout on attention weights", _rate)
    resid_pdrop: float = _flag(0.1, "dropout before residual sums", _rate)
    clf_pdrop: float = _flag(0.1, "dropout on the classifier's input", _rate)
    l2: float = _flag(0.01, "weight decay", _not_negative)
    vector_l2: bool = _flag(False, "decay biases and layer norms too")
    n_gpu: int = _flag(
        4, "towers; a batch is n_batch * n_gpu stories on any hardware", _at_least(1)
    )
    opt: str = _flag("adam", "optimizer", _one_of("adam"))
    afn: str = _flag("gelu", "activation: gelu, relu or swish", _one_of("gelu", "relu", "swish"))
    lr_schedule: str = _flag(
        "warmup_linear",
        "learning-rate schedule: warmup_linear, warmup_cosine or warmup_constant",
        _one_of("warmup_linear", "warmup_cosine", "warmup_constant"),
    )
    encoder_path: str | None = _flag(
        None, "vocabulary [MODEL_DIR/encoder_bpe_40000.json, or vocab.json of a hub directory]"
    )
    bpe_path: str | None = _flag(
        None, "merges [MODEL_DIR/vocab_40000.bpe, or merges.txt of a hub directory]"
    )
    n_transfer: int | None = _flag(
        None,
        "layers taken from the checkpoint; -1: nothing, embeddings neither "
        "[as many as checkpoint and model both have]",
        _at_least(-1),
    )
    lm_coef: float = _flag(0.5, "weight of the language-model loss", _not_negative)
    b1: float = _flag(0.9, "Adam's decay of the first moment", _fraction)
    b2: float = _flag(0.999, "Adam's decay of the second moment", _fraction)
    e: float = _flag(1e-8, "Adam's epsilon", _above(0))

    model_dir: str | None = _flag(
        None,
        "where weights and vocabulary are, as released or from the model hub [model/, or the demo]",
    )
    init_params: str | None = _flag(
        None, "start from this full parameter list (.jl or .safetensors), classifier included"
    )
    spacy_rules: str = _flag(
        "2.0",
        "special cases of English words: 2.0, which the weights were trained with, or installed",
        _one_of("2.0", "installed"),
    )
    device: str | None = _flag(None, "cpu, cuda, cuda:1, mps, ... [cuda if there is one, else cpu]")
    precision: str = _flag(
        "fp32", "arithmetic: fp32, tf32 (CUDA) or bf16", _one_of("fp32", "tf32", "bf16")
    )
    share_prefix: bool = _flag(
        False, "compute a story once for both endings in training too: one dropout mask for both"
    )
    compile: bool = _flag(False, "compile the layers with torch.compile; needs a C++ compiler")
    fast: bool = _flag(
        False,
        "what is fastest on the device: bf16 where it has it, --share_prefix, --compile on CUDA",
    )
    deterministic: bool = _flag(
        False, "the same bits in every run on a GPU too, which is slower; a CPU always does that"
    )
    probs: bool = _flag(False, "with --submit: write each choice's probability, too")
    tensorboard: str | None = _flag(None, "write the logs' figures for TensorBoard here, too")
    resume: bool = _flag(False, "go on from the last checkpoint of this run, if there is one")
    save_every: int = _flag(
        0, "updates between checkpoints, besides each epoch's end", _at_least(0)
    )

    given: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """``desc``, or the data set's name where none was given."""
        return self.desc or self.dataset

    @property
    def n_batch_train(self) -> int:
        """Stories a step, over all towers."""
        return self.n_batch * self.n_gpu

    def as_flags(self) -> dict[str, Any]:
        """Every flag's value by its name, in the order of ``--help``."""
        return {item.name: getattr(self, item.name) for item in _flags()}

    def made_fast(self, *, has_bf16: bool, is_cuda: bool) -> Settings:
        """What ``--fast`` stands for; a precision that was given stays."""
        keep = "precision" in self.given or not has_bf16
        return replace(
            self,
            precision=self.precision if keep else "bf16",
            share_prefix=True,
            compile=self.compile or is_cuda,
        )

    def for_demo(self) -> Settings:
        """These settings with the demo's own where the command line gave none."""
        own = {name: value for name, value in DEMO_DEFAULTS.items() if name not in self.given}
        return replace(self, **own)


def _flags() -> list[Field[Any]]:
    """The fields of :class:`Settings` that are flags."""
    return [item for item in fields(Settings) if "help" in item.metadata]


def parse(argv: Sequence[str] | None, program: str) -> Settings:
    """Read a command line; all its problems come in one :class:`InputError`.

    Flags are never abbreviated: a new one must not change what an old command means. Where one
    is given twice, the last counts.

    Args:
        argv: the arguments, or None for the process's own.
        program: the name that usage and ``--help`` show.
    """
    words = sys.argv[1:] if argv is None else argv
    if not {"-h", "--help"}.isdisjoint(words):
        _parser(program).parse_args(["--help"])
    texts, problems = _read_words(words)
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = _convert(name, text)
        except ValueError as error:
            problems.append(f"--{name} {_shown(text)}: {error}")
    problems += check_values(values)
    if problems:
        raise InputError(join_problems(problems))
    return Settings(**values, given=frozenset(values))


def _read_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The text of each flag that is given, and a problem for each word out of place.

    argparse would stop at its first complaint, and take ``-1e-3`` for a flag.
    """
    kinds = {item.name: item.type for item in _flags()}
    texts: dict[str, str] = {}
    problems = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in kinds:
            problems.append(f"{_shown(word)}: there is no such flag or argument; see --help")
        elif kinds[name] == "bool":
            texts[name] = "true"
            if equals:
                problems.append(f"--{name}={_shown(text)}: takes no value; give --{name} alone")
        elif equals:
            texts[name] = text
        elif rest and not rest[0].startswith("--"):
            texts[name] = rest.popleft()
        else:
            problems.append(f"--{name}: a value is missing; give one after it")
    return texts, problems


def _shown(text: str) -> str:
    """A word of the command line as a message quotes it: short, on one line."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else text[:60] + "..."


def check_values(values: dict[str, Any]) -> list[str]:
    """Problems of single values, each naming its flag."""
    problems = []
    for item in _flags():
        check: Check | None = item.metadata["check"]
        value = values.get(item.name)
        if check is not None and value is not None and (message := check(value)):
            problems.append(f"--{item.name} {_shown(str(value))}: {message}")
    return problems


def _parser(program: str) -> argparse.ArgumentParser:
    """What shows ``--help``; :func:`_read_words` reads what is given."""
    parser = Parser(
        program,
        "Fine-tune GPT-1 as the paper did, with an auxiliary language-model loss.",
        """\
  # on what is in data/ and model/, else on the bundled demo
  python -m gpt1.train --dataset rocstories --submit""",
    )
    for item in _flags():
        note = item.metadata["help"]
        if item.type == "bool":
            parser.add_argument(f"--{item.name}", help=note, action="store_true")
            continue
        if item.default is not None:
            note += f" [{item.default}]"
        metavar = {"int": "N", "float": "X"}.get(str(item.type).split(" ")[0], "TEXT")
        parser.add_argument(f"--{item.name}", help=note, metavar=metavar)
    return parser


def _convert(name: str, text: str) -> Any:
    """A flag's text as its field's type."""
    kind = _kind(name)
    if kind is bool:
        return text == "true"
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError("must be a number") from None
        if not math.isfinite(number):
            raise ValueError("must be a finite number")
        return number
    if not text:
        raise ValueError("must not be empty")
    if "\0" in text or any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError("must be a name that a file can have")
    return text


def _kind(name: str) -> type:
    """The type of a field, None left aside."""
    hint = typing.get_type_hints(Settings)[name]
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return typing.cast(type, hint)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a run reads from, after the demo's rule has been applied.

    Attributes:
        data_dir, model_dir, encoder_path, bpe_path: existing places to read.
        demo: whether the bundled demo stands in for data and weights.
    """

    data_dir: Path
    model_dir: Path
    encoder_path: Path
    bpe_path: Path
    demo: bool


def find_sources(settings: Settings, csv_names: Sequence[str]) -> Sources:
    """Decide between the user's files and the demo.

    The demo runs if neither directory is named and ``data/`` has none of the CSVs. What is
    named and missing, or real data without weights, is an error.

    Args:
        settings: the run's settings.
        csv_names: file names of the data set.

    Raises:
        InputError: with every missing file and what to do about it.
    """
    data_dir = Path(settings.data_dir or "data")
    model_dir = Path(settings.model_dir or "model")
    found = [name for name in csv_names if os.path.isfile(data_dir / name)]
    demo = settings.data_dir is None and settings.model_dir is None and not found
    if demo:
        data_dir, model_dir = data_dir / DEMO, model_dir / DEMO
    vocabulary, merges = locate.vocabulary_files(model_dir)
    sources = Sources(
        data_dir=data_dir,
        model_dir=model_dir,
        encoder_path=Path(settings.encoder_path or vocabulary),
        bpe_path=Path(settings.bpe_path or merges),
        demo=demo,
    )
    problems = _missing_files(settings, sources, csv_names)
    if problems:
        raise InputError(join_problems(problems))
    return sources


def _missing_files(settings: Settings, sources: Sources, csv_names: Sequence[str]) -> list[str]:
    """A problem for each kind of file that the run needs and cannot find."""
    problems = []
    missing = [name for name in csv_names if not os.path.isfile(sources.data_dir / name)]
    if missing:
        names = " and ".join(f"'{name}'" for name in missing)
        if sources.demo:  # the rest of the demo is not there either
            return [
                f"neither data/ nor {sources.data_dir}/ has {names}: run from the repository's "
                "root, or give --data_dir and --model_dir"
            ]
        problems.append(
            f"{sources.data_dir}/ has no {names}: ask for ROCStories at "
            "https://cs.rochester.edu/nlp/rocstories/ and put the CSVs there, or name their "
            "directory with --data_dir"
        )
    for flag, path in (
        ("--encoder_path", sources.encoder_path),
        ("--bpe_path", sources.bpe_path),
    ):
        remedy = f"name it with {flag}, or its directory with --model_dir"
        if problem := locate.missing_vocabulary(path, remedy):
            problems.append(problem)
    if settings.init_params is not None:
        if not os.path.isfile(settings.init_params):
            problems.append(
                f"--init_params {settings.init_params}: there is no such file; give the path of a "
                ".jl or .safetensors file"
            )
    elif settings.n_transfer != -1:
        problems += _missing_weights(sources.model_dir)
    return problems


def _missing_weights(model_dir: Path) -> list[str]:
    """A problem if there is no pretrained model in a directory, of either layout."""
    if locate.is_hub(model_dir):
        try:
            locate.hub_weights(model_dir)
        except InputError as error:
            return [str(error)]
    elif not locate.is_released(model_dir):
        return [
            f"{model_dir}/ has no weights (params_shapes.json, params_0.npy ... "
            "params_9.npy): fetch the released ones with 'gpt1 download', name their "
            "directory or one from the model hub with --model_dir, or train from nothing with "
            "--n_transfer -1"
        ]
    return []
