"""The files that a run writes, and the check that no other run writes them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from gpt1.results.submissions import probs_path, record_path
from gpt1.runtime.errors import InputError
from gpt1.runtime.extras import missing_extra
from gpt1.runtime.files import check_writable, remove_leftovers
from gpt1.runtime.locks import RunLock
from gpt1.settings.training import Settings
from gpt1.weights import locate


class RunSettings(Protocol):
    """The settings on which the files of every run depend."""

    @property
    def name(self) -> str:
        """The name of the run."""

    @property
    def log_dir(self) -> str:
        """The directory of the logs."""

    @property
    def save_dir(self) -> str:
        """The directory of the directories of checkpoints."""

    @property
    def tensorboard(self) -> str | None:
        """The directory of TensorBoard's files."""


@dataclass(frozen=True)
class RunFiles:
    """The files that every run writes: checkpoints and logs, whose names contain the run's name.

    Attributes:
        settings: the settings of the run.
    """

    settings: RunSettings

    @property
    def directory(self) -> Path:
        """The directory of parameters and checkpoints."""
        return Path(self.settings.save_dir) / self.settings.name

    @property
    def log(self) -> Path:
        """The log of settings and evaluations, which the original writes, too."""
        return Path(self.settings.log_dir) / f"{self.settings.name}.jsonl"

    @property
    def updates(self) -> Path:
        """The log with one line per update."""
        return Path(self.settings.log_dir) / f"{self.settings.name}.updates.jsonl"

    def check_places(self) -> None:
        """Check before any work that logs and checkpoints can be written.

        Raises:
            InputError: TensorBoard is to be used and is not installed.
            Gpt1Error: a directory cannot be written.
        """
        if self.settings.tensorboard is not None:
            if find_spec("tensorboard") is None:
                raise missing_extra("tensorboard")
            check_writable(Path(self.settings.tensorboard))
        check_writable(self.log.parent)
        check_writable(self.directory)

    def claim(self, lock: RunLock) -> None:
        """Lock out other runs of this name.

        Raises:
            InputError: another run of this name is running.
        """
        own = [self.directory / ".lock", self.log.with_name(f".{self.settings.name}.lock")]
        lock.take(own, self.settings.name)

    def remove_unfinished(self) -> None:
        """Remove unfinished files of killed runs; the lock of the run must be held."""
        remove_leftovers(self.directory, "checkpoint-*.safetensors")
        for path in (self.log, self.updates):
            remove_leftovers(path.parent, glob.escape(path.name))


@dataclass(frozen=True)
class Outputs(RunFiles):
    """The files of a run, whose names contain :attr:`gpt1.settings.training.Settings.name`.

    Attributes:
        settings: the settings of the run.
        stems: the stems of its submissions, that of the test split first.
    """

    settings: Settings
    stems: Sequence[str] = ("ROCStories",)

    @property
    def best_params(self) -> Path:
        """The file of the parameters of the best epoch."""
        return self.directory / "best_params.jl"

    @property
    def vocabulary(self) -> tuple[Path, Path]:
        """Copies of vocabulary and merges, so that the directory opens by its path alone."""
        return self.directory / locate.ENCODER_FILE, self.directory / locate.BPE_FILE

    @property
    def config(self) -> Path:
        """What the best parameters do not show: the number of heads, and the activation."""
        return self.directory / locate.CONFIG_FILE

    @property
    def submission(self) -> Path:
        """The submission: predictions for the test examples."""
        return self.submissions[self.stems[0]]

    @property
    def submissions(self) -> dict[str, Path]:
        """The submission of each split by its stem."""
        own = Path(self.settings.submission_dir) / self.settings.name
        return {stem: own / f"{stem}.tsv" for stem in self.stems}

    @property
    def last_submissions(self) -> dict[str, Path]:
        """Copies of the latest submissions of any run, at the place where the original writes."""
        return {stem: Path(self.settings.submission_dir) / f"{stem}.tsv" for stem in self.stems}

    def check(self) -> None:
        """Check before any work that the results can be written and analysed.

        Raises:
            InputError: ``--analysis`` will have nothing to report, ``--probs`` is given without
                ``--submit``, the run has the name of a file in the place of its directory, its
                directory holds another model, or TensorBoard is not installed.
            Gpt1Error: a directory cannot be written.
        """
        settings = self.settings
        if settings.analysis and not settings.submit:
            raise InputError(
                "--analysis: needs the run's own predictions; give --submit too, or look at an "
                "earlier run's with gpt1 analysis"
            )
        if settings.analysis and settings.n_iter == 0:
            raise InputError(
                "--analysis: --n_iter 0 makes no evaluation to report; leave one of the two out"
            )
        if settings.probs and not settings.submit:
            raise InputError("--probs: they are of the predictions of --submit; give it too")
        copies = [
            copy.name.casefold()
            for path in self.last_submissions.values()
            for copy in (path, record_path(path))
        ]
        if settings.name.casefold() in copies:
            raise InputError(
                f"--desc {settings.name}: {self.submission.parent} is the place of a file; give "
                "another --desc"
            )
        if settings.submit and (
            locate.is_released(self.directory) or locate.is_hub(self.directory)
        ):
            raise InputError(
                f"--desc {settings.name}: {self.directory} holds a model that no run has written; "
                "give another --desc or --save_dir"
            )
        self.check_places()
        if settings.submit:
            check_writable(self.submission.parent)
            check_writable(self.submission.parent.parent)

    def remove_unfinished(self) -> None:
        """Remove unfinished files of killed runs; the lock of the run must be held."""
        for path in (self.best_params, *self.vocabulary, self.config):
            remove_leftovers(self.directory, path.name)
        super().remove_unfinished()
        written = []
        for path in (*self.submissions.values(), *self.last_submissions.values()):
            written += [path, record_path(path), probs_path(path)]
        for path in written:
            remove_leftovers(path.parent, glob.escape(path.name))
