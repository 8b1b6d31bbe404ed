"""Find what a reproduction can run on: data sets, kept models, and what tells them apart."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt1.datasets import TASKS
from gpt1.runtime.demo import demo_dir, is_demo_dir
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_errors
from gpt1.settings.reproduction import ReproductionSettings, split_names
from gpt1.tasks import Task
from gpt1.weights import locate

DEMO = "demo-"
"""How the digest of the demo's data begins."""

_KEPT_MODEL = re.compile(r"model-(\d+)")
_SAMPLE = 1 << 16  # bytes of the beginning and of the end by which files of weights are told apart
_BLOCK = 1 << 20  # bytes that are read at a time


def find_tasks(settings: ReproductionSettings, notes: list[str]) -> list[Task]:
    """Return the tasks to run on: those that are named, else those whose data are there.

    Args:
        settings: the settings.
        notes: gets a line on each data set of which only a part is there, and on files that may be
            those of several data sets.

    Raises:
        InputError: no data set is named, and none is found, or only files that may be those of
            several data sets.
    """
    base = Path(settings.data_dir or "data")
    if settings.tasks is not None:
        return [TASKS[name] for name in split_names(settings.tasks)]
    found = [task for task in TASKS.values() if _is_found(task, base, notes)]
    if any(task.name == "race" for task in found):  # It has the questions of both levels.
        found = [task for task in found if task.name not in ("race-middle", "race-high")]
    unsure = [
        task
        for task in TASKS.values()
        if task.folder(base) == base and not task.missing(base) and not _is_certain(task, base)
    ]
    names = ", ".join(task.name for task in unsure)
    if found:
        if unsure:
            notes.append(
                f"files directly in {base}/ are left out: they may be those of {names}; move them "
                "into a folder with the name of their data set"
            )
        return found
    demo = [task for task in TASKS.values() if not task.missing(demo_dir("data"))]
    if demo and not unsure and _may_be_demo(settings):
        return demo
    several = f"its files may be those of {names}: " if unsure else ""
    raise InputError(
        f"{base}/ has no folder of a data set such as RTE or rte: {several}"
        "name the directory of these folders with --data_dir, or the data sets with --tasks"
    )


def _is_found(task: Task, base: Path, notes: list[str]) -> bool:
    """Return whether a data set is in its folder in ``base``, or certainly in ``base`` itself."""
    folder = task.folder(base)
    if folder == base:
        return _is_certain(task, base)
    if missing := task.missing(folder):
        notes.append(f"{task.name} is left out: {folder}/ has no {' and '.join(missing)}")
    return not missing


def _is_certain(task: Task, folder: Path) -> bool:
    """Return whether files that no other data set has show that a data set is in a folder.

    Several data sets of GLUE have files of the same names, ``train.tsv``, ``dev.tsv`` and
    ``test.tsv``.
    """
    others = {form for other in TASKS.values() if other is not task for form in other.files}
    own = [form for form in task.files if form not in others]
    return any(all((folder / name).exists() for name in form) for form in own)


def _may_be_demo(settings: ReproductionSettings) -> bool:
    """Whether the demo may take the place of data, as in fine-tuning."""
    if settings.data_dir is not None:
        return is_demo_dir("data", settings.data_dir)
    return settings.model_dir is None or is_demo_dir("model", settings.model_dir)


def zeroshot_folder(settings: ReproductionSettings, task: Task) -> Path:
    """Return the folder of a data set for zero-shot prediction.

    Raises:
        InputError: files are missing.
    """
    demo = demo_dir("data")
    folder = task.folder(settings.data_dir or "data")
    if settings.data_dir is None and task.missing(folder) and not task.missing(demo):
        return demo
    if missing := task.missing(folder):
        raise InputError(
            f"{folder}/ has no {' and '.join(missing)}: {task.remedy}, or name their directory "
            "with --data_dir"
        )
    return folder


def kept_models(directory: Path, notes: list[str]) -> dict[int, Path]:
    """Return the models that a run of pretraining kept, by their numbers of updates.

    Args:
        directory: the directory of the run.
        notes: gets a line on each model that is not complete, as while it is being written.

    Raises:
        InputError: there is none.
    """
    with read_errors(directory, "the directory of kept models"):
        names = sorted(os.listdir(directory))
    found = {
        int(match[1]): directory / name for name in names if (match := _KEPT_MODEL.fullmatch(name))
    }
    for number, model in list(found.items()):
        if not locate.is_released(model):  # Its table is the file that is written last.
            notes.append(f"{model} is left out: it has no {locate.SHAPES_FILE}, so it is a part")
            del found[number]
    if not found:
        raise InputError(
            f"--checkpoints {directory}: has no complete model-NNNNNNNN; name SAVE_DIR/DESC of "
            "a run of gpt1 pretrain with --keep_every"
        )
    return dict(sorted(found.items()))


def data_digest(task: Task, folder: Path) -> str:
    """Return a digest of all files of a data set, of their names and their whole contents.

    That of the bundled demo begins with :data:`DEMO`.

    Raises:
        InputError: a file cannot be read.
    """
    found = []
    for name in dict.fromkeys(name for form in task.files for name in form):
        with read_errors(folder / name, "the file"):
            for path in _files_of(folder / name):
                found.append([path.relative_to(folder).as_posix(), _digest_of(path)])
    return (DEMO if is_demo_dir("data", folder) else "") + digest(found)


def _files_of(path: Path) -> list[Path]:
    """Return a file that exists, or all files in a directory, as RACE has them."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    return [path] if path.exists() else []


def _digest_of(path: Path) -> str:
    """Return a digest of the whole content of a file."""
    made = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest()


def model_files(model_dir: Path, vocabulary: Iterable[Path]) -> list[Path]:
    """Return the files of a pretrained model that are there, of either layout."""
    weights = (locate.HUB_SAFETENSORS, locate.HUB_PICKLE, *locate.SHARDS)
    names = (locate.SHAPES_FILE, locate.CONFIG_FILE, locate.HUB_CONFIG, *weights)
    return [path for path in (*vocabulary, *(model_dir / name for name in names)) if path.is_file()]


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a digest that tells files of weights apart by names, sizes, beginnings and ends.

    Other weights differ everywhere, so that large files need not be read whole.

    Raises:
        InputError: one of them cannot be read.
    """
    found: list[Any] = []
    for path in dict.fromkeys(paths):
        with read_errors(path, "the file"):
            size = path.stat().st_size
            with open(path, "rb") as file:
                sample = file.read(_SAMPLE)
                file.seek(max(0, size - _SAMPLE))
                sample += file.read(_SAMPLE)
        found.append([path.name, size, hashlib.sha256(sample).hexdigest()])
    return digest(found)


def digest(value: Any) -> str:
    """Return eight hexadecimal digits that tell JSON values apart."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
