"""Plan the runs of a reproduction: which data sets there are, and what is run on each of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt1.datasets import TASKS
from gpt1.runtime.demo import demo_dir, is_demo_dir
from gpt1.runtime.errors import InputError, join_problems
from gpt1.runtime.files import read_errors
from gpt1.settings.reproduction import (
    FULL,
    LAYERS,
    NO_LM,
    NO_PRETRAINING,
    ZEROSHOT,
    ReproductionSettings,
    split_names,
)
from gpt1.settings.training import TRAIN, Settings, from_keywords
from gpt1.tasks import Task
from gpt1.training.sources import find_sources
from gpt1.weights import locate
from gpt1.weights.stored import find_model

FLAGS_OF: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    NO_PRETRAINING: {"n_transfer": -1},
    NO_LM: {"lm_coef": 0.0},
}
"""The flags of fine-tuning by which an experiment of table 5 differs from full fine-tuning."""

IN_FIGURE_2 = ("race", "race-middle", "race-high", "mnli")
"""The data sets of figure 2, left: RACE, or one level of it, and MultiNLI."""

ZEROSHOT_TASKS = ("cola", "sst2", "race", "race-middle", "race-high", "rocstories")
"""The data sets for which there is a way to predict without fine-tuning (figure 2, right)."""

_KEPT_MODEL = re.compile(r"model-(\d+)")
_SAMPLE = 1 << 16  # bytes of a file's beginning and end by which files are told apart
_SIZES = ("n_embd", "n_head", "n_layer", "fast")  # may change on --resume, but change the results


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a reproduction.

    Attributes:
        what: the experiment.
        dataset: the value of ``--dataset``.
        flags: the arguments of ``fine_tune``, or of ``zeroshot``, besides the data set and the
            places of the results.
        seed: the seed of fine-tuning; None for zero-shot prediction.
        n_transfer: the number of layers transferred in the experiment ``layers``, else None.
        n_updates: the updates of pretraining before zero-shot prediction, else None.
        series: for zero-shot prediction the name of the run of pretraining, else empty.
        configuration: a digest of the model and of the settings that all seeds and experiments
            share. Scores with the same configuration can be compared.
        settings: these settings, as far as they are not the defaults.
        data: a digest of the files of the data set.
    """

    what: str
    dataset: str
    flags: Mapping[str, Any]
    seed: int | None = None
    n_transfer: int | None = None
    n_updates: int | None = None
    series: str = ""
    configuration: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str

    @property
    def name(self) -> str:
        """The name of the run and of its files; runs with equal names give equal results."""
        if self.what == ZEROSHOT:
            parts = [self.dataset, self.what, f"{self.n_updates:08d}"]
        else:
            layers = "" if self.n_transfer is None else str(self.n_transfer)
            parts = [self.dataset, self.what + layers, f"seed{self.seed}"]
        return "-".join([*parts, _digest([self.configuration, self.data])])

    def with_flags(self, **flags: Any) -> PlannedRun:
        """Return the same run with further flags."""
        return replace(self, flags={**self.flags, **flags})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to run.

    Attributes:
        runs: in the order in which they are made.
        notes: what was left out, and why.
    """

    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...]


def make_plan(settings: ReproductionSettings) -> Plan:
    """Plan all runs that the settings ask for.

    Fine-tuning goes seed by seed, so that every experiment soon has a first result. The last point
    of the experiment ``layers``, all layers, is the run of full fine-tuning.

    Raises:
        InputError: there are no data, a file is missing, or there are no checkpoints.
    """
    notes: list[str] = []
    tasks = find_tasks(settings, notes)
    experiments = settings.experiments()
    of_layers = _tasks_of_layers(settings, tasks, notes) if LAYERS in experiments else []
    runs: list[PlannedRun] = []
    if ZEROSHOT in experiments:
        runs += _zeroshot_runs(settings, tasks, notes)
    if experiments != (ZEROSHOT,):
        runs += _fine_tuning_runs(settings, tasks, of_layers)
    if not runs:
        raise InputError(join_problems(["there is nothing to run", *notes]))
    return Plan(runs=tuple(runs), notes=tuple(notes))


def _fine_tuning_runs(
    settings: ReproductionSettings, tasks: Sequence[Task], of_layers: Sequence[Task]
) -> Iterator[PlannedRun]:
    """Plan fine-tuning seed by seed, the experiment ``layers`` after the others."""
    experiments = settings.experiments()
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    chosen = {
        task.name: [
            what for what in FLAGS_OF if what in experiments or (what == FULL and task in of_layers)
        ]
        for task in tasks
    }
    bases = {task.name: base for task, base in zip(tasks, _bases(settings, tasks), strict=True)}
    for seed in seeds:
        for name, experiments_of_task in chosen.items():
            for what in experiments_of_task:
                yield replace(bases[name], what=what, seed=seed).with_flags(
                    **FLAGS_OF[what], seed=seed
                )
    for seed in seeds:
        for task in of_layers:
            for n in range(n_layers(settings, task)):
                base = replace(bases[task.name], what=LAYERS, seed=seed, n_transfer=n)
                yield base.with_flags(n_transfer=n, seed=seed)


def find_tasks(settings: ReproductionSettings, notes: list[str]) -> list[Task]:
    """Return the tasks to run on: those that are named, else those whose data are there.

    Args:
        settings: the settings.
        notes: gets a line on each data set of which only a part is there.

    Raises:
        InputError: files of a named data set are missing, or there are no data at all.
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


def _tasks_of_layers(
    settings: ReproductionSettings, tasks: Sequence[Task], notes: list[str]
) -> list[Task]:
    """Return the tasks of the experiment ``layers``."""
    if settings.layers_of is None:
        chosen = [task for task in tasks if task.name in IN_FIGURE_2]
        if not chosen:
            notes.append(
                "layers is left out: the data sets of the paper's figure 2, RACE and MNLI, are not "
                "there; choose others with --layers_of"
            )
        return chosen
    names = split_names(settings.layers_of)
    others = [name for name in names if name not in [task.name for task in tasks]]
    if others:
        raise InputError(
            f"--layers_of {others[0]}: this data set is not among those of this reproduction, "
            f"{','.join(task.name for task in tasks)}"
        )
    return [TASKS[name] for name in names]


def n_layers(settings: ReproductionSettings, task: Task) -> int:
    """Return how many layers fine-tuning can transfer.

    Raises:
        InputError: the model is missing or damaged.
    """
    sources = find_sources(from_keywords({**settings.passed_on(), "dataset": task.name}), task)
    there: int = find_model(sources.model_dir).facts["n_layer"].value
    return there if settings.n_layer is None else min(there, settings.n_layer)


def _bases(settings: ReproductionSettings, tasks: Sequence[Task]) -> list[PlannedRun]:
    """Return for each task what all its runs of fine-tuning share.

    Raises:
        InputError: files of data or of the model are missing; the message names all of them.
    """
    flags, problems, bases = settings.passed_on(), [], []
    needs = {"n_transfer": -1} if not {FULL, NO_LM, LAYERS} & {*settings.experiments()} else {}
    for task in tasks:
        try:
            sources = find_sources(from_keywords({**flags, **needs, "dataset": task.name}), task)
        except InputError as error:
            problems.append(str(error))
            continue
        own = _changed_settings(flags, demo=sources.demo)
        vocabulary = (sources.encoder_path, sources.bpe_path)
        model = fingerprint(_model_files(sources.model_dir, vocabulary))
        base = PlannedRun(
            what=FULL,
            dataset=task.name,
            flags=flags,
            configuration=_digest([model, own]),
            settings=own,
            data=_data(task, sources.data_dir),
        )
        bases.append(base)
    if problems:
        raise InputError(join_problems(list(dict.fromkeys(problems))))
    return bases


def _changed_settings(flags: Mapping[str, Any], *, demo: bool) -> dict[str, Any]:
    """Return those settings that change the numbers of a run and that are not the defaults.

    Args:
        flags: the settings that were given.
        demo: whether the run is one of the demo, which has other defaults.
    """
    defaults = Settings().for_demo() if demo else Settings()
    return {
        item.name: flags[item.name]
        for item in TRAIN.settings
        if item.name in flags
        and (not item.may_change or item.name in _SIZES)
        and flags[item.name] != getattr(defaults, item.name)
    }


def _zeroshot_runs(
    settings: ReproductionSettings, tasks: Sequence[Task], notes: list[str]
) -> Iterator[PlannedRun]:
    """Plan zero-shot prediction with every kept model of a run of pretraining."""
    others = [task.name for task in tasks if task.name not in ZEROSHOT_TASKS]
    if others:
        notes.append(
            f"zeroshot is left out for {', '.join(others)}: there is no prediction without "
            "fine-tuning for it"
        )
    directory = Path(str(settings.checkpoints))
    models = kept_models(directory)
    names = ("device", "precision")
    flags = {name: value for name, value in settings.passed_on().items() if name in names}
    for task in tasks:
        if task.name not in ZEROSHOT_TASKS:
            continue
        folder = _zeroshot_folder(settings, task)
        places = {"data_dir": settings.data_dir or str(folder)}
        for n_updates, model in models.items():
            files = _model_files(model, locate.vocabulary_files(model))
            yield PlannedRun(
                what=ZEROSHOT,
                dataset=task.name,
                flags={**places, **flags, "model_dir": str(model)},
                n_updates=n_updates,
                series=directory.name,
                configuration=_digest([fingerprint(files), directory.name]),
                data=_data(task, folder),
            )


def _zeroshot_folder(settings: ReproductionSettings, task: Task) -> Path:
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


def _data(task: Task, folder: Path) -> str:
    """Return a digest of the files of a data set."""
    there = [folder / name for form in task.files for name in form if (folder / name).exists()]
    return fingerprint(there)


def _model_files(model_dir: Path, vocabulary: Iterable[Path]) -> list[Path]:
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
    return _digest(found)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
