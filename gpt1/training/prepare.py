"""From settings and files to what a run needs: the data as arrays, and the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gpt1.batches import arrays as batches
from gpt1.batches.arrays import ChoiceArrays, EncodedCloze
from gpt1.datasets import story_cloze as datasets
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.training import Settings, Sources
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import N_SPECIAL, SPECIAL_STD, SpecialTokens
from gpt1.weights import hub
from gpt1.weights import released as weights


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set ready for the model.

    Attributes:
        train, valid, test: the splits, train in loaded order.
        n_vocab: pieces in the vocabulary.
        n_ctx: T, the longest sequence in tokens.
    """

    train: ChoiceArrays
    valid: ChoiceArrays
    test: ChoiceArrays
    n_vocab: int
    n_ctx: int

    def sha256(self) -> str:
        """A digest of all arrays, by which a resumed run knows its data again."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            for array in (split.X, split.M, split.Y):
                digest.update(b"none" if array is None else array.tobytes())
        return digest.hexdigest()


def load_task(settings: Settings, sources: Sources, *, verbose: bool) -> Task:
    """Read and encode ROCStories (FIDELITY, 1 to 6).

    Args:
        settings: for ``n_ctx`` and ``spacy_rules``.
        sources: where data and vocabulary are.
        verbose: whether a progress bar may be shown.

    Raises:
        InputError: a CSV, the vocabulary or the merges are not what they should be.
    """
    splits = datasets.rocstories(sources.data_dir)
    encoder = TextEncoder(
        sources.encoder_path,
        sources.bpe_path,
        spacy_rules=settings.spacy_rules,
        check_merges=True,
    )
    train, valid, test = (_encode(split, encoder, verbose) for split in splits)
    test = test._replace(labels=None)  # a run does not look at them
    n_vocab = len(encoder.encoder)
    special = SpecialTokens.after(n_vocab)
    n_ctx = batches.context_length((train, valid, test), settings.n_ctx)
    max_len = batches.max_part_length(settings.n_ctx)

    def arrays(split: EncodedCloze) -> ChoiceArrays:
        return batches.transform_roc(split, special, n_ctx=n_ctx, max_len=max_len)

    return Task(
        train=arrays(train), valid=arrays(valid), test=arrays(test), n_vocab=n_vocab, n_ctx=n_ctx
    )


def _encode(split: datasets.Cloze, encoder: TextEncoder, verbose: bool) -> EncodedCloze:
    stories, endings1, endings2 = (
        encoder.encode(texts, verbose=verbose)
        for texts in (split.stories, split.endings1, split.endings2)
    )
    return EncodedCloze(stories, endings1, endings2, split.labels)


def resolve(settings: Settings, sources: Sources, task: Task) -> tuple[Settings, ModelConfig]:
    """Decide the model's sizes and how many layers it takes from the checkpoint.

    A size that no flag gives is the checkpoint's, or the original's where there is no checkpoint.
    As in the original, the model may have fewer or more layers than the checkpoint, and another
    number of heads: its first ``n_transfer`` layers are the checkpoint's, all others are fresh.

    Returns:
        The settings with numbers for ``n_embd``, ``n_head``, ``n_layer`` and ``n_transfer``, and
        the model's configuration.

    Raises:
        InputError: a flag contradicts the checkpoint, or sizes do not fit together.
    """
    known = _checkpoint_sizes(settings, sources, task)
    sizes, problems = _model_sizes(settings, known)
    depth, _ = known.get("n_layer", (0, ""))
    n_transfer, more_problems = _layers_to_take(settings, sizes["n_layer"], depth)
    problems += more_problems
    if n_transfer != -1:
        problems += _activation_problem(settings, sources)
    if problems:
        raise InputError(join_problems(problems))
    config = ModelConfig(
        n_vocab=task.n_vocab,
        n_special=N_SPECIAL,
        n_ctx=task.n_ctx,
        **sizes,
        embd_pdrop=settings.embd_pdrop,
        attn_pdrop=settings.attn_pdrop,
        resid_pdrop=settings.resid_pdrop,
        clf_pdrop=settings.clf_pdrop,
        afn=settings.afn,
    )
    decided = replace(
        settings,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        n_transfer=n_transfer,
    )
    return decided, config


def notes(given: Settings, used: Settings, sources: Sources) -> list[str]:
    """Say of flags that are allowed what may not be meant, one line each.

    Args:
        given: the settings as given.
        used: the settings that :func:`resolve` made of them.
        sources: where the checkpoint is.
    """
    assert used.n_transfer is not None
    found = []
    heads, source = _heads(sources.model_dir).get("n_head", (used.n_head, ""))
    if used.n_transfer > 0 and heads != used.n_head:
        found.append(
            f"--n_head {used.n_head}: according to {source} the layers that are taken were "
            f"trained with {heads} heads"
        )
    if given.n_transfer not in (None, used.n_transfer):
        found.append(
            f"--n_transfer {given.n_transfer} has no effect: --init_params gives all "
            f"{used.n_transfer} layers"
        )
    return found


def _model_sizes(
    settings: Settings, known: dict[str, tuple[int, str]]
) -> tuple[dict[str, int], list[str]]:
    """Width, heads and layers of the model, and a problem for each that cannot be.

    Args:
        settings: for the flags.
        known: what :func:`_checkpoint_sizes` found.
    """
    # The width must fit every array that is taken. A full list gives all layers there are.
    fixed = ["n_embd"] if settings.n_transfer != -1 else []
    fixed = ["n_embd", "n_layer"] if settings.init_params is not None else fixed
    problems = []
    sizes = {"n_embd": 768, "n_head": 12, "n_layer": 12}
    for name in sizes:
        flag: int | None = getattr(settings, name)
        value, source = known.get(name, (None, None))
        if name in fixed and flag is not None and value is not None and flag != value:
            problems.append(f"--{name} {flag}: {source} has {value}; leave the flag out")
        sizes[name] = flag or value or sizes[name]
    if sizes["n_embd"] % sizes["n_head"]:
        given = settings.n_head is not None or "n_head" not in known
        name = "--n_head" if given else f"{known['n_head'][1]}: n_head"
        problems.append(
            f"{name} {sizes['n_head']}: does not divide the width {sizes['n_embd']}; give the "
            "number of heads the model was trained with"
        )
    return sizes, problems


def _layers_to_take(settings: Settings, n_layer: int, depth: int) -> tuple[int, list[str]]:
    """Decide what ``n_transfer`` is, and name the problem if it cannot be so many.

    Without the flag it is as many layers as the model and the checkpoint both have. With
    ``init_params``, which gives all layers, it is their number, whatever the flag says.

    Args:
        settings: for both flags.
        n_layer: layers of the model.
        depth: layers of the checkpoint, 0 where there is none.
    """
    most = min(n_layer, depth)
    if settings.n_transfer is None or settings.init_params is not None:
        return most, []
    if settings.n_transfer > most:
        return settings.n_transfer, [
            f"--n_transfer {settings.n_transfer}: the model has {n_layer} layers, the checkpoint "
            f"{depth}; give at most {most}"
        ]
    return settings.n_transfer, []


def _activation_problem(settings: Settings, sources: Sources) -> list[str]:
    """A problem if a hub directory names another activation than the flag."""
    if not hub.is_hub(sources.model_dir):
        return []
    afn = hub.read_config(sources.model_dir).afn
    if settings.afn == afn:
        return []
    source = sources.model_dir / hub.CONFIG
    return [f"--afn {settings.afn}: {source} has {afn}; give --afn {afn}"]


def _checkpoint_sizes(
    settings: Settings, sources: Sources, task: Task
) -> dict[str, tuple[int, str]]:
    """Sizes that files give, each with the file that does."""
    known: dict[str, tuple[int, str]] = {}
    if settings.init_params is not None:
        path = settings.init_params
        listed = weights.config_of_list(weights.read_params(path), path)
        source = f"--init_params {path}, which gives every parameter,"
        known = {"n_embd": (listed.n_embd, source), "n_layer": (listed.n_layer, source)}
    elif hub.is_hub(sources.model_dir):
        config = hub.read_config(sources.model_dir)
        source = str(sources.model_dir / hub.CONFIG)
        if settings.n_transfer != -1:
            hub.n_special_rows(config, task.n_vocab, sources.model_dir)
        known = {"n_embd": (config.n_embd, source), "n_layer": (config.n_layer, source)}
    elif settings.n_transfer != -1 or (sources.model_dir / weights.SHAPES_FILE).is_file():
        shapes = weights.read_shapes(sources.model_dir)
        source = str(sources.model_dir / weights.SHAPES_FILE)
        if shapes.n_vocab != task.n_vocab and settings.n_transfer != -1:
            raise InputError(
                f"{sources.encoder_path} has {task.n_vocab} pieces, but {source} is for "
                f"{shapes.n_vocab}; use the vocabulary that came with the weights"
            )
        known = {"n_embd": (shapes.n_embd, source), "n_layer": (shapes.n_layer, source)}
    else:
        return known
    return known | _heads(sources.model_dir)


def _heads(model_dir: Path) -> dict[str, tuple[int, str]]:
    """``n_head`` with the file that records it, where one does."""
    if hub.is_hub(model_dir):
        return {"n_head": (hub.read_config(model_dir).n_head, str(model_dir / hub.CONFIG))}
    n_head = weights.read_n_head(model_dir)
    return {} if n_head is None else {"n_head": (n_head, str(model_dir / weights.CONFIG_FILE))}


def build_model(
    settings: Settings, sources: Sources, config: ModelConfig, stream: np.random.RandomState
) -> DoubleHeadsModel:
    """A model with fresh parameters, then those of the checkpoint (FIDELITY, 12, 13 and 18).

    Args:
        settings: those that :func:`resolve` made, for ``seed``, ``n_transfer`` and
            ``init_params``.
        sources: where the checkpoint is.
        config: the model's sizes.
        stream: the run's NumPy stream; the special tokens' rows are drawn from it, whether
            they are used or not. A hub directory that has such rows keeps its own.
    """
    special = (stream.randn(config.n_special, config.n_embd) * SPECIAL_STD).astype(np.float32)
    if settings.init_params is not None:
        path = Path(settings.init_params)
        model = DoubleHeadsModel(config)
        weights.from_list(model, weights.read_params(path), str(path))
        return model
    n_ctx, n_transfer, model_dir = config.n_ctx, settings.n_transfer, sources.model_dir
    if n_transfer is None:
        raise ValueError("n_transfer must be a number; resolve() decides it")
    if hub.is_hub(model_dir):
        loaded = hub.load_hub(
            model_dir, n_vocab=config.n_vocab, special=special, n_ctx=n_ctx, n_transfer=n_transfer
        )
    else:
        loaded = weights.load_released(
            model_dir, special=special, n_ctx=n_ctx, n_transfer=n_transfer
        )
    model = DoubleHeadsModel(config)
    model.init_parameters(torch.Generator().manual_seed(settings.seed))
    weights.apply(model, loaded)
    return model
