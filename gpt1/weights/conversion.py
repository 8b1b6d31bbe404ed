"""Convert a model between layouts: the released layout, full parameter lists, hub directories.

Every array that both layouts can hold is copied bit for bit. An array that the target cannot hold
is left out, and a note says so. If the source lacks an array that the target needs, the conversion
ends with an error; nothing is made up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1.model.transformer import ModelConfig
from gpt1.runtime.errors import InputError
from gpt1.settings.command import Spelling, as_keyword
from gpt1.tasks.layouts import StoryChoices
from gpt1.tasks.record import TaskRecord
from gpt1.weights import hub, locate
from gpt1.weights.jl import write_jl
from gpt1.weights.parameters import Array, check_array, parameter_shapes, write_safetensors
from gpt1.weights.released import save_released
from gpt1.weights.stored import (
    DEFAULTS,
    find_model,
    open_vocabulary,
    resolve,
)

# The layouts that are directories, with the names of the files that a conversion writes.
DIRECTORIES = {"hub": locate.HUB_FILES, "released": locate.RELEASED_FILES}
LISTS = tuple(suffix.removeprefix(".") for suffix in locate.LIST_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model that was read from one layout and is to be written in another.

    Attributes:
        path: the file or directory that the model was read from.
        vocabulary: the files of the vocabulary and the merges.
        unknown: the token with id 0, which stands for everything outside the vocabulary.
        config: the sizes of the model, with 0 or 3 special rows, and its activation.
        params: the arrays by the original's names, with or without a classifier.
        task: the record of the task that the model was trained on; None if it has none.
    """

    path: Path
    vocabulary: tuple[Path, Path]
    unknown: str
    config: ModelConfig
    params: dict[str, Array]
    task: TaskRecord | None

    def extras(self, *, present: bool) -> list[str]:
        """Name the parts that only a fine-tuned model has.

        Args:
            present: whether to name the parts that this model has, or those that it lacks.
        """
        found = {
            "rows of special tokens": self.config.n_special > 0,
            "a choice head": "clf/w" in self.params,
        }
        return [name for name, is_present in found.items() if is_present == present]


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    vocabulary: str | Path | None = None,
    n_head: int | None = None,
    afn: str | None = None,
    force: bool = False,
    spell: Spelling = as_keyword,
) -> tuple[str, list[str]]:
    """Write the model in ``source`` to ``target`` in another layout.

    Args:
        source: a directory in the released or the hub's layout, a full parameter list (``.jl`` or
            ``.safetensors``), or the directory of a run.
        target: a directory, or a file that ends in ``.jl`` or ``.safetensors``.
        to: ``hub``, ``released``, ``jl`` or ``safetensors`` [the suffix of ``target``].
        vocabulary: the directory of the vocabulary [``source``, or the directory of a list, or
            ``model/``].
        n_head, afn: attention heads and activation, where no file records them [12, gelu].
        force: whether files of an earlier conversion in ``target`` may be replaced.
        spell: how messages and notes name arguments.

    Returns:
        One line that describes what was written, and notes on what the target cannot hold.

    Raises:
        InputError: a file is missing, damaged or does not fit the others; ``target`` is in use; or
            ``target`` needs an array that ``source`` does not have. Nothing is written then.
        Gpt1Error: a file cannot be written.
    """
    target = Path(target)
    layout = target_layout(target, to, spell)
    path = locate.list_file(source) or Path(source)
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file or directory")
    _check_target(path, target, layout, f"give {spell('force', True)}" if not force else None)
    notes = []
    if vocabulary is None:
        own = path if path.is_dir() else locate.vocabulary_beside(path)
        vocabulary = own or locate.default_model_dir()
        notes += [] if own else [f"the vocabulary is the one in {vocabulary}/"]
    model = _read(path, Path(vocabulary), n_head, afn, spell)
    if layout == "hub":
        notes += _write_hub(target, model)
    elif layout == "released":
        notes += _write_released(target, model)
    else:
        notes += _write_list(target, model, spell)
    notes += _unrecorded(model.config, layout, spell)
    return f"{target}: {_described(model, layout)}", notes


def target_layout(target: Path, to: str | None, spell: Spelling = as_keyword) -> str:
    """Return the layout to write: ``to``, or the layout that the suffix of the target stands for.

    Raises:
        InputError: ``to`` and the suffix contradict each other, or neither names a layout.
    """
    suffix = target.suffix.removeprefix(".")
    if to is None and suffix in LISTS:
        return suffix
    if to is None:
        raise InputError(
            f"{target}: give {spell('to', 'hub')} or {spell('to', 'released')} for a directory, or "
            "a target that ends in .jl or .safetensors for a full parameter list"
        )
    shown = spell("to", to)
    if to in LISTS and suffix != to:
        raise InputError(f"{shown}: the target must end in .{to}, but is {target}")
    if to in DIRECTORIES and suffix in LISTS:
        raise InputError(f"{shown}: the target is a directory, but {target} is named like a file")
    return to


def _check_target(source: Path, target: Path, layout: str, remedy: str | None) -> None:
    """Refuse a target that would overwrite files, or mix a conversion with other files.

    Args:
        source: the directory or file that is read.
        target: the directory or file to write.
        layout: the layout to write.
        remedy: how the user allows files of an earlier conversion to be replaced; None if they may
            be replaced.
    """
    if not target.exists():
        return
    if target.samefile(source):
        raise InputError(f"{target}: is the source, too; name another target")
    if target.is_dir() != (layout in DIRECTORIES):
        raise InputError(
            f"{target}: is a {'directory' if target.is_dir() else 'file'}; the {layout} "
            f"layout is a {'directory' if layout in DIRECTORIES else 'file'}"
        )
    there = sorted(path.name for path in target.iterdir()) if target.is_dir() else [target.name]
    if there and remedy:
        raise InputError(
            f"{target}: is there already ({_some(there)}); name another target, or {remedy} to "
            "replace an earlier conversion"
        )
    if target.is_dir():
        check_no_foreign_files(target, layout)


def check_no_foreign_files(target: Path, layout: str) -> None:
    """Refuse to write a model into a directory that holds anything but an earlier such model.

    Raises:
        InputError: there are other files; names the first ones.
    """
    there = sorted(path.name for path in target.iterdir())
    foreign = [name for name in there if name not in DIRECTORIES[layout]]
    if foreign:
        raise InputError(
            f"{target}: holds files that are no part of a model ({_some(foreign)}); name another "
            "directory"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(
    path: Path, model_dir: Path, n_head: int | None, afn: str | None, spell: Spelling
) -> _Model:
    """Read the model at ``path``, with the vocabulary in ``model_dir``."""
    files = locate.vocabulary_files(model_dir)
    encoder = open_vocabulary(files, spell)
    stored = find_model(path, model_dir)
    n_vocab = len(encoder.encoder)
    n_special, n_ctx = stored.rows(n_vocab, files[0])
    # The records in a model's own directory are binding. A list may lie beside another model's.
    fixed = () if stored.is_list else ("n_head", "afn")
    sizes, n_transfer = resolve(stored, {"n_head": n_head, "afn": afn}, fixed=fixed, spell=spell)
    config = ModelConfig(
        n_vocab=n_vocab, n_special=n_special, n_ctx=n_ctx, n_classes=stored.n_classes, **sizes
    )
    special = np.empty((0, config.n_embd), np.float32)
    params = stored.read(n_vocab, special, n_ctx=n_ctx, n_transfer=n_transfer, classifier=True)
    shapes = parameter_shapes(config)
    for name, array in params.items():
        check_array(array, name, shapes[name], path)
    return _Model(
        path=path,
        vocabulary=files,
        unknown=encoder.decoder[0],
        config=config,
        params=params,
        task=stored.task,
    )


# Writing. These functions return notes on what the layout cannot hold.


def _write_hub(target: Path, model: _Model) -> list[str]:
    hub.write_hub(target, model.params, model.vocabulary, model.config, model.task)
    notes = [
        "transformers computes the language model's softmax over token rows alone, fine-tuning in "
        "gpt1 over position rows too: the logits are equal, those losses are not",
        "training in transformers differs: dropout applies to sums of embeddings, not to rows of "
        f"the matrix; the dropout rates written are the original's, {hub.PDROP}",
        "transformers' tokenizer gives other ids for some texts (docs/hub.md): encode texts with "
        "gpt1.text_utils",
    ]
    if model.unknown != hub.UNKNOWN:
        notes.append(
            f"token 0 of the vocabulary is {model.unknown!r} and not {hub.UNKNOWN!r}: "
            "transformers' tokenizer cannot be used with this vocabulary, but the model can"
        )
    return notes


def _write_released(target: Path, model: _Model) -> list[str]:
    config = model.config
    locate.copy_vocabulary(model.vocabulary, target, (locate.ENCODER_FILE, locate.BPE_FILE))
    save_released(
        target,
        model.params,
        n_vocab=config.n_vocab,
        n_special=config.n_special,
        n_head=config.n_head,
    )
    lost = " and ".join(model.extras(present=True))
    return [f"the released layout has no place for {lost}: left out"] if lost else []


def _write_list(target: Path, model: _Model, spell: Spelling) -> list[str]:
    missing = [name.removeprefix("a ") for name in model.extras(present=False)]
    if missing:
        raise InputError(
            f"{model.path}: has no {' and no '.join(missing)}, which a full parameter list holds; "
            f"convert it to a directory ({spell('to', 'hub')} or {spell('to', 'released')}), "
            "or fine-tune it first"
        )
    arrays = list(model.params.values())
    if target.suffix == ".jl":
        write_jl(target, arrays)
        if model.task is None or model.task.layout == StoryChoices():
            return []  # A choice head without a record is taken for one of stories.
        lost = "the record of the task, without which the model predicts no examples"
        return [f"a .jl list has no place for {lost}: left out"]
    write_safetensors(target, arrays, model.config, model.task)
    return []


def _unrecorded(config: ModelConfig, layout: str, spell: Spelling) -> list[str]:
    """Return a note with the values that the layout does not record and that are not the defaults.

    A program that opens the target would assume the defaults.
    """
    unrecorded = {"jl": ("n_head", "afn"), "released": ("afn",)}.get(layout, ())
    needed = [
        spell(name, getattr(config, name))
        for name in unrecorded
        if getattr(config, name) != DEFAULTS[name]
    ]
    if not needed:
        return []
    return [f"the target does not record everything: use it with {' and '.join(needed)}"]


def _described(model: _Model, layout: str) -> str:
    """Describe in words what a target now holds."""
    config = model.config
    parts = [f"{config.n_layer} layers of width {config.n_embd}", f"{config.n_vocab} tokens"]
    if layout != "released" and config.n_special:
        parts.append(f"{config.n_special} special tokens")
    parts.append(f"{config.n_ctx} positions")
    if layout != "released" and "clf/w" in model.params:
        parts.append("choice head")
    return f"{layout} layout, {', '.join(parts)}"
