"""Plan the runs of a reproduction: which data sets there are, and what is run on each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt1.batches.cache import find_cache
from gpt1.datasets import TASKS
from gpt1.reproduction.found import (
    data_digest,
    digest,
    find_tasks,
    fingerprint,
    kept_models,
    model_files,
    zeroshot_folder,
)
from gpt1.runtime.errors import InputError, join_problems
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
from gpt1.training.prepare import load_data
from gpt1.training.sources import Sources, find_sources
from gpt1.weights import locate
from gpt1.weights.released import ReleasedShapes
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

ZEROSHOT_FLAGS = ("device", "precision", "n_batch", "cache_dir", "spacy_rules")
"""The flags that zero-shot prediction takes, too; its model and vocabulary are the kept ones."""

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
        series: for zero-shot prediction the name of the run of pretraining and a digest that tells
            runs with one name apart, else empty.
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
        return "-".join([*parts, digest([self.configuration, self.data])])

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
    flags, bases = settings.passed_on(), []
    problems: list[str] = []
    needs = {"n_transfer": -1} if not {FULL, NO_LM, LAYERS} & {*settings.experiments()} else {}
    for task in tasks:
        try:
            of_task = from_keywords({**flags, **needs, "dataset": task.name})
            sources = find_sources(of_task, task)
            if not problems and not needs:
                _check_positions(of_task, sources, task)
        except InputError as error:
            problems.append(str(error))
            continue
        own = _changed_settings(flags, demo=sources.demo)
        vocabulary = (sources.encoder_path, sources.bpe_path)
        model = fingerprint(model_files(sources.model_dir, vocabulary))
        base = PlannedRun(
            what=FULL,
            dataset=task.name,
            flags=flags,
            configuration=digest([model, own]),
            settings=own,
            data=data_digest(task, sources.data_dir),
        )
        bases.append(base)
    if problems:
        raise InputError(join_problems(list(dict.fromkeys(problems))))
    return bases


def _check_positions(settings: Settings, sources: Sources, task: Task) -> None:
    """Check that the model has a position for each token of the longest sequence of a data set.

    The data set is encoded only if the model has fewer positions than ``--n_ctx``; the runs find
    the encoded texts in the cache.

    Raises:
        InputError: the model has too few positions.
    """
    sizes = find_model(sources.model_dir).sizes
    if sizes is None:
        return
    n_rows = sizes.n_ctx if isinstance(sizes, ReleasedShapes) else sizes.n_positions
    settings = settings.for_demo() if sources.demo else settings
    if settings.n_ctx <= n_rows:
        return
    cache = find_cache(settings.cache_dir, lambda text: None)
    if load_data(settings, sources, verbose=False, task=task, cache=cache).n_ctx > n_rows:
        raise InputError(
            f"--n_ctx {settings.n_ctx}: the model in {sources.model_dir} has {n_rows} position "
            f"rows; give --n_ctx {n_rows}, and longer texts are cut"
        )


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
    models = kept_models(directory, notes)
    given = settings.passed_on().items()
    flags = {name: value for name, value in given if name in ZEROSHOT_FLAGS}
    own = _changed_settings(flags, demo=False)
    own.pop("n_batch", None)  # Without training it is a matter of speed.
    first = fingerprint(model_files(next(iter(models.values())), ()))
    series = f"{directory.resolve().name}-{digest([first, own])}"
    for task in tasks:
        if task.name not in ZEROSHOT_TASKS:
            continue
        folder = zeroshot_folder(settings, task)
        shared = {**flags, "data_dir": settings.data_dir or str(folder), "labelled_only": True}
        for n_updates, model in models.items():
            files = model_files(model, locate.vocabulary_files(model))
            yield PlannedRun(
                what=ZEROSHOT,
                dataset=task.name,
                flags={**shared, "model_dir": str(model)},
                n_updates=n_updates,
                series=series,
                configuration=digest([fingerprint(files), series]),
                settings=own,
                data=data_digest(task, folder),
            )
