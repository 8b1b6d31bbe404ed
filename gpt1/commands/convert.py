"""A model from one layout into another: released shards, full lists, hub directories.

What both layouts can hold arrives bit for bit. What the target has no place for is said on
stderr; what the target needs and the source has not is an error, never made up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt1.inference import pretrained
from gpt1.runtime.errors import InputError, report_errors
from gpt1.runtime.files import atomic_write, read_bytes
from gpt1.settings.arguments import Parser, number
from gpt1.text_utils.special import N_SPECIAL
from gpt1.weights import hub
from gpt1.weights import released as weights
from gpt1.weights.hub import Pieces

PROGRAM = "gpt1 convert"
LISTS = ("jl", "safetensors")
DIRECTORIES = ("hub", "released")
AFN = ("gelu", "relu", "swish")


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    model_dir: str | Path | None = None,
    n_head: int | None = None,
    afn: str | None = None,
    force: bool = False,
) -> tuple[str, list[str]]:
    """Write the model in ``source`` to ``target`` in another layout.

    Args:
        source: a directory in the released or the hub's layout, or a full parameter list
            (``.jl`` or ``.safetensors``).
        target: a directory, or a file that ends in ``.jl`` or ``.safetensors``.
        to: ``hub``, ``released``, ``jl`` or ``safetensors`` [the target's suffix].
        model_dir: where the vocabulary is [``source`` if it is a directory, else ``model/``].
        n_head, afn: attention heads and activation, where no file records them [12, gelu].
        force: whether files of an earlier conversion in ``target`` may be replaced.

    Returns:
        What was written, in one line, and notes on what the target cannot hold.

    Raises:
        InputError: a file is missing, damaged or does not fit, ``target`` is in use, or it needs
            what ``source`` has not. Nothing is written then.
        Gpt1Error: a file cannot be written.
    """
    source, target = Path(source), Path(target)
    kind = target_kind(target, to)
    _check_source(source)
    _check_target(source, target, kind, force)
    if model_dir is None:
        model_dir = source if source.is_dir() else pretrained.default_model_dir(PROGRAM)
    vocabulary, merges = pretrained.vocabulary_files(model_dir)
    encoder = pretrained.load_encoder(vocabulary, merges)
    pieces = _read(source, Path(model_dir), len(encoder.encoder), n_head, afn)
    if kind == "hub":
        notes = _write_hub(target, pieces, vocabulary, merges)
        if encoder.decoder[0] != hub.UNKNOWN:
            notes.append(
                f"piece 0 of the vocabulary is {encoder.decoder[0]!r} and not {hub.UNKNOWN!r}: "
                "transformers' tokenizer cannot be used with it, the model can"
            )
    elif kind == "released":
        notes = _write_released(target, pieces, vocabulary, merges)
    else:
        notes = _write_list(target, pieces, source)
    return f"{target}: {_described(pieces, kind)}", notes


def target_kind(target: Path, to: str | None) -> str:
    """The layout to write: what ``to`` says, or the target's suffix.

    Raises:
        InputError: the two contradict each other, or neither says it.
    """
    suffix = target.suffix.removeprefix(".")
    if to is None and suffix in LISTS:
        return suffix
    if to is None:
        raise InputError(
            f"{target}: give --to hub or --to released for a directory, or a target that ends in "
            ".jl or .safetensors for a full parameter list"
        )
    if to in LISTS and suffix != to:
        raise InputError(f"--to {to}: the target must end in .{to}, but is {target}")
    if to in DIRECTORIES and suffix in LISTS:
        raise InputError(f"--to {to}: the target is a directory, but {target} is named like a file")
    return to


def _check_source(source: Path) -> None:
    if not source.exists():
        raise InputError(f"{source}: there is no such file or directory")
    if source.name in (hub.SAFETENSORS, hub.PICKLED) and hub.is_hub(source.parent):
        raise InputError(f"{source}: is part of a hub model; name the directory {source.parent}")
    if source.is_file() and source.suffix.removeprefix(".") not in LISTS:
        raise InputError(
            f"{source}: a model is a directory, or a full parameter list that ends in .jl or "
            ".safetensors"
        )


def _check_target(source: Path, target: Path, kind: str, force: bool) -> None:
    """Refuse to write over what is there; with ``force``, over what is not a conversion's."""
    if not target.exists():
        return
    if target.samefile(source):
        raise InputError(f"{target}: is the source itself; name another target")
    if target.is_dir() != (kind in DIRECTORIES):
        raise InputError(
            f"{target}: is a {'directory' if target.is_dir() else 'file'}; the {kind} "
            f"layout is a {'directory' if kind in DIRECTORIES else 'file'}"
        )
    there = sorted(path.name for path in target.iterdir()) if target.is_dir() else [target.name]
    if there and not force:
        raise InputError(
            f"{target}: is there already ({_some(there)}); name another target, or give --force "
            "to replace an earlier conversion"
        )
    foreign = [name for name in there if target.is_dir() and name not in _files_of(kind)]
    if foreign:
        raise InputError(
            f"{target}: holds files that no conversion writes ({_some(foreign)}) and that would be "
            "taken for part of the model; name another directory"
        )


def _files_of(kind: str) -> tuple[str, ...]:
    """Names of the files that a conversion writes into a directory."""
    if kind == "hub":
        return hub.FILES
    shards = tuple(f"params_{index}.npy" for index in range(weights.N_SHARDS))
    settings = (weights.SHAPES_FILE, weights.CONFIG_FILE)
    return (pretrained.VOCABULARY, pretrained.MERGES, *settings, *shards)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# Reading


def _read(
    source: Path, model_dir: Path, n_vocab: int, n_head: int | None, afn: str | None
) -> Pieces:
    """The model in ``source``, whatever its layout."""
    if source.is_file():
        recorded = pretrained.read_recorded(model_dir)
        return _from_list(source, n_vocab, n_head or recorded.n_head, afn or recorded.afn)
    if not hub.is_hub(source):
        return _from_released(source, n_vocab, n_head, afn)
    pieces = hub.read_hub(source, n_vocab)
    _check_given(source / hub.CONFIG, "n_head", n_head, pieces.n_head)
    _check_given(source / hub.CONFIG, "afn", afn, pieces.afn)
    return pieces


def _check_given(path: Path, flag: str, given: int | str | None, recorded: int | str) -> None:
    if given not in (None, recorded):
        raise InputError(f"--{flag} {given}: {path} has {recorded}; leave the flag out")


def _from_released(source: Path, n_vocab: int, n_head: int | None, afn: str | None) -> Pieces:
    import numpy as np

    sizes = weights.read_shapes(source)
    if sizes.n_vocab != n_vocab:
        raise InputError(
            f"{source / weights.SHAPES_FILE} is for {sizes.n_vocab} pieces, but the vocabulary has "
            f"{n_vocab}; use the one that came with the weights"
        )
    recorded = weights.read_n_head(source)
    if recorded is not None:
        _check_given(source / weights.CONFIG_FILE, "n_head", n_head, recorded)
    no_rows = np.empty((0, sizes.n_embd), np.float32)
    params = weights.load_released(
        source, special=no_rows, n_ctx=sizes.n_ctx, n_transfer=sizes.n_layer
    )
    we = params.pop("we")
    return Pieces(
        tokens=we[:n_vocab],
        special=None,
        positions=we[n_vocab:],
        blocks=params,
        classifier={},
        n_head=n_head or recorded or pretrained.DEFAULT_N_HEAD,
        afn=afn or pretrained.DEFAULT_AFN,
    )


def _from_list(source: Path, n_vocab: int, n_head: int, afn: str) -> Pieces:
    from gpt1.model.transformer import ModelConfig

    arrays = weights.read_params(source)
    sizes = weights.config_of_list(arrays, source)
    first = n_vocab + N_SPECIAL  # position row
    if sizes.rows <= first:
        raise InputError(
            f"{source}: {sizes.rows} rows of we are too few for a vocabulary of {n_vocab} pieces; "
            "name the one it was trained with by --model_dir"
        )
    config = ModelConfig(n_embd=sizes.n_embd, n_layer=sizes.n_layer, n_head=1)
    params = dict(zip(weights.parameter_shapes(config), arrays, strict=True))
    for name, array in params.items():
        hub.check_numbers(array, name, source)
    we = params.pop("we")
    return Pieces(
        tokens=we[:n_vocab],
        special=we[n_vocab:first],
        positions=we[first:],
        classifier={name: params.pop(name) for name in ("clf/w", "clf/b")},
        blocks=params,
        n_head=n_head,
        afn=afn,
    )


# Writing; what is returned are notes on what the layout cannot hold


def _write_hub(target: Path, pieces: Pieces, vocabulary: Path, merges: Path) -> list[str]:
    _check_heads(pieces)
    hub.write_hub(target, pieces, vocabulary, merges)
    return [
        "transformers' language model has a softmax over token rows alone, here position rows "
        "take part: its logits are ours, its probabilities and losses are not",
        "training differs there: dropout falls on sums of embeddings, not on rows of the matrix; "
        f"the rates written are the original's, {hub.PDROP}",
        "its tokenizer gives other ids for some texts (docs/hub.md): encode with gpt1.text_utils",
    ]


def _write_released(target: Path, pieces: Pieces, vocabulary: Path, merges: Path) -> list[str]:
    _check_heads(pieces)
    copies = {
        pretrained.VOCABULARY: read_bytes(vocabulary, "the vocabulary"),
        pretrained.MERGES: read_bytes(merges, "the BPE merges"),
    }
    for name, data in copies.items():
        with atomic_write(target / name) as file:
            file.write(data)
    n_special = 0 if pieces.special is None else len(pieces.special)
    params = pieces.params(pieces.tokens[:0])
    n_vocab = len(pieces.tokens)
    weights.save_released(
        target, params, n_vocab=n_vocab, n_special=n_special, n_head=pieces.n_head
    )
    lost = ["rows of special tokens"] if n_special else []
    lost += ["a choice head"] if pieces.classifier else []
    notes = [f"the released layout has no place for {' and '.join(lost)}: left out"] if lost else []
    return notes + _unrecorded(pieces, n_head=False)


def _write_list(target: Path, pieces: Pieces, source: Path) -> list[str]:
    from gpt1.model.transformer import ModelConfig
    from gpt1.weights.jl import write_jl

    if pieces.special is None or not pieces.classifier:
        missing = ["rows of special tokens"] if pieces.special is None else []
        missing += [] if pieces.classifier else ["choice head"]
        raise InputError(
            f"{source}: has no {' and no '.join(missing)}, which a full parameter list holds; "
            "convert it to a directory (--to hub or --to released), or fine-tune it first"
        )
    arrays = list(pieces.params(pieces.special).values())
    if target.suffix == ".jl":
        write_jl(target, arrays)
    else:
        config = ModelConfig(
            n_vocab=len(pieces.tokens),
            n_ctx=len(pieces.positions),
            n_embd=pieces.n_embd,
            n_layer=pieces.n_layer,
            n_head=1,  # the file holds no heads
        )
        weights.write_safetensors(target, arrays, config)
    return _unrecorded(pieces, n_head=True)


def _check_heads(pieces: Pieces) -> None:
    if pieces.n_embd % pieces.n_head:
        raise InputError(
            f"--n_head {pieces.n_head}: does not divide the width {pieces.n_embd}; give the number "
            "of heads the model was trained with"
        )


def _unrecorded(pieces: Pieces, *, n_head: bool) -> list[str]:
    """A note if the model is not what programs assume where no file says it."""
    flags = []
    if n_head and pieces.n_head != pretrained.DEFAULT_N_HEAD:
        flags.append(f"--n_head {pieces.n_head}")
    if pieces.afn != pretrained.DEFAULT_AFN:
        flags.append(f"--afn {pieces.afn}")
    if not flags:
        return []
    return [f"the target does not record everything: use it with {' '.join(flags)}"]


def _described(pieces: Pieces, kind: str) -> str:
    """What a target now holds, in words."""
    parts = [f"{pieces.n_layer} layers of width {pieces.n_embd}", f"{len(pieces.tokens)} tokens"]
    if kind != "released" and pieces.special is not None:
        parts.append(f"{len(pieces.special)} special tokens")
    parts.append(f"{len(pieces.positions)} positions")
    if kind != "released" and pieces.classifier:
        parts.append("choice head")
    return f"{kind} layout, {', '.join(parts)}"


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return report_errors(PROGRAM, lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    written, notes = convert(**vars(args))
    print(written)
    for note in notes:
        print(f"{PROGRAM}: note: {note}", file=sys.stderr)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "gpt1 convert",
        "Convert a model between the released layout, full parameter lists and transformers'.",
        """\
  # the demo's pretrained model, for transformers
  python -m gpt1 convert model/demo demo_hub --to hub

  # a fine-tuned model, for transformers; its vocabulary is in model/
  python -m gpt1 convert save/rocstories/best_params.jl finetuned --to hub --model_dir model

  # a model from the hub, as OpenAI released it
  python -m gpt1 convert openai-gpt model --to released

  # a fine-tuned model from the hub, for --params or --init_params
  python -m gpt1 convert finetuned finetuned.safetensors""",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a model directory, or a full list .jl or .safetensors")
    add("target", metavar="TARGET", help="where to write: a directory, or a .jl or .safetensors")
    add("--to", choices=DIRECTORIES + LISTS, help="layout to write [the suffix of TARGET]")
    add("--model_dir", metavar="DIR", help="where the vocabulary is [SOURCE; of a list, model/]")
    add("--n_head", metavar="N", type=number(int, 1), help="attention heads [recorded, else 12]")
    add("--afn", choices=AFN, help="activation [recorded, else gelu]")
    add("--force", action="store_true", help="replace an earlier conversion in TARGET")
    return parser
