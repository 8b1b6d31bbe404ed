"""Find a model in files of any layout, read what the files record about it, and read its arrays.

Every program finds a model by :func:`find_model`. :func:`resolve` decides the sizes, which the
user or a file may give.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt1.runtime.demo import is_demo_dir
from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.command import Spelling, as_keyword
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import ACTIVATION_NAMES, OpenSettings
from gpt1.tasks.record import TaskRecord, read_record
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import N_SPECIAL, SPECIAL_STD
from gpt1.weights.hub import HubConfig, load_hub, n_special_rows, read_config
from gpt1.weights.jl import read_jl
from gpt1.weights.locate import (
    CONFIG_FILE,
    HUB_CONFIG,
    RUN_LIST,
    SHAPES_FILE,
    TASK,
    is_hub,
    is_released,
    is_size,
    list_file,
    missing_vocabulary,
    read_config_file,
    require_model,
)
from gpt1.weights.parameters import (
    CONFIG_KEY,
    Array,
    list_shapes,
    list_sizes,
    read_safetensors,
)
from gpt1.weights.released import ReleasedShapes, load_released, read_shapes

# The original's values, which are used if neither the user nor a file gives others.
DEFAULTS: dict[str, Any] = {"n_embd": 768, "n_head": 12, "n_layer": 12, "afn": "gelu"}


class Fact(NamedTuple):
    """A value that a file records, and the name of the file for messages."""

    value: Any
    file: str


Facts = Mapping[str, Fact]


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model in files of any layout.

    Attributes:
        path: the directory, or the file with a full parameter list.
        facts: ``n_embd`` and ``n_layer``, and ``n_head`` and ``afn`` if files record them.
        sizes: all sizes that the files of a directory record; None for a full parameter list.
        arrays: the arrays of a full parameter list, which had to be read to find its sizes; empty
            for a directory.
        n_classes: number of outputs of the classifier; 1 if there is none.
        task: the record of the task that the model was trained on; None if no file has one.
    """

    path: Path
    facts: Facts
    sizes: ReleasedShapes | HubConfig | None = None
    arrays: Sequence[Array] = ()
    n_classes: int = 1
    task: TaskRecord | None = None

    @property
    def is_list(self) -> bool:
        """Whether the model is a full parameter list, which has special rows and a classifier."""
        return self.sizes is None

    def rows(self, n_vocab: int, encoder_path: str | Path) -> tuple[int, int]:
        """Find how many special rows (0 or 3) and how many position rows ``we`` has.

        Args:
            n_vocab: number of tokens in the vocabulary.
            encoder_path: the file of the vocabulary, for messages.

        Raises:
            InputError: the model was trained with another vocabulary.
        """
        if isinstance(self.sizes, HubConfig):
            return n_special_rows(self.sizes, n_vocab, self.path), self.sizes.n_positions
        if isinstance(self.sizes, ReleasedShapes):
            if self.sizes.n_vocab != n_vocab:
                raise InputError(
                    f"{encoder_path} has {n_vocab} tokens, but {self.path / SHAPES_FILE} is for "
                    f"{self.sizes.n_vocab}; use the vocabulary that came with the weights"
                )
            return 0, self.sizes.n_ctx
        rows = len(self.arrays[0])
        n_ctx = rows - n_vocab - N_SPECIAL
        if not 0 < n_ctx <= _most_positions(Path(encoder_path).parent):
            raise InputError(
                f"{self.path}: {rows} rows of we are too {'few' if n_ctx <= 0 else 'many'} for the "
                f"{n_vocab} tokens of {encoder_path}; name the directory of the vocabulary it was "
                "trained with (on the command line with --model_dir)"
            )
        return N_SPECIAL, n_ctx

    def read(
        self,
        n_vocab: int,
        special: Array,
        *,
        n_ctx: int,
        n_transfer: int,
        classifier: bool = False,
        spell: Spelling = as_keyword,
    ) -> dict[str, Array]:
        """Read the requested arrays; from a full parameter list, all arrays.

        Args:
            n_vocab: number of tokens in the vocabulary.
            special: [n_special, n_embd], rows for the special tokens if the model has none.
            n_ctx: number of position rows to take, from the first.
            n_transfer: number of layers to take; with 0 only ``we`` is taken, with -1 nothing.
            classifier: whether to take a classifier, too.
            spell: how messages name ``n_ctx`` and ``n_transfer``.

        Returns:
            float32 arrays by the original's names, in its order and file shapes.

        Raises:
            InputError: a file is missing, damaged, or does not fit the others.
        """
        if self.is_list:
            names = list_shapes(1, 1, self.facts["n_layer"].value)
            return dict(zip(names, self.arrays, strict=True))
        asked: Any = {"special": special, "n_ctx": n_ctx, "n_transfer": n_transfer, "spell": spell}
        if isinstance(self.sizes, HubConfig):
            return load_hub(self.path, n_vocab=n_vocab, classifier=classifier, **asked)
        return load_released(self.path, **asked)


def _most_positions(model_dir: Path) -> float:
    """The most position rows that a list can have whose vocabulary is in this directory.

    The demo's vocabulary is taken where the user names none. A list that has more rows than a
    model of the demo was trained with another, larger vocabulary.
    """
    is_demo = is_demo_dir("model", model_dir) and is_released(model_dir)
    return read_shapes(model_dir).n_ctx if is_demo else float("inf")


def open_vocabulary(
    files: tuple[Path, Path], spell: Spelling, spacy_rules: str = "2.0"
) -> TextEncoder:
    """Open a vocabulary and its merges.

    Args:
        files: the files of the vocabulary and the merges.
        spell: how the message about a missing file names the argument for the directory.
        spacy_rules: see :class:`gpt1.text_utils.encoder.TextEncoder`.

    Raises:
        InputError: a file is missing or malformed.
    """
    remedy = f"name the directory of the model's vocabulary with {spell('vocabulary', 'DIR')}"
    for path in files:
        if problem := missing_vocabulary(path, remedy):
            raise InputError(problem)
    return TextEncoder(*files, spacy_rules=spacy_rules, check_merges=True)


def find_model(path: str | Path, model_dir: str | Path | None = None) -> StoredModel:
    """Find the model that a path names, and read the sizes that its files record.

    Args:
        path: a directory in the released layout or the hub's, a full parameter list (``.jl`` or
            ``.safetensors``), or the directory of a run with its ``best_params.jl``.
        model_dir: the directory with the vocabulary of a list. If files in it record the number of
            heads and the activation, these hold for the list [the directory of the list].

    Raises:
        InputError: there is no model, or a file is damaged.
    """
    list_path = list_file(path)
    if list_path is not None:
        return _find_list(list_path, Path(model_dir or list_path.parent))
    path = Path(path)
    require_model(path)
    if is_hub(path):
        config = read_config(path)
        file = str(path / HUB_CONFIG)
        facts = {name: Fact(getattr(config, name), file) for name in DEFAULTS}
        task = _task_in({TASK: config.task}, file, config.n_classes)
        return StoredModel(
            path=path, facts=facts, sizes=config, n_classes=config.n_classes, task=task
        )
    shapes = read_shapes(path)
    file = str(path / SHAPES_FILE)
    facts = {name: Fact(getattr(shapes, name), file) for name in ("n_embd", "n_layer")}
    return StoredModel(path=path, facts={**facts, **recorded(path)}, sizes=shapes)


def recorded(model_dir: Path) -> dict[str, Fact]:
    """Read what a directory says of its model besides sizes: ``n_head`` and perhaps ``afn``.

    Raises:
        InputError: the file that records them is damaged.
    """
    if is_hub(model_dir):
        config, file = read_config(model_dir), str(model_dir / HUB_CONFIG)
        return {name: Fact(getattr(config, name), file) for name in ("n_head", "afn")}
    file = str(model_dir / CONFIG_FILE)
    values = read_config_file(model_dir)
    return {name: Fact(values[name], file) for name in ("n_head", "afn") if name in values}


def _task_in(values: Mapping[str, Any], file: str | Path, n_classes: int) -> TaskRecord | None:
    """Return the record of a task in the settings that a file holds; None if there is none.

    Raises:
        InputError: it is damaged, or its target has another number of outputs than the classifier.
    """
    if values.get(TASK) is None:
        return None
    record = read_record(values[TASK], f"{file}: {TASK}")
    if record.target.n_outputs != n_classes:
        raise InputError(
            f"{file}: {TASK}: the target has {record.target.n_outputs} outputs, but the model's "
            f"classifier has {n_classes}; use the files of one model."
        )
    return record


def _find_list(path: Path, model_dir: Path) -> StoredModel:
    metadata, arrays = ({}, read_jl(path)) if path.suffix == ".jl" else read_safetensors(path)
    _, n_embd, n_layer, n_classes = list_sizes(arrays, path)
    file = f"{path}, which gives every parameter,"
    facts = {"n_embd": Fact(n_embd, file), "n_layer": Fact(n_layer, file), **recorded(model_dir)}
    config = _config_in(metadata)
    facts |= _facts_of_metadata(config, path)
    # Beside a list of another name there may be the configuration of another model.
    beside = path.name == RUN_LIST and read_config_file(path.parent)
    values, where = (beside, path.parent / CONFIG_FILE) if beside else (config, path)
    task = _task_in(values, where, n_classes)
    return StoredModel(path=path, facts=facts, arrays=arrays, n_classes=n_classes, task=task)


def _config_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in the metadata of a list, or nothing if another program wrote them."""
    try:
        config = json.loads(metadata.get(CONFIG_KEY, "{}"))
    except (ValueError, RecursionError):
        config = None
    return config if isinstance(config, dict) else {}


def _facts_of_metadata(config: Mapping[str, Any], path: Path) -> dict[str, Fact]:
    """Return the settings in the metadata of a list that are understood."""
    facts = {}
    if is_size(config.get("n_head")):
        facts["n_head"] = Fact(config["n_head"], str(path))
    if config.get("afn") in ACTIVATION_NAMES:
        facts["afn"] = Fact(config["afn"], str(path))
    return facts


def special_rows(stream: np.random.RandomState, n_embd: int) -> Array:
    """Draw the rows [3, n_embd] of special tokens that no file holds, as the original does."""
    return (stream.randn(N_SPECIAL, n_embd) * SPECIAL_STD).astype(np.float32)


# Sizes


def resolve(
    stored: StoredModel | None,
    given: Mapping[str, Any],
    *,
    fixed: Collection[str] = ("n_embd",),
    spell: Spelling = as_keyword,
) -> tuple[dict[str, Any], int]:
    """Decide the sizes, the activation and the number of layers to take from the stored model.

    A value that the user does not give is that of the stored model, or the original's if no file
    records it. As in the original, the model may have fewer or more layers than the stored one,
    and another number of heads: its first ``n_transfer`` layers are taken from the stored model,
    the others are fresh. From a full parameter list all layers are taken.

    Args:
        stored: the model to take parameters from; None if there is none.
        given: any of ``n_embd``, ``n_head``, ``n_layer``, ``afn`` and ``n_transfer``; None stands
            for a value that the user does not give.
        fixed: names of values that must equal those in files, if files record them.
        spell: how messages name a value.

    Returns:
        ``n_embd``, ``n_head``, ``n_layer`` and ``afn`` of the model to make, and ``n_transfer``,
        the number of layers that it takes from the stored one; -1 if it takes no parameter.

    Raises:
        InputError: a value contradicts a file or does not fit the others; the message has all such
            values.
    """
    given = {name: value for name, value in given.items() if value is not None}
    facts: Facts = {} if stored is None else stored.facts
    is_list = stored is not None and stored.is_list
    if is_list:
        fixed = (*fixed, "n_layer")
    elif given.get("n_transfer") == -1:
        fixed = ()
    sizes = DEFAULTS | {name: fact.value for name, fact in facts.items()}
    sizes |= {name: given[name] for name in DEFAULTS if name in given}
    problems = [*_size_problems(sizes, given, facts, fixed, spell)]
    depth = facts["n_layer"].value if "n_layer" in facts else 0
    most = min(sizes["n_layer"], depth)
    n_transfer = most if is_list else given.get("n_transfer", most)
    if n_transfer > most:
        problems.append(
            f"{spell('n_transfer', n_transfer)}: the model has {sizes['n_layer']} layers, the "
            f"checkpoint {depth}; give at most {most}"
        )
    if problems:
        raise InputError(join_problems(problems))
    return sizes, n_transfer


def _size_problems(
    sizes: Mapping[str, Any],
    given: Mapping[str, Any],
    facts: Facts,
    fixed: Collection[str],
    spell: Spelling,
) -> Iterator[str]:
    """Find sizes that are not allowed, contradict a file, or do not fit each other."""
    for item in settings_of(OpenSettings):
        if item.name in given and (message := item.problem(given[item.name])):
            yield f"{spell(item.name, given[item.name])}: {message}"
            return
    for name in [name for name in fixed if name in facts]:
        value, (recorded, file) = sizes[name], facts[name]
        if value != recorded:
            remedy = f"give {spell(name, recorded)}" if name == "afn" else "leave it out"
            yield f"{spell(name, value)}: {file} has {recorded}; {remedy}"
    n_embd, n_head = sizes["n_embd"], sizes["n_head"]
    if n_embd % n_head:
        by_file = "n_head" in facts and "n_head" not in given
        shown = f"{facts['n_head'].file}: n_head {n_head}" if by_file else spell("n_head", n_head)
        yield (
            f"{shown}: does not divide the width {n_embd}; give the number of heads the model was "
            "trained with"
        )
