"""The report of the analysis, and its error messages."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluations import log_line
from run_texts import evaluation, log_text, submission_text

from gpt1.commands import analysis as command
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.reports import analysis
from gpt1.reports.labelled import LabelledSplit, read_labelled
from gpt1.runtime.errors import InputError

SCRIPT = Path(__file__).parents[2] / "scripts" / "analysis.py"
VALIDATION_CSV = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
TEST_CSV = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
CSV_HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
FIRST = [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]  # wrong on stories 5 and 6
SECOND = [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]  # wrong on 0 to 3, 7 and 8
RECORD = {"desc": "x", "run_id": "1", "log": "log/x.jsonl", "valid_accuracy": 62.5}

REPORT = """\
ROCStories Valid Accuracy: 62.50
ROCStories Test Accuracy:  80.00

Run: x
Test: 8 of 10 right, 80.00 %; 95 % interval (Wilson) 49.02 to 94.33 %

                    predicted 0  predicted 1
right answer 0                5            0
right answer 1                2            3
(0: the first ending, label 1 in the CSV; 1: the second, label 2)

Second submission: 4 of 10 right, 40.00 %; 95 % interval (Wilson) 16.82 to 68.73 %
Stories that only the first gets right: 6; only the second: 2
Exact McNemar test, two-sided: p = 0.289; at the 5 % level the difference is not significant: \
chance alone could explain it."""


def analyse(data_dir: Path, *paths: Path | None) -> str:
    """Return the report on a submission for ROCStories, and perhaps its log and a second one."""
    assert paths[0] is not None
    return analysis.analyse(read_labelled(ROCSTORIES, data_dir, paths[0]), *paths)


def report(predictions: list[int], labels: list[int], other: list[int]) -> str:
    """Return the report on two lists of predictions for ROCStories."""
    split = LabelledSplit(task=ROCSTORIES, stem="ROCStories", labels=np.array(labels), source="x")
    return analysis.report(split, np.array(predictions), other=np.array(other))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A directory with the files of a finished run and the test CSV."""
    rows = [f"id{n},A.,B.,C.,D.,Good.,Bad.,{label + 1}" for n, label in enumerate(LABELS)]
    (tmp_path / TEST_CSV).write_text("\n".join([CSV_HEADER, *rows, ""]))
    (tmp_path / "first.tsv").write_text(submission_text(FIRST))
    digest = hashlib.sha256(submission_text(FIRST).encode()).hexdigest()
    (tmp_path / "first.run.json").write_text(json.dumps({**RECORD, "sha256": digest}))
    (tmp_path / "second.tsv").write_text(submission_text(SECOND))
    (tmp_path / "log.jsonl").write_text(log_text(evaluation(60.0), evaluation(62.5)))
    return tmp_path


# Reports


def test_best_valid_score_is_not_the_last() -> None:
    log = [log_line(evaluation(accuracy)) for accuracy in (50.0, 62.5, 61.0)]
    assert analysis.best_valid_score(log) == 62.5


def test_report_is_exact(run_dir: Path) -> None:
    files = [run_dir / name for name in ("first.tsv", "log.jsonl", "second.tsv")]
    assert analyse(run_dir, *files) == REPORT


def test_report_without_log_and_second_submission(run_dir: Path) -> None:
    text = analyse(run_dir, run_dir / "first.tsv")
    assert text == "\n".join(REPORT.splitlines()[1:10])


def test_report_names_the_significantly_better_one() -> None:
    worse, better, labels = [0] * 10, [1] * 6 + [0] * 4, [1] * 10
    assert report(worse, labels, better).endswith(
        "only the first gets right: 0; only the second: 6\nExact McNemar test, two-sided: "
        "p = 0.0312; at the 5 % level the difference is significant: the second is better."
    )
    assert report(better, labels, worse).endswith("the first is better.")


def test_report_on_equal_submissions() -> None:
    text = report(FIRST, LABELS, FIRST)
    assert text.splitlines()[-1] == (
        "Both submissions get the same stories right: no difference to test (p = 1)."
    )


@pytest.mark.parametrize("arguments", [("short.tsv",), ("first.tsv", None, "short.tsv")])
def test_other_number_of_stories_names_both_files(
    run_dir: Path, arguments: tuple[str | None, ...]
) -> None:
    (run_dir / "short.tsv").write_text(submission_text(FIRST[:-1]))
    paths = [name and run_dir / name for name in arguments]
    with pytest.raises(InputError) as caught:
        analyse(run_dir, *paths)
    assert str(caught.value).startswith(
        f"{run_dir / 'short.tsv'} has 9 predictions, but {run_dir / TEST_CSV} has 10 stories;"
    )


def test_original_run(rocstories_dir: Path, references_dir: Path) -> None:
    text = analyse(
        rocstories_dir,
        references_dir / "rocstories_run.tsv",
        references_dir / "rocstories_run.jsonl",
    )
    assert text.splitlines()[0] == "ROCStories Valid Accuracy: 53.48"
    assert text.splitlines()[1] == "ROCStories Test Accuracy:  52.22"


# Command line


def test_script_from_another_directory(run_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)

    options = ["--data_dir", "..", "--log", "../log.jsonl"]
    done = call("../first.tsv", "../second.tsv", *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, REPORT + "\n", "")
    failed = call("../nothing.tsv", *options)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("gpt1 analysis: error: ../nothing.tsv: ")
    assert failed.stderr.count("\n") == 1


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "gpt1 analysis first.tsv second.tsv" in shown
    assert f"mistakes to show with --probs [{analysis.N_MISTAKES}]" in shown


@pytest.mark.parametrize(
    ("files", "status", "says"),
    [
        ([f"data/{TEST_CSV}", f"data/demo/{TEST_CSV}", f"data/demo/{VALIDATION_CSV}"], 0, ""),
        ([f"data/demo/{TEST_CSV}", f"data/demo/{VALIDATION_CSV}"], 0, "using the demo"),
        # If one of two CSVs is missing, that is reported; the demo does not replace it.
        (
            [f"data/{VALIDATION_CSV}", f"data/demo/{TEST_CSV}", f"data/demo/{VALIDATION_CSV}"],
            2,
            f"{Path('data') / TEST_CSV}: no such file; name the test CSV's directory",
        ),
        ([], 2, f"{Path('data') / TEST_CSV}: no such file; name the test CSV's directory"),
    ],
)
def test_data_dir_is_data_or_else_the_demo(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(run_dir)
    Path("data/demo").mkdir(parents=True)
    for file in files:
        Path(file).write_bytes(Path(TEST_CSV).read_bytes())
    assert command.main(["first.tsv"]) == status
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:1] == ["ROCStories Test Accuracy:  80.00"] * (status == 0)
    assert says in captured.err
    assert bool(captured.err) == bool(says)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    """The reader ends as in ``scripts/analysis.py ... | head -1``."""
    body = "import sys; from gpt1.runtime.errors import report_errors\n"
    body += "sys.exit(report_errors('x', lambda: [print('y' * 100) for _ in range(10**5)] and 0))"
    command = f'"{sys.executable}" -c "{body}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "y" * 100 + "\n"
    assert done.stderr == ""
