"""A model in files, whatever their layout: what the files say of it, and the way to its arrays.

Every program opens a model by :func:`find_model`, and :func:`resolve` decides the sizes that the
user or a file may give.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.command import Spelling, as_keyword
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import ACTIVATION_NAMES, OpenSettings
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import N_SPECIAL, SPECIAL_STD
from gpt1.weights.hub import HubConfig, load_hub, n_special_rows, read_config
from gpt1.weights.jl import read_jl
from gpt1.weights.locate import (
    CONFIG_FILE,
    HUB_CONFIG,
    SHAPES_FILE,
    is_hub,
    is_size,
    list_file,
    missing_vocabulary,
    read_config_file,
)
from gpt1.weights.parameters import (
    CONFIG_KEY,
    Array,
    list_shapes,
    list_sizes,
    read_safetensors,
)
from gpt1.weights.released import ReleasedShapes, load_released, read_shapes

# The original's values, for what neither the user nor a file gives.
DEFAULTS: dict[str, Any] = {"n_embd": 768, "n_head": 12, "n_layer": 12, "afn": "gelu"}


class Fact(NamedTuple):
    """A value that a file gives, and the file, as a message names it."""

    value: Any
    file: str


Facts = Mapping[str, Fact]


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model in files: what they say of it, and the way to its arrays.

    Attributes:
        path: the directory, or the file with a full parameter list.
        facts: ``n_embd``, ``n_layer``, and where they are recorded ``n_head`` and ``afn``.
        sizes: what the file with the sizes says: of the released layout, or of the hub's.
        arrays: of a full parameter list, which had to be read to know its sizes.
    """

    path: Path
    facts: Facts
    sizes: ReleasedShapes | HubConfig | None = None
    arrays: Sequence[Array] = ()

    @property
    def is_list(self) -> bool:
        """Whether it is a full parameter list, which has special rows and a classifier."""
        return self.sizes is None

    def rows(self, n_vocab: int, encoder_path: str | Path) -> tuple[int, int]:
        """Find how many special rows (0 or 3) and how many position rows ``we`` has.

        Args:
            n_vocab: pieces in the vocabulary.
            encoder_path: the file of the vocabulary, for messages.

        Raises:
            InputError: the vocabulary is not the model's.
        """
        if isinstance(self.sizes, HubConfig):
            return n_special_rows(self.sizes, n_vocab, self.path), self.sizes.n_positions
        if isinstance(self.sizes, ReleasedShapes):
            if self.sizes.n_vocab != n_vocab:
                raise InputError(
                    f"{encoder_path} has {n_vocab} pieces, but {self.path / SHAPES_FILE} is for "
                    f"{self.sizes.n_vocab}; use the vocabulary that came with the weights"
                )
            return 0, self.sizes.n_ctx
        rows = len(self.arrays[0])
        if rows <= n_vocab + N_SPECIAL:
            raise InputError(
                f"{self.path}: {rows} rows of we are too few for the {n_vocab} pieces of "
                f"{encoder_path}; name the directory of the vocabulary it was trained with (on the "
                "command line with --model_dir)"
            )
        return N_SPECIAL, rows - n_vocab - N_SPECIAL

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
        """Read arrays, only those that are asked for; of a full list all.

        Args:
            n_vocab: pieces in the vocabulary.
            special: rows for the special tokens, where the model has none.
            n_ctx: position rows to take, from the first.
            n_transfer: layers to take; 0 takes ``we`` alone, -1 nothing.
            classifier: whether a classifier is taken, too.
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


def open_vocabulary(
    files: tuple[Path, Path], spell: Spelling, spacy_rules: str = "2.0"
) -> TextEncoder:
    """Open a vocabulary and its merges; if they are missing, the message says how to name them.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    remedy = f"name the directory of the model's vocabulary with {spell('vocabulary', 'DIR')}"
    for path in files:
        if problem := missing_vocabulary(path, remedy):
            raise InputError(problem)
    return TextEncoder(*files, spacy_rules=spacy_rules, check_merges=True)


def find_model(path: str | Path, model_dir: str | Path | None = None) -> StoredModel:
    """Find the model that a path names, and read what its files say of it.

    Args:
        path: a directory in the released layout or the hub's, a full parameter list (``.jl`` or
            ``.safetensors``), or the directory of a run with its ``best_params.jl``.
        model_dir: the directory with the vocabulary of a list, whose records of the number of
            heads and of the activation count for the list [the directory of the list].

    Raises:
        InputError: there is no model, or a file is damaged.
    """
    list_path = list_file(path)
    if list_path is not None:
        return _find_list(list_path, Path(model_dir or list_path.parent))
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file or directory")
    if is_hub(path):
        config = read_config(path)
        file = str(path / HUB_CONFIG)
        facts = {name: Fact(getattr(config, name), file) for name in DEFAULTS}
        return StoredModel(path=path, facts=facts, sizes=config)
    shapes = read_shapes(path)
    file = str(path / SHAPES_FILE)
    facts = {name: Fact(getattr(shapes, name), file) for name in ("n_embd", "n_layer")}
    return StoredModel(path=path, facts={**facts, **recorded(path)}, sizes=shapes)


def recorded(model_dir: Path) -> dict[str, Fact]:
    """Read what a directory says of its model besides sizes: ``n_head`` and perhaps ``afn``.

    Raises:
        InputError: such a file is damaged.
    """
    if is_hub(model_dir):
        config, file = read_config(model_dir), str(model_dir / HUB_CONFIG)
        return {name: Fact(getattr(config, name), file) for name in ("n_head", "afn")}
    file = str(model_dir / CONFIG_FILE)
    return {name: Fact(value, file) for name, value in read_config_file(model_dir).items()}


def _find_list(path: Path, model_dir: Path) -> StoredModel:
    metadata, arrays = ({}, read_jl(path)) if path.suffix == ".jl" else read_safetensors(path)
    _, n_embd, n_layer = list_sizes(arrays, path)
    file = f"{path}, which gives every parameter,"
    facts = {"n_embd": Fact(n_embd, file), "n_layer": Fact(n_layer, file), **recorded(model_dir)}
    facts |= _facts_of_metadata(metadata, path)
    return StoredModel(path=path, facts=facts, arrays=arrays)


def _facts_of_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Fact]:
    """What metadata of a list say; they may be another program's, so that all else is ignored."""
    try:
        config = json.loads(metadata.get(CONFIG_KEY, "{}"))
    except (ValueError, RecursionError):
        config = None
    facts = {}
    if isinstance(config, dict):
        if is_size(config.get("n_head")):
            facts["n_head"] = Fact(config["n_head"], str(path))
        if config.get("afn") in ACTIVATION_NAMES:
            facts["afn"] = Fact(config["afn"], str(path))
    return facts


def special_rows(stream: np.random.RandomState, n_embd: int) -> Array:
    """Draw rows [3, n_embd] for special tokens that no file holds, as the original does."""
    return (stream.randn(N_SPECIAL, n_embd) * SPECIAL_STD).astype(np.float32)


# Sizes


def resolve(
    stored: StoredModel | None,
    given: Mapping[str, Any],
    *,
    fixed: Collection[str] = ("n_embd",),
    spell: Spelling = as_keyword,
) -> tuple[dict[str, Any], int]:
    """Decide what the user left open: sizes, activation, and how many layers are taken.

    A value that the user does not give is the stored model's, or the original's where no file
    gives it either. As in the original, the model may have fewer or more layers than the stored
    one, and another number of heads: its first ``n_transfer`` layers are the stored ones, all
    others are fresh. A full parameter list gives all layers there are.

    Args:
        stored: the model to take parameters from, if there is one.
        given: any of ``n_embd``, ``n_head``, ``n_layer``, ``afn`` and ``n_transfer``; None stands
            for a value that is not given.
        fixed: the names of which the user may not contradict a file.
        spell: how messages name a value.

    Returns:
        ``n_embd``, ``n_head``, ``n_layer`` and ``afn`` of the model to make, and ``n_transfer``,
        how many layers it takes from the stored one; -1: nothing, embeddings neither.

    Raises:
        InputError: with every value that contradicts a file or does not fit the others.
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
    """Find sizes that cannot be, contradict a file, or do not fit each other."""
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
