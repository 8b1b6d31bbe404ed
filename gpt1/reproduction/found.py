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

_KEPT_MODEL = re.compile(r"model-(\d+)")
_SAMPLE = 1 << 16  # bytes of a file's beginning and end by which files are told apart


def find_tasks(settings: ReproductionSettings, notes: list[str]) -> list[Task]:
    """Return the tasks to run on: those that are named, else those whose data are there.

    Args:
        settings: the settings.
        notes: gets a line on each data set of which only a part is there.

    Raises:
        InputError: no data set is named, and none or several may be there without a folder.
    """
    base = settings.data_dir or "data"
    if settings.tasks is not None:
        return [TASKS[name] for name in split_names(settings.tasks)]
    found = []
    for task in TASKS.values():
        if not any(map(task.is_in, (Path(base, name) for name in task.folders))):
            continue
        if missing := task.missing(task.folder(base)):
            names = " and ".join(missing)
            notes.append(f"{task.name} is left out: {task.folder(base)}/ has no {names}")
        else:
            found.append(task)
    if any(task.name == "race" for task in found):  # It has the questions of both levels.
        found = [task for task in found if task.name not in ("race-middle", "race-high")]
    found = found or [task for task in TASKS.values() if not task.missing(base)]
    if len(found) == 1 or (found and found[0].folder(base) != Path(base)):
        return found
    demo = [task for task in TASKS.values() if not task.missing(demo_dir("data"))]
    if demo and not found and _may_be_demo(settings):
        return demo
    several = f"its files may be those of {', '.join(task.name for task in found)}: "
    raise InputError(
        f"{base}/ has no folder of a data set such as RTE or rte: {several if found else ''}"
        "name the directory of these folders with --data_dir, or the data sets with --tasks"
    )


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


def kept_models(directory: Path) -> dict[int, Path]:
    """Return the models that a run of pretraining kept, by their numbers of updates.

    Raises:
        InputError: there is none.
    """
    with read_errors(directory, "the directory of kept models"):
        names = sorted(os.listdir(directory))
    found = {
        int(match[1]): directory / name for name in names if (match := _KEPT_MODEL.fullmatch(name))
    }
    if not found:
        raise InputError(
            f"--checkpoints {directory}: has no model-NNNNNNNN; name SAVE_DIR/DESC of a run of "
            "gpt1 pretrain with --keep_every"
        )
    return dict(sorted(found.items()))


def data_digest(task: Task, folder: Path) -> str:
    """Return a digest of the files of a data set."""
    there = [folder / name for form in task.files for name in form if (folder / name).exists()]
    return fingerprint(there)


def model_files(model_dir: Path, vocabulary: Iterable[Path]) -> list[Path]:
    """Return the files of a pretrained model that are there, of either layout."""
    weights = (locate.HUB_SAFETENSORS, locate.HUB_PICKLE, *locate.SHARDS)
    names = (locate.SHAPES_FILE, locate.CONFIG_FILE, locate.HUB_CONFIG, *weights)
    return [path for path in (*vocabulary, *(model_dir / name for name in names)) if path.is_file()]


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a digest that tells files apart by their names, sizes, beginnings and ends.

    Of a directory the names in it count.

    Raises:
        InputError: one of them cannot be read.
    """
    found: list[Any] = []
    for path in dict.fromkeys(paths):
        with read_errors(path, "the file"):
            if path.is_dir():
                found.append([path.name, sorted(os.listdir(path))])
                continue
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
