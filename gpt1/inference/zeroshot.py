"""Zero-shot prediction: the answers of a language model that was never fine-tuned (section 5).

Axes: n examples, C answers or classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from gpt1.batches.cache import Cache, find_cache
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.encoding import Encoding
from gpt1.batches.task_data import check_answers, encode_split
from gpt1.datasets import find_task
from gpt1.inference.language_model import open_model
from gpt1.inference.likelihood import answer_log_likelihoods
from gpt1.inference.opened import OpenedModel
from gpt1.runtime.device import check_precision, set_matmul_precision
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, check_writable
from gpt1.runtime.workers import available_cores
from gpt1.settings.command import Values, naming_arguments
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import OWN, OpenSettings, OwnSettings
from gpt1.settings.training import Settings
from gpt1.settings.zeroshot import ZEROSHOT, ZeroshotSettings
from gpt1.tasks import ChoiceIndex, Example, Metric, Task
from gpt1.tasks.targets import Labels
from gpt1.tasks.zeroshot import Method, best_threshold, find_method

_BAR_DELAY = 1.0  # seconds of work before a progress bar appears
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ZeroshotSplit:
    """The predictions for a split.

    Attributes:
        predictions: [n], indices of classes or answers.
        scores: [n, C], the mean or the sum of the log-probabilities of the tokens of each answer in
            nats, -infinity for an answer that is missing; [n, 1] where a threshold decides.
        labels: [n], the right answers; None if they are not known.
    """

    predictions: Labels
    scores: Scores
    labels: Labels | None

    def metric(self, metric: Metric) -> float:
        """Return a score of the predictions in percent; the labels must be known."""
        assert self.labels is not None
        return metric.compute(self.predictions, self.labels)

    def baseline(self, task: Task, metric: Metric) -> float:
        """Return what a metric is without a model, in percent; the labels must be known.

        For answers it is the expected score if one of the answers of each example is drawn at
        random. For classes it is the best score of a single class for all examples.
        """
        assert self.labels is not None
        if isinstance(task.target, ChoiceIndex):
            return float(np.mean(100 / np.isfinite(self.scores).sum(1)))
        classes = range(len(task.target.columns))
        return max(metric.compute(np.full_like(self.labels, c), self.labels) for c in classes)


@dataclass(frozen=True, kw_only=True)
class ZeroshotResult:
    """Predictions of a model without fine-tuning.

    Attributes:
        task: the task.
        method: how examples were scored and answered.
        model: the files of the model.
        splits: the splits by the stems of their submissions, as in ``predictions`` of
            :class:`gpt1.training.runs.Result`: the test split first.
        valid: the stem of the validation split; None if it was not predicted.
        threshold: the score from which the class is 1; None if the highest score decides.
        notes: what a user should know about the files.
    """

    task: Task
    method: Method
    model: str
    splits: Mapping[str, ZeroshotSplit]
    valid: str | None
    threshold: float | None
    notes: Sequence[str] = ()

    @property
    def predictions(self) -> dict[str, Labels]:
        """The predictions [n] of each split, by the stem of its submission."""
        return {stem: split.predictions for stem, split in self.splits.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """All scores of the validation and the test split in percent, where labels are known.

        The names are those of ``metrics`` of a fine-tuning run, such as ``valid_accuracy``.
        """
        return {name: split.metric(metric) for name, metric, split in self._scored()}

    @property
    def baselines(self) -> dict[str, float]:
        """What each of the metrics is without a model; see :meth:`ZeroshotSplit.baseline`."""
        return {name: split.baseline(self.task, metric) for name, metric, split in self._scored()}

    def as_json(self) -> dict[str, Any]:
        """Return the results as a JSON object; a score that is not finite is null."""
        spell = self.task.target.spell
        splits = {
            stem: {
                "n": len(split.predictions),
                "predictions": [spell(each) for each in split.predictions.tolist()],
                "scores": [[_finite(x) for x in row] for row in split.scores.tolist()],
            }
            for stem, split in self.splits.items()
        }
        return {
            "dataset": self.task.name,
            "model": self.model,
            "rule": self.method.rule,
            "has_threshold": self.method.has_threshold,
            "threshold": None if self.threshold is None else _finite(self.threshold),
            "metrics": self.metrics,
            "baselines": self.baselines,
            "splits": splits,
        }

    def _scored(self) -> list[tuple[str, Metric, ZeroshotSplit]]:
        """Return the metrics of both splits with their names, and the split of each."""
        test = next((stem for stem in self.splits if not stem.endswith(".dev")), None)
        named = {"valid": self.valid, "test": test}
        return [
            (f"{name}_{metric.title}", metric, self.splits[stem])
            for name, stem in named.items()
            if stem is not None and self.splits[stem].labels is not None
            for metric in self.task.metrics
        ]


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def zeroshot(
    dataset: str = "rocstories",
    *,
    model_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    verbose: bool = True,
    **settings: Any,
) -> ZeroshotResult:
    """Predict a data set with a language model that was not fine-tuned (paper, section 5).

    Args:
        dataset: a value of ``--dataset``.
        model_dir: what :func:`gpt1.load_pretrained` opens [model/, or the bundled demo's model].
        data_dir: where the data are [data/, or the bundled demo].
        verbose: show a progress bar on a terminal if the work takes long.
        settings: any other flag of ``gpt1 zeroshot`` by its name, such as ``template="{text} very
            {label}"``, ``labels="negative,positive"``, ``device`` or ``n_batch``.

    Raises:
        InputError: an argument or a file is wrong.
        Gpt1Error: the file ``json`` cannot be written.
    """
    places = {"model_dir": model_dir, "data_dir": data_dir}
    given = {name: None if place is None else str(place) for name, place in places.items()}
    values = ZEROSHOT.values({"dataset": dataset, **given, **settings})
    with naming_arguments(values.flat()):
        job = prepare(values)
        opened = values[OpenSettings]
        model = open_model(
            opened.params or opened.model_dir,
            vocabulary=opened.model_dir if opened.params else None,
            n_head=opened.n_head,
            afn=opened.afn,
            device=opened.device,
            spacy_rules=opened.spacy_rules,
        )
        return job.run(model, verbose=verbose)


# The work


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is known before a model is opened.

    Attributes:
        given: how to compute.
        task: the task.
        method: how to score its examples.
        has_valid: whether the validation split is predicted.
    """

    given: ZeroshotSettings
    task: Task
    method: Method
    has_valid: bool

    def run(
        self, model: OpenedModel, folder: Path | None = None, *, verbose: bool = True
    ) -> ZeroshotResult:
        """Predict the splits of the task.

        Args:
            model: the model.
            folder: the folder of the data set [that of :meth:`gpt1.tasks.Task.find_folder`].
            verbose: see :func:`zeroshot`.

        Raises:
            InputError: a file is missing or malformed, an example does not fit into the model, or
                the device has no such precision.
        """
        task, device = self.task, model.module.we.device
        check_precision(self.given.precision, device)
        set_matmul_precision(self.given.precision)
        folder = folder or task.find_folder(self.given.data_dir)
        if problem := task.problem(folder):
            raise InputError(problem)
        data = task.read(folder)
        notes = [*data.notes]
        scorer = _Scorer(self, model, find_cache(self.given.cache_dir, notes.append), verbose)
        names = [stem for stem, each in data.predicted.items() if self._is_predicted(stem, each)]
        threshold = None
        if self.method.has_threshold:
            labels = np.array([example.label for example in data.train])
            threshold = best_threshold(scorer(data.train)[:, 0], labels)
        result = ZeroshotResult(
            task=task,
            method=self.method,
            model=model.source,
            splits={
                stem: _predict(task, scorer, data.predicted[stem], threshold) for stem in names
            },
            valid=next((stem for stem in names if data.predicted[stem] is data.valid), None),
            threshold=threshold,
            notes=notes,
        )
        if self.given.json is not None:
            with atomic_write(self.given.json, "w") as file:
                json.dump(result.as_json(), file, indent=1)
        return result

    def _is_predicted(self, stem: str, examples: Sequence[Example]) -> bool:
        """Return whether a split is predicted."""
        if stem.endswith(".dev") and not self.has_valid:
            return False
        return not self.given.labelled_only or examples[0].label is not None


def prepare(values: Values) -> Job:
    """Check settings, and find the task and the method that they name.

    Raises:
        InputError: a setting is wrong, or an example of a user's own data.
    """
    given, own = values[ZeroshotSettings], values[OwnSettings]
    if given.json is not None:
        _check_json(Path(given.json), [own.train_file, own.valid_file, own.test_file])
    has_valid = True
    if given.dataset == OWN and own.train_file is None:
        # The training examples only say which classes there are.
        has_valid = own.valid_file is not None
        named = own.valid_file or own.test_file
        if named is None:
            raise InputError(
                f"--test_file: must be given with --dataset {OWN}; name a .csv, .tsv or .jsonl file"
            )
        own = replace(own, train_file=named, valid_file=named)
    flags = {item.name: getattr(own, item.name) for item in settings_of(OwnSettings)}
    task = find_task(Settings(dataset=given.dataset, data_dir=given.data_dir, **flags))
    method = find_method(task, given.template, given.labels, given.score)
    return Job(given=given, task=task, method=method, has_valid=has_valid)


def _check_json(path: Path, read: Sequence[str | None]) -> None:
    """Check before any work that the results can be written and overwrite no file that is read."""
    if path.is_dir():
        raise InputError(f"--json {path}: this is a directory; name a file in it")
    if any(path.resolve() == Path(other).resolve() for other in read if other is not None):
        raise InputError(f"--json {path}: would overwrite a file that is read; name another file")
    check_writable(path.parent)


@dataclass(frozen=True)
class _Scorer:
    """Computes the scores of a split's examples."""

    job: Job
    model: OpenedModel
    cache: Cache | None
    verbose: bool

    def __call__(self, examples: Sequence[Example]) -> Scores:
        """Return the scores of the answers, [n, C]."""
        given, method, module = self.job.given, self.job.method, self.model.module
        n_ctx = module.config.n_ctx
        encoding = Encoding(self.model.text_encoder, method.layout, self.model.special, n_ctx)
        texts = [method.texts(example.texts) for example in examples]
        split = encode_split(
            encoding,
            texts,
            cache=self.cache,
            n_processes=min(available_cores(), torch.get_num_threads()),
            verbose=self.verbose,
        )
        self._check(split, examples)
        hidden = None if self.verbose else True  # None hides the bar where stderr is no terminal.
        with tqdm(
            total=len(texts), desc="predict", leave=False, delay=_BAR_DELAY, disable=hidden
        ) as bar:
            sums = answer_log_likelihoods(
                module,
                split,
                n_batch=given.n_batch,
                precision=given.precision,
                progress=bar.update,
            )
        return method.scores(sums, split.lengths[:, 1:])

    def _check(self, split: EncodedSplit, examples: Sequence[Example]) -> None:
        """Raise an :class:`InputError` if an example has no text, or has no room in the model."""
        n_ctx, lengths = self.model.module.config.n_ctx, split.lengths
        needed = lengths[:, 0] + lengths[:, 1:].max(1, initial=0)
        for row in np.flatnonzero(lengths[:, 0] == 0)[:1]:
            raise InputError(
                f"{examples[row].source}: there is no text that the model can read; write it "
                "otherwise, or delete the example."
            )
        for row in np.flatnonzero(needed > n_ctx)[:1]:
            raise InputError(
                f"{examples[row].source}: {needed[row]} tokens must be read whole, but the model "
                f"in {self.model.source} has {n_ctx} positions; use a model with more of them, or "
                "delete the example."
            )
        if isinstance(self.job.task.target, ChoiceIndex):
            check_answers(lengths[:, 1:], examples)
        elif not self.job.method.has_threshold and (lengths[:, 1:] == 0).any():
            raise InputError(
                "--labels: one of the words has no tokens that the model can read, so that it "
                "would never be predicted; give another word"
            )


def _predict(
    task: Task, scorer: _Scorer, examples: Sequence[Example], threshold: float | None
) -> ZeroshotSplit:
    """Predict one split."""
    scores = scorer(examples)
    if threshold is None:
        predictions = task.target.decide(scores)
    else:
        predictions = (scores[:, 0] >= threshold).astype(np.int32)
    is_labelled = examples[0].label is not None
    labels = np.array([example.label for example in examples]) if is_labelled else None
    return ZeroshotSplit(predictions=predictions, scores=scores, labels=labels)
