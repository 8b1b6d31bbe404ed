"""Find the files that a run reads: the user's files, or the bundled demo."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from gpt1.runtime.demo import demo_dir, is_demo_dir
from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.groups import SourceSettings
from gpt1.tasks import Task
from gpt1.weights import locate


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a run reads from, after the demo's rule has been applied.

    Attributes:
        data_dir, model_dir, encoder_path, bpe_path: existing places to read.
        demo: whether this is the bundled demo, which has settings of its own.
    """

    data_dir: Path
    model_dir: Path
    encoder_path: Path
    bpe_path: Path
    demo: bool


def find_sources(settings: SourceSettings, task: Task) -> Sources:
    """Decide between the user's files and the demo.

    The demo runs if neither directory is named and ``data/`` has none of the task's files, and if
    no other directory than the demo's is named. It has files of one data set, ROCStories; for any
    other, the data are in ``data/`` if no directory is named. What is named and missing, or real
    data without weights, is an error. Examples that are read already have no directory; it is the
    demo then if its model is named.

    Args:
        settings: the run's settings.
        task: the data set.

    Raises:
        InputError: a file is missing; the message has all missing files and what to do about them.
    """
    demo = _is_demo(settings, task)
    usual = (demo_dir("data") if demo else "data") if task.files else "."
    data_dir = task.folder(settings.data_dir or usual)
    model_dir = Path(settings.model_dir or (demo_dir("model") if demo else "model"))
    vocabulary, merges = locate.vocabulary_files(model_dir)
    sources = Sources(
        data_dir=data_dir,
        model_dir=model_dir,
        encoder_path=Path(settings.encoder_path or vocabulary),
        bpe_path=Path(settings.bpe_path or merges),
        demo=demo,
    )
    problems = _missing_data(sources, task) + _missing_model(settings, sources)
    if problems:
        raise InputError(join_problems(problems))
    return sources


def _is_demo(settings: SourceSettings, task: Task) -> bool:
    """Whether the settings stand for the bundled demo."""
    if not task.files:
        return settings.model_dir is not None and is_demo_dir("model", settings.model_dir)
    if not task.is_in(demo_dir("data")):
        return False
    named = []
    if settings.data_dir is not None:
        named.append(is_demo_dir("data", settings.data_dir))
    if settings.model_dir is not None:
        named.append(is_demo_dir("model", settings.model_dir))
    if named:
        return all(named)
    return not task.is_in(task.folder("data"))


def _missing_data(sources: Sources, task: Task) -> list[str]:
    """A problem if the run lacks files of the data set."""
    problem = task.problem(sources.data_dir)
    return [] if problem is None else [problem]


def _missing_model(settings: SourceSettings, sources: Sources) -> list[str]:
    """A problem for each part of the model that the run needs and cannot find."""
    needs_weights = settings.init_params is None and settings.n_transfer != -1
    names = (*locate.RELEASED_FILES, locate.HUB_CONFIG)
    has_own = settings.encoder_path is not None and settings.bpe_path is not None
    if not has_own and not any(os.path.isfile(sources.model_dir / name) for name in names):
        what = "pretrained model" if needs_weights else "vocabulary"
        return [
            f"{sources.model_dir}/ has no {what}: fetch the released model with "
            f"'{_download(sources.model_dir)}', or name the directory of a model with --model_dir",
            *_wrong_init_params(settings.init_params),
        ]
    problems = []
    for flag, path in (
        ("--encoder_path", sources.encoder_path),
        ("--bpe_path", sources.bpe_path),
    ):
        remedy = f"name it with {flag}, or its directory with --model_dir"
        if problem := locate.missing_vocabulary(path, remedy):
            problems.append(problem)
    problems += _wrong_init_params(settings.init_params)
    return problems + (_missing_weights(sources.model_dir) if needs_weights else [])


def _download(model_dir: Path) -> str:
    """The command that fetches the released model into a directory."""
    place = "" if model_dir == Path("model") else f" --model_dir {shlex.quote(str(model_dir))}"
    return f"gpt1 download{place}"


def _wrong_init_params(path: str | None) -> list[str]:
    """A problem if a path is neither a parameter list nor the directory of a run with one."""
    if path is None:
        return []
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
    """Return a problem if a directory has no pretrained model, in either layout."""
    if locate.is_hub(model_dir):
        try:
            locate.hub_weights(model_dir)
        except InputError as error:
            return [str(error)]
    elif not locate.is_released(model_dir):
        return [
            f"{model_dir}/ has no weights (params_shapes.json, params_0.npy ... "
            f"params_9.npy): fetch the released ones with '{_download(model_dir)}', name their "
            "directory or one from the model hub with --model_dir, or train from fresh "
            "parameters with --n_transfer -1"
        ]
    return []
