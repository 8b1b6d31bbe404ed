"""The program from its command line to its files, on a task so small that a run takes a second."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import gpt1
from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.task_data import TaskData
from gpt1.commands import train
from gpt1.datasets import TASKS
from gpt1.datasets import story_cloze as datasets
from gpt1.inference import prediction as predict
from gpt1.inference.language_model import open_model
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.results import submissions
from gpt1.results.outputs import Outputs
from gpt1.runtime.device import environment
from gpt1.runtime.ranks import Ranks
from gpt1.runtime.seeds import tower_seed
from gpt1.settings.training import DEMO_DEFAULTS, Settings, parse
from gpt1.tasks import ACCURACY, ChoiceIndex, Splits
from gpt1.training import checkpoint, fine_tuning, prepare, runs
from gpt1.training.fine_tuning import EXTRA_EVALUATIONS, FineTuning
from gpt1.training.loop import Trainer
from gpt1.weights import jl, parameters, to_list

# The runs in other processes, to which runs here are compared, compute with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
BATCH_OF_8 = ["--n_gpu", "4", "--n_batch", "2"]  # 4 updates per epoch
NO_DROPOUT = [
    word for kind in ("embd", "attn", "resid", "clf") for word in (f"--{kind}_pdrop", "0")
]
FORM = "%d %d %.3f %.3f %.2f %.2f"
FIGURES = ("n_epochs", "n_updates", "tr_cost", "va_cost", "tr_acc", "va_acc")


@dataclass(frozen=True)
class Run:
    """The flags of a run, and its files."""

    task: tiny.Tiny
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "log" / "rocstories.jsonl"

    @property
    def updates(self) -> Path:
        return self.directory / "log" / "rocstories.updates.jsonl"

    @property
    def best(self) -> Path:
        return self.directory / "save" / "rocstories" / "best_params.jl"

    @property
    def submission(self) -> Path:
        return self.directory / "submission" / "rocstories" / "ROCStories.tsv"

    def flags(self, *words: str) -> list[str]:
        """Return the flags of the run, with its directories; later words override earlier ones."""
        kinds = ("log", "save", "submission")
        places = [word for kind in kinds for word in (f"--{kind}_dir", str(self.directory / kind))]
        return [*self.task.flags, *places, "--device", "cpu", "--quiet", *BATCH_OF_8, *words]

    def main(self, *words: str) -> int:
        return train.main(self.flags(*words))

    def evaluations(self) -> list[dict[str, Any]]:
        return lines(self.log)[1:]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the newest checkpoint, which after a whole run is that of the end."""
        newest = checkpoint.checkpoints(self.best.parent)[-1]
        return checkpoint.load(newest)[0].tensors


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory by name, without locks, which stay after a run."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
    }


@pytest.fixture
def run(task: tiny.Tiny, tmp_path: Path) -> Run:
    return Run(task, tmp_path / "run")


@dataclass(frozen=True)
class Done:
    """A finished run, and its output."""

    run: Run
    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def whole(task: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run with all outputs, in a separate process."""
    run = Run(task, tmp_path_factory.mktemp("whole"))
    return in_process(run.flags("--submit", "--analysis", "--lr", "1e-3"), run)


def in_process(flags: list[str], run: Run, code: str | None = None) -> Done:
    """Run the program in a separate process, or ``code`` in its place, if given."""
    what = ["-m", "gpt1.train"] if code is None else ["-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *what, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return Done(run, done.returncode, done.stdout, done.stderr)


def loaded_task(task: tiny.Tiny) -> TaskData:
    return prepare.load_data(Settings(), task.sources(), verbose=False)


# ------------------------------------------------------------------------------- the files


def test_a_whole_run_ends_well_and_is_silent_on_stderr(whole: Done) -> None:
    assert (whole.status, whole.stderr) == (0, "")


def test_first_line_of_the_log_has_all_settings(whole: Done) -> None:
    settings = lines(whole.run.log)[0]
    given = parse(whole.run.flags("--submit", "--analysis", "--lr", "1e-3")).as_flags()
    model_dir = whole.run.task.model_dir
    decided = {
        "desc": "rocstories",
        "encoder_path": str(model_dir / "encoder_bpe_40000.json"),
        "bpe_path": str(model_dir / "vocab_40000.bpe"),
        "n_embd": tiny.N_EMBD,
        "n_head": tiny.N_HEAD,
        "n_layer": tiny.N_LAYER,
        "n_transfer": tiny.N_LAYER,
        "demo": False,
        "n_processes": 1,
        "recompute": False,  # a tiny model has room
        "cache_dir": str(Path(os.environ["XDG_CACHE_HOME"]) / "gpt1"),
        "gpt1_version": gpt1.__version__,
        "torch_version": torch.__version__,
    }
    assert settings.keys() == {*given, *decided, "run_id", "time"}
    assert re.fullmatch("[0-9a-f]{32}", settings["run_id"])
    assert list(settings)[-1] == "time"
    for name, value in {**given, **decided}.items():
        assert settings[name] == value, name


def test_the_log_has_a_line_an_epoch(whole: Done) -> None:
    evaluations = whole.run.evaluations()
    assert [list(row) for row in evaluations] == [[*FIGURES, "time"]] * 3
    assert [(row["n_epochs"], row["n_updates"]) for row in evaluations] == [(1, 4), (2, 8), (3, 12)]
    times = [row["time"] for row in lines(whole.run.log)]
    assert times == sorted(times)
    assert time.time() - 3600 < times[0] <= times[-1] <= time.time()


def test_the_updates_log_has_a_line_an_update(whole: Done) -> None:
    rows = lines(whole.run.updates)
    keys = ["n_updates", "clf_cost", "lm_cost", "lr", "grad_norm", "time"]
    assert [list(row) for row in rows] == [keys] * 12
    assert [row["n_updates"] for row in rows] == list(range(1, 13))
    assert rows[0]["lr"] == pytest.approx(1e-3 * (1 - 1 / 12))
    assert rows[-1]["lr"] == 0
    assert all(0.3 < row["clf_cost"] < 1.5 and 3 < row["lm_cost"] < 8 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)


def test_printed_lines(whole: Done) -> None:
    printed = whole.stdout.splitlines()
    for text, row in zip(printed, whole.run.evaluations(), strict=False):
        assert text == FORM % tuple(row[name] for name in FIGURES)
    best = max(row["va_acc"] for row in whole.run.evaluations())
    assert printed[3] == f"ROCStories Valid Accuracy: {best:.2f}"
    rows = whole.run.submission.read_text().splitlines()[1:]
    labels = datasets.read_cloze(whole.run.task.data_dir / datasets.TEST_CSV).labels
    right = [row.split("\t")[1] == str(label) for row, label in zip(rows, labels, strict=True)]
    assert printed[4] == f"ROCStories Test Accuracy:  {sum(right) / len(right) * 100:.2f}"


def test_submission_format(whole: Done) -> None:
    text = whole.run.submission.read_bytes().decode()
    assert re.fullmatch(r"index\tprediction\n(\d+\t[01]\n){24}", text)
    assert [row.split("\t")[0] for row in text.splitlines()[1:]] == [str(i) for i in range(24)]


def test_best_parameters_are_a_list_in_the_originals_order_and_shapes(whole: Done) -> None:
    import joblib

    params = joblib.load(whole.run.best)
    task = loaded_task(whole.run.task)
    d, rows = tiny.N_EMBD, task.n_vocab + 3 + task.n_ctx
    attention = [(1, d, 3 * d), (3 * d,), (1, d, d), (d,), (d,), (d,)]
    mlp = [(1, d, 4 * d), (4 * d,), (1, 4 * d, d), (d,), (d,), (d,)]
    assert [p.shape for p in params] == [(rows, d), *(attention + mlp) * 2, (d, 1), (1,)]
    assert {p.dtype for p in params} == {np.dtype(np.float32)}
    assert all(isinstance(p, np.ndarray) for p in params)


def test_there_are_no_other_files(whole: Done) -> None:
    assert list(files_of(whole.run.directory)) == [
        "log/rocstories.jsonl",
        "log/rocstories.updates.jsonl",
        "save/rocstories/best_params.jl",
        "save/rocstories/checkpoint-00000008.safetensors",
        "save/rocstories/checkpoint-00000012.safetensors",
        "save/rocstories/encoder_bpe_40000.json",
        "save/rocstories/gpt1_config.json",
        "save/rocstories/vocab_40000.bpe",
        "submission/ROCStories.dev.run.json",
        "submission/ROCStories.dev.tsv",
        "submission/ROCStories.run.json",
        "submission/ROCStories.tsv",
        "submission/rocstories/ROCStories.dev.run.json",
        "submission/rocstories/ROCStories.dev.tsv",
        "submission/rocstories/ROCStories.run.json",
        "submission/rocstories/ROCStories.tsv",
    ]


def test_desc_names_the_files(run: Run) -> None:
    assert run.main("--desc", "mine", "--n_iter", "1", "--submit", "--analysis") == 0
    assert list(files_of(run.directory)) == [
        "log/mine.jsonl",
        "log/mine.updates.jsonl",
        "save/mine/best_params.jl",
        "save/mine/checkpoint-00000004.safetensors",
        "save/mine/encoder_bpe_40000.json",
        "save/mine/gpt1_config.json",
        "save/mine/vocab_40000.bpe",
        "submission/ROCStories.dev.run.json",
        "submission/ROCStories.dev.tsv",
        "submission/ROCStories.run.json",
        "submission/ROCStories.tsv",
        "submission/mine/ROCStories.dev.run.json",
        "submission/mine/ROCStories.dev.tsv",
        "submission/mine/ROCStories.run.json",
        "submission/mine/ROCStories.tsv",
    ]
    assert lines(run.directory / "log/mine.jsonl")[0]["desc"] == "mine"


def test_the_directory_of_a_run_opens_by_its_path_alone(whole: Done, tmp_path: Path) -> None:
    """Elsewhere, without the model that the run started from."""
    own = tmp_path / "own"
    shutil.copytree(whole.run.best.parent, own)
    found = open_model(own)
    config = found.module.config
    assert (config.n_head, config.afn, found.has_choice_head) == (tiny.N_HEAD, "gelu", True)
    params = jl.read_jl(whole.run.best)
    for array, expected in zip(to_list(found.module), params, strict=True):
        np.testing.assert_array_equal(array, expected)
    test = datasets.read_cloze(whole.run.task.data_dir / datasets.TEST_CSV)
    chosen = found.predict(list(zip(*test[:3], strict=True)))
    assert chosen == submissions.read_submission(whole.run.submission)


def test_a_resumed_run_completes_the_directory_of_an_older_version(run: Run) -> None:
    assert run.main("--n_iter", "1", "--submit", "--afn", "relu") == 0
    kept = {path: path.read_bytes() for path in run.best.parent.iterdir() if path.suffix != ".lock"}
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe", "gpt1_config.json"):
        (run.best.parent / name).unlink()
    assert run.main("--n_iter", "1", "--submit", "--afn", "relu", "--resume") == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert open_model(run.best.parent).module.config.afn == "relu"


@pytest.mark.parametrize("file", ["params_shapes.json", "config.json"])
def test_another_model_in_the_place_of_the_directory_stays(
    run: Run, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    directory = run.best.parent
    directory.mkdir(parents=True)
    (directory / file).write_text("{}")
    assert run.main("--n_iter", "1", "--submit") == 2
    assert "holds a model that no run has written; give another --desc" in capsys.readouterr().err
    assert [path.name for path in directory.iterdir()] == [file]


def test_without_submit_there_is_no_submission(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main("--n_iter", "1") == 0
    assert not run.best.exists()
    assert not (run.directory / "submission").exists()
    assert len(capsys.readouterr().out.splitlines()) == 1


# ------------------------------------------------------------------------------- the loop


class Recorder:
    """Records what a run does: the rows of each update, evaluated and predicted splits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updates: list[EncodedSplit] = []
        self.evaluated: list[EncodedSplit] = []
        self.saved_after: list[int] = []
        self.saved: list[list[np.ndarray]] = []
        update, predicted = Trainer._update, FineTuning.predict
        save, n_updates = runs._write_params, 0

        def record_update(trainer: Trainer, number: int, rows: np.ndarray, prepared: Any) -> None:
            nonlocal n_updates
            n_updates = number
            self.updates.append(trainer.job.data.train.take(rows))
            update(trainer, number, rows, prepared)

        def record_predict(
            job: FineTuning,
            model: DoubleHeadsModel,
            split: EncodedSplit,
            ranks: Ranks,
            progress: Any = None,
        ) -> Any:
            self.evaluated.append(split)
            return predicted(job, model, split, ranks, progress)

        def record_save(outputs: Outputs, model: DoubleHeadsModel) -> None:
            self.saved_after.append(n_updates)
            self.saved.append(parameters.to_list(model))
            save(outputs, model)

        monkeypatch.setattr(Trainer, "_update", record_update)
        monkeypatch.setattr(FineTuning, "predict", record_predict)
        monkeypatch.setattr(runs, "_write_params", record_save)


def test_numpys_stream_is_used_in_the_originals_order(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream gives the special rows, then one shuffle per epoch, and nothing else."""
    from sklearn.utils import shuffle

    recorder = Recorder(monkeypatch)
    assert run.main("--submit", "--seed", "7", "--n_iter", "2") == 0
    data = loaded_task(run.task)
    np.random.seed(7)
    special = np.random.randn(3, tiny.N_EMBD) * 0.02
    expected = []
    for _ in range(2):
        rows = shuffle(np.arange(32))  # with the global stream, as in the original
        expected += [data.train.take(rows[i : i + 8]) for i in range(0, 32, 8)]
    we = recorder.saved[0][0]
    np.testing.assert_array_equal(we[data.n_vocab : data.n_vocab + 3], special.astype(np.float32))
    assert len(recorder.updates) == len(expected) == 8
    for stories, right in zip(recorder.updates, expected, strict=True):
        assert_equal_splits(stories, right)
        np.testing.assert_array_equal(stories.targets, right.targets)


def assert_equal_splits(one: EncodedSplit, other: EncodedSplit) -> None:
    """Check that two splits hold the same sequences."""
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.lengths, other.lengths)


def test_the_last_partial_batch_is_dropped_in_training_and_kept_in_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    assert run.main("--n_gpu", "1", "--n_batch", "5", "--n_iter", "2", "--submit") == 0
    assert [stories.n_examples for stories in recorder.updates] == [5] * 6 * 2  # 2 of 32 left over
    assert [row["n_updates"] for row in run.evaluations()] == [6, 12]
    assert lines(run.updates)[-1]["lr"] == 0  # The schedule ends with the last update.
    data = loaded_task(run.task)
    expected = [data.train.take(slice(0, 8)), data.valid] * 2 + [*data.predicted.values()]
    assert len(recorder.evaluated) == 6
    for split, right in zip(recorder.evaluated, expected, strict=True):
        assert_equal_splits(split, right)


def test_the_run_has_whole_epochs_only(run: Run) -> None:
    """Three epochs of 32 stories in batches of 5 are 3 * 6 updates; 96 // 5 would be 19."""
    trainer = trainer_of(run, "--n_gpu", "1", "--n_batch", "5")
    assert trainer.job.n_updates == 18
    assert trainer.state.optimizer.param_groups[0]["t_total"] == 18


def test_all_parameters_are_trained_alike(run: Run) -> None:
    """One group of the optimizer holds every parameter, the classifier's too."""
    trainer = trainer_of(run)
    (group,) = trainer.state.optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, trainer.state.model.parameters()))
    assert len(group["params"]) == 1 + 12 * tiny.N_LAYER + 2


def trainer_of(run: Run, *words: str) -> Trainer:
    """The trainer of a run as it is before the first update."""
    found: list[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", lambda trainer, resumed: found.append(trainer))
        assert run.main(*words) == 0
    return found[0]


def test_logged_figures_are_those_of_the_parameters(run: Run) -> None:
    """Training figures are of the first ``n_valid`` stories in loaded order, without dropout."""
    assert run.main("--n_iter", "1", "--lr", "1e-2") == 0
    data = loaded_task(run.task)
    model = model_of(run, data)
    load_last(run, model)
    (row,) = run.evaluations()
    for split, arrays in (("tr", data.train.take(slice(0, tiny.N_VALID))), ("va", data.valid)):
        logits = choices(model, arrays)
        cost = predict.mean_cross_entropy(logits, arrays.targets)
        assert row[f"{split}_cost"] == pytest.approx(cost, abs=1e-6)
        accuracy = ACCURACY.compute(ChoiceIndex().decide(logits), arrays.labels)
        assert row[f"{split}_acc"] == pytest.approx(accuracy)


def model_of(run: Run, data: TaskData) -> DoubleHeadsModel:
    sizes = {"n_embd": tiny.N_EMBD, "n_head": tiny.N_HEAD, "n_layer": tiny.N_LAYER}
    return DoubleHeadsModel(ModelConfig(n_vocab=data.n_vocab, n_ctx=data.n_ctx, **sizes))


def load_last(run: Run, model: DoubleHeadsModel) -> None:
    """Give the model the last parameters of the run, which may not be its best ones."""
    tensors = run.tensors()
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})


def choices(model: DoubleHeadsModel, arrays: EncodedSplit) -> np.ndarray:
    alone = Ranks(0, 1, torch.device("cpu"))
    return predict.predict_logits(model, arrays, alone, n_batch=4)


def score_instead(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[float]:
    """Let evaluations find these accuracies, of training and of validation stories in turns."""
    metric = replace(ACCURACY, compute=lambda predictions, labels: scores.pop(0) if scores else 0.0)
    task = replace(datasets.ROCSTORIES, metrics=(metric,))
    monkeypatch.setitem(TASKS, "rocstories", task)
    return scores


def test_best_parameters_are_kept_only_when_strictly_better(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accuracies 0, 50, 50, 75, 25, they are kept before training and after epochs 2 and 4."""
    recorder = Recorder(monkeypatch)
    pairs = [(99, 0), (1, 50), (100, 50), (2, 75), (100, 25)]
    scores = score_instead(monkeypatch, [score for pair in pairs for score in pair])
    words = ["--lr", "0.1", "--lr_schedule", "warmup_constant"]  # Choices change until the end.
    assert run.main("--n_iter", "5", "--submit", *words) == 0
    assert scores == []
    assert recorder.saved_after == [0, 8, 16]
    kept = jl.read_jl(run.best)
    assert all(map(np.array_equal, kept, recorder.saved[-1]))
    assert not np.array_equal(kept[0], run.tensors()["model.we"].numpy())

    data = loaded_task(run.task)
    model = model_of(run, data)
    parameters.from_list(model, kept, "the best")
    predictions = choices(model, data.predicted["ROCStories"]).argmax(-1)
    rows = run.submission.read_text().splitlines()[1:]
    assert rows == [f"{i}\t{choice}" for i, choice in enumerate(predictions)]
    load_last(run, model)
    assert choices(model, data.predicted["ROCStories"]).argmax(-1).tolist() != predictions.tolist()


def test_best_parameters_may_be_those_of_an_extra_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accuracies 50, 75, 60 after updates 1, 3, 4, they are kept at first and after 1, 3."""
    recorder = Recorder(monkeypatch)
    score_instead(monkeypatch, [0, 50, 0, 75, 0, 60])
    monkeypatch.setattr(fine_tuning, "EXTRA_EVALUATIONS", (1, 3))
    assert run.main("--n_iter", "1", "--submit") == 0
    assert recorder.saved_after == [0, 1, 3]


def test_ties_go_to_the_first_choice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fine_tuning,
        "predict_logits",
        lambda model, split, *rest, **_: np.zeros(split.lengths.shape),
    )
    assert run.main("--n_iter", "1", "--submit") == 0
    rows = run.submission.read_text().splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == ["0"] * tiny.N_TEST


def test_extra_evaluations_are_the_first_epochs_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EXTRA_EVALUATIONS == (1000, 2000, 4000, 8000, 16000, 32000)
    monkeypatch.setattr(fine_tuning, "EXTRA_EVALUATIONS", (1, 3, 4, 5, 6))  # an epoch has 4 updates
    assert run.main("--n_iter", "2") == 0
    rows = run.evaluations()
    assert [(row["n_epochs"], row["n_updates"]) for row in rows] == [(0, 1), (0, 3), (1, 4), (2, 8)]


def test_without_lm_coef_there_is_no_lm_cost(run: Run) -> None:
    assert run.main("--n_iter", "1", "--lm_coef", "0") == 0
    assert [row["lm_cost"] for row in lines(run.updates)] == [None] * 4
    assert all(row["grad_norm"] > 0 for row in lines(run.updates))


def test_the_norm_is_logged_before_clipping_and_without(task: tiny.Tiny, tmp_path: Path) -> None:
    norms = []
    for clip in ("1e-3", "1", "0"):
        run = Run(task, tmp_path / clip)
        assert run.main("--n_iter", "1", "--max_grad_norm", clip) == 0
        norms.append(lines(run.updates)[0]["grad_norm"])
    assert norms[0] > 0.1
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_towers_are_a_matter_of_where_not_of_what(task: tiny.Tiny, tmp_path: Path) -> None:
    """Without dropout, four towers of two stories give the gradients of one tower of eight."""
    four, one = Run(task, tmp_path / "four"), Run(task, tmp_path / "one")
    assert four.main(*NO_DROPOUT, "--n_gpu", "4", "--n_batch", "2") == 0
    assert one.main(*NO_DROPOUT, "--n_gpu", "1", "--n_batch", "8") == 0
    ours, theirs = four.tensors(), one.tensors()
    for name, tensor in theirs.items():
        if name.startswith("model.") and name != "model.clf.b":  # gradient is rounding error
            np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-6, err_msg=name)
    for own, other in zip(
        lines(four.updates) + four.evaluations(),
        lines(one.updates) + one.evaluations(),
        strict=True,
    ):
        for key in own.keys() - {"time"}:
            assert own[key] == pytest.approx(other[key], rel=0, abs=1e-5), key


def test_each_tower_has_its_own_dropout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers with the same stories would otherwise have the same cost."""
    costs: list[float] = []
    losses, take = DoubleHeadsModel.losses, EncodedSplit.take

    def record(model: DoubleHeadsModel, batch: Any, lm_coef: float) -> Any:
        found = losses(model, batch, lm_coef)
        costs.append(found.total.item())
        return found

    monkeypatch.setattr(DoubleHeadsModel, "losses", record)
    monkeypatch.setattr(EncodedSplit, "take", lambda arrays, rows: take(arrays, slice(0, 8)))
    monkeypatch.setattr(Trainer, "_evaluate", lambda trainer: None)
    for rates, n_different in (([], 4), (NO_DROPOUT, 1)):
        costs.clear()
        assert run.main("--n_iter", "1", *rates) == 0
        assert len(costs) == 4 * 4
        assert len(set(costs[:4])) == n_different


def test_every_update_draws_its_own_dropout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of the masks differ between updates, not only between towers."""
    seeds: list[list[int]] = []
    gradients = fine_tuning.tower_gradients

    def record(*args: Any, **options: Any) -> Tensor:
        seeds.append(list(options["seeds"]))
        return gradients(*args, **options)

    monkeypatch.setattr(fine_tuning, "tower_gradients", record)
    assert run.main("--n_iter", "2", "--seed", "7") == 0
    expected = [[tower_seed(7, update, tower) for tower in range(4)] for update in range(1, 9)]
    assert seeds == expected


def test_choices_share_their_prefix_in_training_only_when_asked(
    task: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared prefix has one dropout mask for both choices; the original's choices have two."""
    shared: list[bool] = []
    pack = fine_tuning.pack

    def record(arrays: EncodedSplit, clf_token: int, *, share_prefix: bool) -> Any:
        shared.append(share_prefix)
        return pack(arrays, clf_token, share_prefix=share_prefix)

    monkeypatch.setattr(fine_tuning, "pack", record)
    for words, expected in (([], False), (["--share_prefix"], True)):
        shared.clear()
        assert Run(task, tmp_path / str(expected)).main("--n_iter", "1", *words) == 0
        assert shared == [expected] * 4 * 4


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    whole: Done, task: tiny.Tiny, tmp_path: Path
) -> None:
    again, other = Run(task, tmp_path / "again"), Run(task, tmp_path / "other")
    torch.manual_seed(99)  # Earlier random numbers must not matter.
    np.random.seed(99)
    assert again.main("--submit", "--lr", "1e-3") == 0
    assert other.main("--submit", "--lr", "1e-3", "--seed", "43") == 0
    for path in ("save/rocstories/best_params.jl", "submission/rocstories/ROCStories.tsv"):
        assert files_of(again.directory)[path] == files_of(whole.run.directory)[path]
    final, expected = again.tensors(), whole.run.tensors()
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert without_time(lines(again.updates)) == without_time(lines(whole.run.updates))
    assert not torch.equal(other.tensors()["model.we"], expected["model.we"])


@pytest.mark.parametrize("afn", ["relu", "swish"])
@pytest.mark.parametrize("schedule", ["warmup_cosine", "warmup_constant"])
def test_flags_of_model_and_optimizer_arrive(run: Run, afn: str, schedule: str) -> None:
    seen: dict[str, Any] = {}
    words = ["--b1", "0.8", "--b2", "0.99", "--e", "1e-7", "--l2", "0.1", "--vector_l2"]
    words += ["--max_grad_norm", "0.5", "--lr", "1e-3", "--lr_warmup", "0.25", "--afn", afn]
    words += ["--lr_schedule", schedule, "--embd_pdrop", "0.2", "--attn_pdrop", "0.3"]
    words += ["--resid_pdrop", "0.4", "--clf_pdrop", "0.5"]

    def stop(trainer: Trainer, *, resumed: bool) -> None:
        state = trainer.state
        seen.update(state.optimizer.param_groups[0], **asdict(state.model.config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        assert run.main(*words) == 0
    expected = {"b1": 0.8, "b2": 0.99, "e": 1e-7, "l2": 0.1, "vector_l2": True, "lr": 1e-3}
    expected |= {"max_grad_norm": 0.5, "warmup": 0.25, "schedule": schedule, "t_total": 12}
    expected |= {"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4, "clf_pdrop": 0.5}
    assert {name: seen[name] for name in [*expected, "afn"]} == {**expected, "afn": afn}


# ------------------------------------------------------- values at the edge of what a flag takes


def refused_flags() -> list[str]:
    """Return the examples in the documented table of flags that only the original accepts."""
    page = (ROOT / "docs" / "fidelity.md").read_text()
    table = page.partition("### Accepted there, refused here\n")[2].partition("\n#")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `--")]
    return [words for cell in cells for words in re.findall(r"`(--[^`]+)`", cell)]


def test_the_table_of_refused_flags_is_found() -> None:
    assert len(refused_flags()) >= 20


@pytest.mark.parametrize("words", refused_flags())
def test_what_the_page_calls_refused_is_refused(
    run: Run, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(run.directory)
    assert run.main(*shlex.split(words)) == 2
    assert capsys.readouterr().err.count("gpt1 train: error: ") == 1
    assert files_of(run.directory) == before


def test_a_rate_of_0_changes_no_parameter(run: Run) -> None:
    start = {f"model.{name}": p.detach() for name, p in start_of(run).named_parameters()}
    assert run.main("--lr", "0") == 0
    assert [row["lr"] for row in lines(run.updates)] == [0] * 12
    assert all(row["grad_norm"] > 0 for row in lines(run.updates))
    final = run.tensors()
    assert all(torch.equal(final[name], value) for name, value in start.items())


def test_a_ramp_over_the_whole_run_is_the_originals_formula(run: Run) -> None:
    assert run.main("--lr", "1e-3", "--lr_warmup", "1") == 0
    shares = [t / 12 for t in range(1, 13)]
    expected = [pytest.approx(1e-3 * x * (1 - x), rel=1e-12, abs=0) for x in shares]
    assert [row["lr"] for row in lines(run.updates)] == expected


def test_the_shortest_context_keeps_a_token_of_each_part(run: Run) -> None:
    found: list[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", lambda trainer, resumed: found.append(trainer))
        assert run.main("--n_ctx", "6") == 0
    task, whole = found[0].job.data, loaded_task(run.task)
    assert task.n_ctx == found[0].state.model.config.n_ctx == 5
    start, delimiter, classify = range(whole.n_vocab, whole.n_vocab + 3)
    assert (task.train.lengths == 5).all()
    for b in range(whole.train.n_examples):
        pairs = zip(task.train.sequences(b), whole.train.sequences(b), strict=True)
        for cut, ids in ((cut.tolist(), ids.tolist()) for cut, ids in pairs):
            ending = ids[ids.index(delimiter) + 1]
            assert cut == [start, ids[1], delimiter, ending, classify]
    assert run.main("--n_ctx", "6", "--n_iter", "1", "--submit") == 0


def test_without_epochs_the_first_parameters_are_kept_and_predict(whole: Done, run: Run) -> None:
    """This is as in the original; from a run's best parameters the predictions are that run's."""
    words = ["--n_iter", "0", "--submit"]
    start = parameters.to_list(start_of(run))
    assert run.main(*words) == 0
    assert [row["n_iter"] for row in lines(run.log)] == [0]
    assert lines(run.updates) == []
    assert all(map(np.array_equal, jl.read_jl(run.best), start))
    assert not checkpoint.checkpoints(run.best.parent)
    assert run.submission.read_text() != whole.run.submission.read_text()
    assert run.main(*words, "--init_params", str(whole.run.best)) == 0
    assert run.submission.read_text() == whole.run.submission.read_text()
    assert run.main(*words, "--init_params", str(whole.run.best), "--resume") == 0


def test_without_epochs_there_is_nothing_to_report(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--analysis", "--n_iter", "0"]
    assert_refused(run, words, 2, capsys, "--analysis: --n_iter 0 makes no evaluation")


# ------------------------------------------------------------------------------- where it starts


def start_of(run: Run, *words: str) -> DoubleHeadsModel:
    """Return the model with which training would begin."""
    return trainer_of(run, *words).state.model


def test_nothing_transferred_is_the_same_model_from_scratch(run: Run) -> None:
    """As in the paper's comparison, the sizes are the checkpoint's and the values are fresh."""
    config = start_of(run, "--n_transfer", "-1").config
    assert (config.n_embd, config.n_head, config.n_layer) == (16, 4, 2)


def test_nothing_transferred_may_have_other_sizes(run: Run) -> None:
    words = ["--n_transfer", "-1", "--n_embd", "12", "--n_head", "2", "--n_layer", "1"]
    config = start_of(run, *words).config
    assert (config.n_embd, config.n_head, config.n_layer) == (12, 2, 1)


def test_init_params_go_on_from_a_run(whole: Done, run: Run) -> None:
    """The list has a classifier and special rows, but does not record the number of heads."""
    words = ["--init_params", str(whole.run.best), "--n_head", "4"]
    start = parameters.to_list(start_of(run, *words))
    assert all(map(np.array_equal, start, jl.read_jl(whole.run.best)))
    assert run.main(*words, "--n_iter", "1") == 0
    assert lines(run.log)[0]["init_params"] == str(whole.run.best)


def test_init_params_take_their_heads_from_beside_the_vocabulary(whole: Done, run: Run) -> None:
    """With twelve heads the model would compute something else, without an error."""
    assert start_of(run, "--init_params", str(whole.run.best)).config.n_head == tiny.N_HEAD


# ------------------------------------------------------------------------------- mistakes


def stale(run: Run) -> dict[str, bytes]:
    """Results of an earlier run, which a run with a mistake must not change."""
    for path in (run.log, run.updates, run.best, run.submission):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of an earlier run")
    return files_of(run.directory)


def assert_refused(
    run: Run, words: list[str], status: int, capsys: pytest.CaptureFixture[str], *parts: str
) -> None:
    before = stale(run)
    assert run.main("--submit", *words) == status
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("gpt1 train: error: ")
    assert stderr.count("gpt1 train: error: ") == 1
    for part in parts:
        assert part in stderr
    assert files_of(run.directory) == before


def test_what_a_reader_notes_about_its_files_is_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(folder: Path) -> Splits:
        return replace(datasets.ROCSTORIES.read(folder), notes=("3 rows are left out", "as are 4"))

    monkeypatch.setitem(TASKS, "rocstories", replace(datasets.ROCSTORIES, read=read))
    assert run.main() == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "gpt1 train: " in line]
    assert notes == ["gpt1 train: 3 rows are left out", "gpt1 train: as are 4"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--n_transfer", "3"], ["--n_transfer 3", "2 layers", "give at most 2"]),
        (["--n_transfer", "2", "--n_layer", "1"], ["--n_transfer 2", "give at most 1"]),
        (["--n_transfer", "3", "--n_layer", "4"], ["--n_transfer 3", "give at most 2"]),
        (["--n_embd", "32"], ["--n_embd 32", "params_shapes.json has 16"]),
        (["--n_head", "3"], ["--n_head 3", "does not divide the width 16"]),
        (["--n_embd", "8", "--n_transfer", "3"], ["2 problems", "--n_embd 8", "--n_transfer 3"]),
        (["--n_transfer", "-1", "--n_embd", "10", "--n_head", "4"], ["--n_head 4", "10"]),
        (["--n_batch", "9"], ["32 training examples", "--n_batch 9", "--n_gpu 4"]),
        (["--device", "gpu"], ["--device gpu"]),
        (["--precision", "tf32"], ["--precision tf32"]),
        (["--model_dir", "elsewhere"], ["elsewhere/ has no pretrained model: fetch the"]),
        (["--data_dir", "elsewhere"], ["elsewhere/ has no"]),
        (["--init_params", "elsewhere.jl"], ["--init_params elsewhere.jl"]),
        (["--lr", "fast", "--n_iter", "-1"], ["--lr fast", "--n_iter -1"]),
        (["--seed", str(2**32)], ["--seed"]),
    ],
)
def test_a_mistake_in_the_flags(
    run: Run, words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(run, words, 2, capsys, *parts)


def damaged(task: tiny.Tiny, directory: Path, change: Callable[[Path], object]) -> tiny.Tiny:
    shutil.copytree(task.directory, directory)
    change(directory)
    return tiny.Tiny(directory)


def append_row(directory: Path) -> None:
    with open(directory / "data" / datasets.VALIDATION_CSV, "a") as file:
        file.write("too,few,cells\n")


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "shard gone": (lambda d: (d / "model/params_3.npy").unlink(), ["params_3.npy"]),
    "shard cut short": (
        lambda d: os.truncate(d / "model/params_9.npy", 200),
        ["params_9.npy"],
    ),
    "shard not an array": (
        lambda d: (d / "model/params_0.npy").write_bytes(b"<html>not found</html>"),
        ["params_0.npy"],
    ),
    "NaN": (
        lambda d: np.save(
            d / "model/params_0.npy", np.load(d / "model/params_0.npy") * np.float32(np.nan)
        ),
        ["NaN"],
    ),
    "table not JSON": (
        lambda d: (d / "model/params_shapes.json").write_text("[["),
        ["params_shapes.json"],
    ),
    "other vocabulary": (
        lambda d: (d / "model/encoder_bpe_40000.json").write_text('{"a</w>": 0}'),
        ["vocab_40000.bpe, line 2: makes 'an', which the vocabulary lacks"],
    ),
    "heads": (lambda d: (d / "model/gpt1_config.json").write_text("{}"), ["gpt1_config.json"]),
    "short row": (append_row, [f"{datasets.VALIDATION_CSV}, line 42"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file(
    task: tiny.Tiny, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = DAMAGE[kind]
    run = Run(damaged(task, tmp_path / "damaged", change), tmp_path / "run")
    assert_refused(run, [], 2, capsys, *parts)


def test_parameters_of_another_model(
    whole: Done, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = jl.read_jl(whole.run.best)
    run.directory.mkdir(parents=True)
    path = run.directory / "other.jl"
    jl.write_jl(path, [arrays[0][:-1], *arrays[1:]])  # one row of `we` less
    assert_refused(run, ["--init_params", str(path), "--n_head", "4"], 2, capsys, "other.jl", "we")


@pytest.mark.parametrize("kind", ["log", "save", "submission"])
def test_a_directory_that_cannot_be_written(
    run: Run, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is noticed before training, and before an earlier log is begun anew."""
    run.directory.mkdir(parents=True)
    (run.directory / "file").touch()
    place = run.directory / "file" / "below"
    assert_refused(run, [f"--{kind}_dir", str(place)], 1, capsys, str(place))


@pytest.mark.parametrize("earlier", [False, True])
def test_analysis_without_anything_to_analyse_is_noticed_before_training(
    run: Run, capsys: pytest.CaptureFixture[str], earlier: bool
) -> None:
    """Otherwise the analysis would mix an earlier run's submission with the log of this run."""
    before = stale(run) if earlier else {}
    assert run.main("--analysis", "--n_iter", "1") == 2
    stdout, stderr = capsys.readouterr()
    assert stderr.startswith("gpt1 train: error: --analysis: needs the run's own predictions")
    assert stderr.count("\n") == 1
    assert "--submit" in stderr
    assert stdout == ""
    assert files_of(run.directory) == before


@pytest.mark.parametrize("desc", ["ROCStories.tsv", "rocstories.run.json"])
def test_a_name_that_stands_in_the_way_of_a_file(
    run: Run, capsys: pytest.CaptureFixture[str], desc: str
) -> None:
    assert_refused(run, ["--desc", desc], 2, capsys, f"--desc {desc}", "another --desc")


def test_a_mistake_ends_a_process_with_status_2_and_one_message(run: Run) -> None:
    done = in_process(run.flags("--n_transfer", "3"), run)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("gpt1 train: error: --n_transfer 3")
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------- resuming


def test_probabilities_are_those_of_the_submission(run: Run) -> None:
    from gpt1.results.submissions import read_probs, read_submission

    assert run.main("--submit", "--probs", "--n_iter", "1") == 0
    choices_ = read_probs(run.submission.with_name("ROCStories.probs.tsv"))
    assert list(choices_.predictions) == read_submission(run.submission)
    data = loaded_task(run.task)
    model = model_of(run, data)
    parameters.from_list(model, jl.read_jl(run.best), "the best")
    alone = Ranks(0, 1, torch.device("cpu"))
    logits = predict.predict_logits(model, data.predicted["ROCStories"], alone, n_batch=32).astype(
        np.float64
    )
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.array(choices_.probs), expected, rtol=0, atol=1e-6)


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Return every figure that TensorBoard shows of a directory, by name and step."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulators.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    shown.Reload()
    return {
        name: {event.step: event.value for event in shown.Scalars(name)}
        for name in shown.Tags()["scalars"]
    }


def test_tensorboard_shows_the_logs_of_a_resumed_run_too(run: Run, tmp_path: Path) -> None:
    board = ["--tensorboard", str(tmp_path / "board")]
    with pytest.MonkeyPatch.context() as patch:
        crash_at("_update", 7, before=True)(patch)
        with pytest.raises(Crash):
            run.main(*RESUMABLE, *board)
    assert run.main(*RESUMABLE, *board, "--resume") == 0
    shown = scalars(tmp_path / "board")
    for kind, rows in (("update", lines(run.updates)), ("evaluation", run.evaluations())):
        for name in rows[0].keys() - {"n_updates", "time"}:
            expected = {row["n_updates"]: pytest.approx(row[name], rel=1e-6) for row in rows}
            assert shown[f"{kind}/{name}"] == expected


def test_what_cannot_be_written_is_said_before_training(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.main("--probs") == 2
    assert "--probs: they are of the predictions of --submit" in capsys.readouterr().err
    monkeypatch.setattr("gpt1.results.outputs.find_spec", lambda name: None)
    assert_refused(run, ["--tensorboard", "board"], 2, capsys, "pip install -e '.[tensorboard]'")


RESUMABLE = ["--submit", "--lr", "1e-2", "--save_every", "3"]  # checkpoints 3 4 6 8 9 12


class Crash(BaseException):
    """Ends a run as SIGKILL would: no code of the program catches it."""


def crash_at(method: str, count: int, *, before: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a change that ends the run before or after a call of a function of training."""
    place: Any = runs if method == "_submit" else Trainer

    def put(patch: pytest.MonkeyPatch) -> None:
        original, calls = getattr(place, method), iter(range(1, 1000))

        def crashing(*args: Any) -> Any:
            now = next(calls) == count
            if now and before:
                raise Crash
            result = original(*args)
            if now:
                raise Crash
            return result

        patch.setattr(place, method, crashing)

    return put


@pytest.fixture(scope="module")
def uninterrupted(task: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(task, tmp_path_factory.mktemp("uninterrupted"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run.main(*RESUMABLE) == 0
    torch.set_num_threads(threads)
    return run


def assert_same_results(run: Run, expected: Run) -> None:
    """Check that parameters, moments, submission and logs without times agree bit for bit."""
    ours, theirs = run.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.best.read_bytes() == expected.best.read_bytes()
    assert run.submission.read_bytes() == expected.submission.read_bytes()
    assert without_time(run.evaluations()) == without_time(expected.evaluations())
    assert without_time(lines(run.updates)) == without_time(lines(expected.updates))


@pytest.mark.parametrize(
    "crash",
    [
        crash_at("_update", 1, before=True),
        crash_at("_update", 5, before=True),  # a checkpoint is at 4
        crash_at("_update", 8, before=False),
        crash_at("_evaluate", 2, before=False),  # best parameters are newer than the checkpoint
        crash_at("_save", 4, before=False),  # at the end of the second epoch
        crash_at("_submit", 1, before=True),  # no update is left
    ],
    ids=["first", "in epoch 2", "end of epoch 2", "evaluated", "checkpoint", "trained"],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    uninterrupted: Run, run: Run, crash: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash(patch)
        with pytest.raises(Crash):
            run.main(*RESUMABLE)
    torch.manual_seed(1)
    assert run.main(*RESUMABLE, "--resume") == 0
    assert_same_results(run, uninterrupted)


KILLED = """
import os, signal, sys
from gpt1.commands import train
from gpt1.training.loop import Trainer

update = Trainer._update

def update_then_die(trainer, number, rows, prepared):
    update(trainer, number, rows, prepared)
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._update = update_then_die
train.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_run_ends_with_the_same_bits(
    uninterrupted: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(run.flags(*RESUMABLE), run, KILLED).status == -signal.SIGKILL
    assert lines(run.updates)[-1]["n_updates"] == 7
    with open(run.updates, "a") as file:
        file.write('{"n_updates": 8, "clf_c')  # a line that the kill cut off
    assert run.main(*RESUMABLE, "--resume") == 0
    assert "after update 6 of 12" in capsys.readouterr().err
    assert_same_results(run, uninterrupted)


def test_resuming_without_a_checkpoint_starts_and_says_so(
    uninterrupted: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(*RESUMABLE, "--resume") == 0
    assert "no checkpoint" in capsys.readouterr().err
    assert_same_results(run, uninterrupted)


def copied(run: Run, directory: Path) -> Run:
    shutil.copytree(run.directory, directory)
    return Run(run.task, directory)


def test_a_run_that_is_over_is_resumed_to_the_same_end(uninterrupted: Run, tmp_path: Path) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    run.submission.unlink()
    assert run.main(*RESUMABLE, "--resume") == 0
    assert_same_results(run, uninterrupted)


def test_places_may_change_on_resuming(uninterrupted: Run, tmp_path: Path) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    checkpoint.checkpoints(run.best.parent)[-1].unlink()
    moved = shutil.copytree(run.task.directory, tmp_path / "moved")
    words = ["--data_dir", str(moved / "data"), "--model_dir", str(moved / "model")]
    words += ["--submission_dir", str(tmp_path / "elsewhere"), "--save_every", "1", "--analysis"]
    assert run.main(*RESUMABLE, "--resume", *words) == 0
    path = tmp_path / "elsewhere/rocstories/ROCStories.tsv"
    assert path.read_bytes() == uninterrupted.submission.read_bytes()


def test_changed_settings_are_listed_on_resuming(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    before = files_of(run.directory)
    words = ["--seed", "1", "--lr", "0.5", "--n_iter", "4", "--clf_pdrop", "0", "--n_batch", "1"]
    assert run.main(*RESUMABLE, "--resume", *words) == 2
    message = capsys.readouterr().err
    for name in (
        "seed was 42",
        "lr was 0.01",
        "n_iter was 3",
        "clf_pdrop was 0.1",
        "n_batch was 2",
    ):
        assert name in message
    assert "l2" not in message
    assert files_of(run.directory) == before


@pytest.mark.parametrize("has_best", [True, False])
def test_more_epochs_on_resuming_say_how_to_go_on(
    uninterrupted: Run, tmp_path: Path, has_best: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    if not has_best:
        run.best.unlink()
    assert run.main(*RESUMABLE, "--n_iter", "9", "--resume") == 2
    message = capsys.readouterr().err
    longer = f"start another run with --init_params {run.best} --desc NEW\n"
    assert message.endswith(longer) is has_best
    assert message.endswith("give the same settings, or another --desc to start anew\n") ^ has_best
    assert run.main(*RESUMABLE, "--n_iter", "1", "--resume") == 2
    assert longer not in capsys.readouterr().err


def test_other_data_are_noticed_on_resuming(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(uninterrupted, tmp_path / "run")

    def swap_a_word(directory: Path) -> None:
        path = directory / "data" / datasets.TEST_CSV
        path.write_text(path.read_text().replace("kite", "drum", 1))

    other = Run(damaged(run.task, tmp_path / "other", swap_a_word), run.directory)
    assert other.main(*RESUMABLE, "--resume") == 2
    assert "data was" in capsys.readouterr().err


def resumed_in_epoch_3(uninterrupted: Run, directory: Path) -> Run:
    """A copy of the run without its newest checkpoint."""
    run = copied(uninterrupted, directory)
    checkpoint.checkpoints(run.best.parent)[-1].unlink()
    return run


WARNING = (
    "--resume: warning: the run may end with other numbers than without the interruption, since "
)


def test_nothing_is_said_where_nothing_has_changed(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resumed_in_epoch_3(uninterrupted, tmp_path / "run")
    assert run.main(*RESUMABLE, "--resume") == 0
    assert capsys.readouterr().err == "--resume: going on after update 9 of 12\n"


def test_another_number_of_threads_is_said_on_resuming(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resumed_in_epoch_3(uninterrupted, tmp_path / "run")
    torch.set_num_threads(2)
    assert run.main(*RESUMABLE, "--resume") == 0
    _, warning = capsys.readouterr().err.splitlines()
    assert warning == f"{WARNING}the number of threads was 1 and is now 2"
    assert run.main(*RESUMABLE, "--resume") == 0  # The new checkpoint has the new number.
    assert "warning" not in capsys.readouterr().err


def test_all_that_has_changed_is_said_on_resuming(
    uninterrupted: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = resumed_in_epoch_3(uninterrupted, tmp_path / "run")
    before = environment(torch.device("cpu"), 1)
    assert list(before) == [
        "the device",
        "the number of processes",
        "torch's version",
        "NumPy's version",
        "the processor",
        "the processor's instruction set",
        "the number of threads",
    ]
    # The environment of a GPU does not name the processor; values of one side alone are left out.
    after = {name: f"another {i}" for i, name in enumerate(before) if "instruction" not in name}
    monkeypatch.setattr(
        checkpoint, "environment", lambda device, world: {**after, "the weather": "fine"}
    )
    assert run.main(*RESUMABLE, "--resume") == 0
    _, warning = capsys.readouterr().err.splitlines()
    changes = [f"{name} was {before[name]} and is now {value}" for name, value in after.items()]
    assert warning == WARNING + ", ".join(changes)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    before, newest = checkpoint.checkpoints(run.best.parent)
    damage(newest)
    damaged = newest.read_bytes()
    assert run.main(*RESUMABLE, "--resume") == 0
    message = capsys.readouterr().err
    assert f"{newest}: damaged" in message
    assert "after update 9 of 12" in message
    assert_same_results(run, uninterrupted)
    assert newest.with_name(newest.name + ".damaged").read_bytes() == damaged
    assert checkpoint.checkpoints(run.best.parent) == [before, newest]


def test_no_checkpoint_left_is_an_error_that_loses_nothing(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(uninterrupted, tmp_path / "run")
    for path in checkpoint.checkpoints(run.best.parent):
        damage(path)
    before = files_of(run.directory)
    assert run.main(*RESUMABLE, "--resume") == 2
    assert "start anew without --resume" in capsys.readouterr().err
    assert sorted(files_of(run.directory).values()) == sorted(before.values())
    assert run.main(*RESUMABLE) == 0
    assert_same_results(run, uninterrupted)
    assert not list(run.best.parent.glob("*.damaged"))


@pytest.mark.parametrize("crash", [2, 6])
def test_a_new_run_does_not_mistake_an_older_runs_checkpoints_for_its_own(
    uninterrupted: Run, tmp_path: Path, crash: int
) -> None:
    """The older run made more updates, so that its checkpoints have higher numbers.

    Crashing in update 2, the new run has no checkpoint yet, but has begun its own logs and best
    parameters; in update 6 it has two.
    """
    run = copied(uninterrupted, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        crash_at("_update", crash, before=True)(patch)
        with pytest.raises(Crash):
            run.main(*RESUMABLE)
    assert run.main(*RESUMABLE, "--resume") == 0
    assert_same_results(run, uninterrupted)


# ------------------------------------------------------------------------------- the demo


@pytest.fixture
def demo(task: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory whose data/demo and model/demo hold the tiny task."""
    shutil.copytree(task.data_dir, tmp_path / "data/demo")
    shutil.copytree(task.model_dir, tmp_path / "model/demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_says_so_on_stderr_and_in_the_log(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--submit", "--n_iter", "1", "--device", "cpu", *BATCH_OF_8]) == 0
    stdout, stderr = capsys.readouterr()
    assert len(stdout.splitlines()) == 1
    assert "bundled demo" in stderr
    assert "README" in stderr
    settings = lines(Path("log/rocstories.jsonl"))[0]
    assert settings["demo"] is True
    assert (settings["lr"], settings["n_iter"]) == (DEMO_DEFAULTS["lr"], 1)
    assert settings["data_dir"] == "data/demo"
    assert settings["model_dir"] == "model/demo"
    assert Path("submission/ROCStories.tsv").exists()


@pytest.mark.parametrize(
    "words", [["--data_dir", "data/demo", "--model_dir", "model/demo"], ["--model_dir=model/demo"]]
)
def test_the_demo_named_has_the_settings_at_which_it_learns(
    demo: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*words, "--n_iter", "1", "--device", "cpu", *BATCH_OF_8]) == 0
    stderr = " ".join(capsys.readouterr().err.split())
    assert "This is the bundled demo" in stderr
    assert "It runs because its directory was named" in stderr
    settings = lines(Path("log/rocstories.jsonl"))[0]
    assert (settings["demo"], settings["lr"]) == (True, DEMO_DEFAULTS["lr"])
    assert settings["n_iter"] == 1


def test_real_data_without_weights_are_no_demo(
    demo: Path, task: tiny.Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(task.data_dir, "data", dirs_exist_ok=True)
    assert train.main([]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert "bundled demo" not in stderr
    assert "--model_dir" in stderr
    assert not Path("log").exists()


def test_the_bundled_demo_is_found_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (ROOT / "model/demo/params_shapes.json").exists():
        pytest.skip("model/demo is not made yet: see scripts/")
    if any(
        (ROOT / "data" / name).exists() for name in (datasets.VALIDATION_CSV, datasets.TEST_CSV)
    ):
        pytest.skip("data/ holds real CSVs, so that the demo does not run")
    monkeypatch.chdir(ROOT)
    seen: list[ModelConfig] = []
    monkeypatch.setattr(Trainer, "train", lambda t, resumed: seen.append(t.state.model.config))
    places = [f"--{kind}_dir={tmp_path / kind}" for kind in ("log", "save", "submission")]
    assert train.main(["--device", "cpu", *places]) == 0
    assert "bundled demo" in capsys.readouterr().err
    assert seen[0].n_vocab > 100
