"""Where a run reads from: the user's files, or the bundled demo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.groups import SourceSettings
from gpt1.tasks import Task
from gpt1.weights import locate

DEMO = "demo"
"""The directory of the bundled demo, in data/ and in model/."""


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


def find_sources(settings: SourceSettings, task: Task) -> Sources:
    """Decide between the user's files and the demo.

    The demo runs if neither directory is named and ``data/`` has none of the task's files. What is
    named and missing, or real data without weights, is an error.

    Args:
        settings: the run's settings.
        task: the data set.

    Raises:
        InputError: with every missing file and what to do about it.
    """
    data_dir = Path(settings.data_dir or "data")
    model_dir = Path(settings.model_dir or "model")
    found = [name for name in task.files if os.path.isfile(data_dir / name)]
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
    problems = _missing_files(settings, sources, task)
    if problems:
        raise InputError(join_problems(problems))
    return sources


def _missing_files(settings: SourceSettings, sources: Sources, task: Task) -> list[str]:
    """A problem for each kind of file that the run needs and cannot find."""
    problems = []
    missing = [name for name in task.files if not os.path.isfile(sources.data_dir / name)]
    if missing:
        names = " and ".join(f"'{name}'" for name in missing)
        if sources.demo:  # the rest of the demo is not there either
            return [
                f"neither data/ nor {sources.data_dir}/ has {names}: run from the repository's "
                "root, or give --data_dir and --model_dir"
            ]
        problems.append(
            f"{sources.data_dir}/ has no {names}: {task.remedy}, or name their directory with "
            "--data_dir"
        )
    for flag, path in (
        ("--encoder_path", sources.encoder_path),
        ("--bpe_path", sources.bpe_path),
    ):
        remedy = f"name it with {flag}, or its directory with --model_dir"
        if problem := locate.missing_vocabulary(path, remedy):
            problems.append(problem)
    if settings.init_params is not None:
        problems += _wrong_init_params(settings.init_params)
    elif settings.n_transfer != -1:
        problems += _missing_weights(sources.model_dir)
    return problems


def _wrong_init_params(path: str) -> list[str]:
    """A problem if a path is neither a parameter list nor the directory of a run with one."""
    try:
        file = locate.list_file(path)
    except InputError as error:
        return [f"--init_params {error}"]
    if file is None and os.path.isdir(path):
        return [
            f"--init_params {path}: this directory has no {locate.RUN_LIST}; name a .jl or "
            ".safetensors file, or the directory of a run with --submit; a model directory is "
            "named with --model_dir"
        ]
    if file is None or not os.path.isfile(file):
        return [
            f"--init_params {path}: there is no such file; give the path of a .jl or .safetensors "
            "file"
        ]
    return []


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
