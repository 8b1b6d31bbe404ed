"""Records tell which run made a submission, and files that prove to be of two runs are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import tiny
from processes import SIGKILL, Run, before, sends_itself

from gpt1.commands import analysis as command
from gpt1.reports import analysis
from gpt1.results import submissions
from gpt1.results.log_lines import read_run_log
from gpt1.results.submissions import Record
from gpt1.runtime.errors import InputError

PREDICTIONS = [0, 1, 1, 0]
TEXT = "index\tprediction\n0\t0\n1\t1\n2\t1\n3\t0\n"
RECORD = Record(
    desc="mine",
    run_id="1",
    log="log/mine.jsonl",
    dataset="rocstories",
    split="ROCStories",
    metric="accuracy",
    valid_score=62.5,
    sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
)
SETTINGS = {"desc": "mine", "submission_dir": "submission/", "run_id": "1"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a submission, its record and the log of its run."""
    monkeypatch.chdir(tmp_path)
    submissions.write(Path("s.tsv"), PREDICTIONS, RECORD)
    write_log(SETTINGS, 50.0, 62.5, 25.0)
    return tmp_path


def write_log(settings: dict[str, Any], *accuracies: float) -> None:
    line = {"n_epochs": 1, "n_updates": 4, "tr_cost": 0.7, "va_cost": 0.7, "tr_acc": 50.0}
    rows = [settings, *({**line, "va_acc": accuracy, "time": 1.5e9} for accuracy in accuracies)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def identify(submission: Path | str = "s.tsv", log: Path | str | None = "a.jsonl") -> str:
    """Return what the files say about the run."""
    run_log = None if log is None else read_run_log(log)
    return analysis.identify_run(submission, run_log)


# ------------------------------------------------------------------------------- the files


def test_the_record_has_the_hash_of_the_submissions_bytes(place: Path) -> None:
    data = (place / "s.tsv").read_bytes()
    assert data.decode() == TEXT
    assert json.loads((place / "s.run.json").read_text()) == {
        "desc": "mine",
        "run_id": "1",
        "log": "log/mine.jsonl",
        "dataset": "rocstories",
        "split": "ROCStories",
        "metric": "accuracy",
        "valid_score": 62.5,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert submissions.read_record("s.tsv") == RECORD


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"desc": 3}, "expected desc to be a text"),
        ({"run_id": 1}, "expected run_id to be a text or null"),
        ({"log": None}, "expected log to be a text"),
        ({"valid_score": "62.5"}, "expected valid_score to be a number or null"),
        ({"valid_score": float("nan")}, "expected valid_score to be a number or null"),
        ({"valid_accuracy": "62.5"}, "expected valid_score to be a number or null"),
        ({"dataset": None}, "expected dataset to be a text"),
        ({"split": 1}, "expected split to be a text"),
        ({"metric": []}, "expected metric to be a text"),
        ({"sha256": "0" * 63}, "expected sha256 to be 64 hexadecimal digits"),
        ({"sha256": "0" * 64 + "\n"}, "expected sha256 to be 64 hexadecimal digits"),
    ],
)
def test_a_record_that_nobody_wrote_is_an_input_error(
    place: Path, changes: dict[str, Any], complaint: str
) -> None:
    values = json.loads(Path("s.run.json").read_text())
    for text in (json.dumps(values | changes), json.dumps([values]), "{"):
        Path("s.run.json").write_text(text)
        with pytest.raises(InputError) as caught:
            identify()
        right = complaint if text.startswith("{") and len(text) > 1 else "expected one JSON object"
        assert str(caught.value).startswith(f"s.run.json: {right}, found ")
        assert "; delete this file" in str(caught.value)


def test_a_record_of_an_earlier_version_is_read(place: Path) -> None:
    """It was written when ROCStories was the only task."""
    values = json.loads(Path("s.run.json").read_text())
    for name in ("dataset", "split", "metric", "valid_score"):
        del values[name]
    Path("s.run.json").write_text(json.dumps({**values, "valid_accuracy": 62.5}))
    assert submissions.read_record("s.tsv") == RECORD
    assert identify() == "Run: mine"


# ------------------------------------------------------------------------------- who made it


def test_a_run_is_known_by_its_record(place: Path) -> None:
    assert identify() == identify(log=None) == "Run: mine"


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("index", "\ufeffindex"), ("3\t0\n", "3\t0")])
def test_a_run_is_known_however_its_lines_end(place: Path, change: tuple[str, str]) -> None:
    with open("s.tsv", "w", encoding="utf-8", newline="") as file:
        file.write(TEXT.replace(*change))
    assert identify() == "Run: mine"


def test_without_a_record_the_run_is_unknown(place: Path) -> None:
    Path("s.run.json").unlink()
    says = "Run unknown: s.tsv has no record of its run (s.run.json)."
    assert identify() == identify(log=None) == says


def test_a_record_of_another_submission_proves_nothing(place: Path) -> None:
    """This happens when two runs replace the copy of the last submission at the same time."""
    Path("s.tsv").write_text(TEXT.replace("0\t0", "0\t1"))
    write_log({**SETTINGS, "run_id": "2"}, 50.0)
    says = "Run unknown: s.run.json is the record of another submission than s.tsv."
    assert identify() == identify(log=None) == says


def test_a_record_of_a_log_without_a_run_id_proves_nothing(place: Path) -> None:
    """This happens when a run is resumed whose log an earlier version wrote without ``run_id``."""
    submissions.write(Path("s.tsv"), PREDICTIONS, replace(RECORD, run_id=None))
    assert identify(log=None) == "Run: mine"
    assert identify() == "Run unknown: the log of the run mine had no run_id, says s.run.json."


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (
            {"desc": "other", "run_id": "2"},
            "name the submission of the run other, which writes it to "
            "submission/other/ROCStories.tsv",
        ),
        (
            {"desc": "mine", "run_id": "2"},
            "another run of the name mine began this log: finish it, with --submit",
        ),
        ({"run_id": None}, "another run of the name mine began this log"),
        ({"desc": "\x1b[2J\n"}, "name the submission of the run '\\x1b[2J\\n', which"),
    ],
)
def test_the_log_of_another_run_is_refused(
    place: Path, settings: dict[str, Any], remedy: str
) -> None:
    """It is refused even if the other run has the same accuracy."""
    write_log({**SETTINGS, "run_id": "2", **settings}, 50.0, 62.5, 25.0)
    with pytest.raises(InputError) as caught:
        identify()
    message = str(caught.value)
    assert message.startswith(f"a.jsonl: not the log of the run that made s.tsv; {remedy}")
    assert message.endswith("(run mine, log log/mine.jsonl, says s.run.json).")
    assert message.isprintable()
    assert identify(log=None) == "Run: mine"


@pytest.mark.parametrize("accuracies", [(50.0,), (50.0, 62.5, 75.0)])
def test_a_log_with_another_best_epoch_is_refused(
    place: Path, accuracies: tuple[float, ...]
) -> None:
    """This happens when the run is resumed from an earlier checkpoint, and its log is cut back."""
    write_log(SETTINGS, *accuracies)
    with pytest.raises(InputError) as caught:
        identify()
    assert str(caught.value).startswith(
        f"a.jsonl: its best validation accuracy is {max(accuracies):.2f} %, but the parameters "
        "that made s.tsv had 62.50 %, says s.run.json; "
    )
    assert "finish it with --resume" in str(caught.value)


def test_the_command_line_says_what_it_knows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tiny.write_tiny(place / "task")
    text = submissions.table([0] * tiny.N_TEST)
    digest = hashlib.sha256(text.encode()).hexdigest()
    submissions.write(Path("t.tsv"), [0] * tiny.N_TEST, replace(RECORD, sha256=digest))
    words = ["t.tsv", "--log", "a.jsonl", "--data_dir", str(task.data_dir)]
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ROCStories Valid Accuracy: 62.50"
    assert lines[2:4] == ["", "Run: mine"]
    write_log({**SETTINGS, "run_id": "2"}, 62.5)
    assert command.main(words) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("gpt1 analysis: error: a.jsonl: not the log of the run that made")
    assert stderr.count("\n") == 1
    Path("t.run.json").unlink()
    assert command.main(words) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.splitlines()[3].startswith("Run unknown: ")
    assert stderr == ""


# ------------------------------------------------------------------------------- whole runs

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the runs are forks of a server")


FIRST = ("--probs",)
SECOND = ("--seed", "1", "--n_iter", "1")  # other predictions, other validation accuracy


@pytest.fixture(scope="module")
def finished(fork_server: None, task: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has written its submission and probabilities."""
    run = Run(task, tmp_path_factory.mktemp("first"), desc="first")
    assert run.do(*FIRST).status == 0
    return run


@pytest.fixture(scope="module")
def other(fork_server: None, task: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another run, in other directories."""
    run = Run(task, tmp_path_factory.mktemp("second"), desc="second")
    assert run.do(*SECOND).status == 0
    return run


@pytest.fixture
def first(finished: Run, tmp_path: Path) -> Run:
    """A copy of the first run's results."""
    return processes.copied(finished, tmp_path / "run")


def last(run: Run) -> Path:
    """Return the path of the copy at the original's path."""
    return run.directory / "submission/ROCStories.tsv"


def best(run: Run) -> float:
    return max(row["va_acc"] for row in processes.lines(run.log)[1:])


@on_linux
def test_every_run_keeps_its_submission(finished: Run, first: Run, other: Run) -> None:
    assert finished.submission.read_text() != other.submission.read_text()
    assert best(finished) != best(other)
    assert last(first).read_bytes() == first.submission.read_bytes()
    second = Run(first.task, first.directory, desc="second")
    assert second.do(*SECOND).status == 0
    assert first.submission.read_bytes() == finished.submission.read_bytes()
    assert second.submission.read_bytes() == other.submission.read_bytes()
    for end in ("tsv", "run.json"):
        assert last(second).with_name(f"ROCStories.{end}").read_bytes() == (
            second.submission.with_name(f"ROCStories.{end}").read_bytes()
        )
    assert identify(first.submission, first.log) == "Run: first"
    assert identify(second.submission, second.log) == "Run: second"
    assert identify(last(second), second.log) == "Run: second"
    with pytest.raises(InputError, match="name the submission of the run first, which writes it"):
        identify(last(second), first.log)


@on_linux
def test_results_that_moved_are_known(first: Run, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(first.directory / "submission", moved / "predictions")
    shutil.move(first.log, moved / "renamed.jsonl")
    path = moved / "predictions/first/ROCStories.tsv"
    assert identify(path, moved / "renamed.jsonl") == "Run: first"


@on_linux
def test_a_log_begun_anew_is_not_that_of_the_older_submission(first: Run) -> None:
    """The run has the same bits, but its log may get other evaluations."""
    stopped = before("gpt1.training.runs:_submit", sends_itself(SIGKILL))
    assert first.do(*FIRST, changes=[stopped]).status == -SIGKILL
    with pytest.raises(InputError, match="another run of the name first began this log: finish"):
        identify(first.submission, first.log)
    assert first.do(*FIRST, "--resume").status == 0
    assert identify(first.submission, first.log) == "Run: first"


@on_linux
def test_a_resumed_run_keeps_its_identity(first: Run, tmp_path: Path) -> None:
    again = str(tmp_path / "again")
    assert first.do(*FIRST, "--resume", "--submission_dir", again).status == 0
    for directory in (Path(again), first.directory / "submission"):
        assert identify(directory / "first/ROCStories.tsv", first.log) == "Run: first"


@on_linux
def test_a_log_that_was_cut_back_is_not_that_of_the_submission(
    task: tiny.Tiny, tmp_path: Path
) -> None:
    """A finished run is resumed from its first epoch, as from an older copy of its files."""
    run, words = Run(task, tmp_path / "run"), ("--lr", "5e-3")
    dies_in_epoch_2 = processes.update(6, sends_itself(SIGKILL))
    assert run.do(*words, changes=[dies_in_epoch_2]).status == -SIGKILL
    shutil.copytree(run.saved, tmp_path / "older")
    assert run.do(*words, "--resume").status == 0
    accuracies = [row["va_acc"] for row in processes.lines(run.log)[1:]]
    assert accuracies[0] < max(accuracies)
    assert identify(run.submission, run.log) == "Run: rocstories"

    shutil.rmtree(run.saved)
    shutil.move(tmp_path / "older", run.saved)
    dies_at_once = processes.update(1, sends_itself(SIGKILL))
    assert run.do(*words, "--resume", changes=[dies_at_once]).status == -SIGKILL
    with pytest.raises(InputError, match="finish it with --resume"):
        identify(run.submission, run.log)
    assert run.do(*words, "--resume").status == 0
    assert identify(run.submission, run.log) == "Run: rocstories"


@on_linux
@pytest.mark.parametrize("desc", ["first", "second"])
@pytest.mark.parametrize("file", ["run.json", "tsv"])
@pytest.mark.parametrize("place", ["own", "copy"])
def test_a_kill_among_the_writes_makes_no_mix(
    first: Run, other: Run, desc: str, place: str, file: str
) -> None:
    """It is tried before each of the four renames of a run that ends after another one.

    The run has the earlier run's name, or another. Each submission is the whole old or the whole
    new one, and is reported as that of the run that made it or as that of an unknown run.
    """
    run = Run(first.task, first.directory, desc=desc)
    path = run.submission if place == "own" else last(run)
    old = {path: path.read_text() for path in (first.submission, last(first))}
    renamed = f"{path.parent.name}/{path.stem}.{file}"
    kill = before("gpt1.runtime.files:os.replace", sends_itself(SIGKILL), matching=renamed)
    assert run.do(*SECOND, changes=[kill]).status == -SIGKILL
    if path in old:
        assert path.read_text() == old[path]
        says = identify(path, None)
        assert says == "Run: first" if file == "run.json" else says.startswith("Run unknown: ")
    else:
        assert not path.exists()
    if place == "copy":
        assert run.submission.read_text() == other.submission.read_text()
        assert identify(run.submission, run.log) == f"Run: {desc}"
    assert run.do(*SECOND, "--resume").status == 0
    assert identify(run.submission, run.log) == identify(last(run), run.log) == f"Run: {desc}"
    assert run.leftovers() == []


@on_linux
def test_probabilities_stay_beside_their_own_submission(first: Run) -> None:
    probs = first.submission.with_name("ROCStories.probs.tsv")
    assert probs.exists()
    assert not last(first).with_name(probs.name).exists()
    assert first.do("--resume").status == 0  # The same run need not write them again.
    assert probs.exists()
    assert first.do(*SECOND).status == 0
    assert not probs.exists()
