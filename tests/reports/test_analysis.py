"""Numbers, words and complaints of the analysis, against hand calculation and SciPy."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1.commands import analysis as command
from gpt1.reports import analysis
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
SETTINGS = {"desc": "x", "n_ctx": 512, "submit": True, "run_id": "1"}
RECORD = {"desc": "x", "run_id": "1", "log": "log/x.jsonl", "valid_accuracy": 62.5}

REPORT = """\
ROCStories Valid Accuracy: 62.50
ROCStories Test Accuracy:  80.00

Run: x
Test: 8 of 10 right, 80.00 %; 95 % interval (Wilson) 49.02 to 94.33 %

                    predicted 0  predicted 1
right answer 0                5            0
right answer 1                2            3
(0: the first ending, 1: the second)

Second submission: 4 of 10 right, 40.00 %; 95 % interval (Wilson) 16.82 to 68.73 %
Stories that only the first gets right: 6; only the second: 2
Exact McNemar test, two-sided: p = 0.289; at the 5 % level the difference is not significant: \
chance alone could explain it."""


def submission_text(predictions: list[int]) -> str:
    rows = [f"{index}\t{prediction}" for index, prediction in enumerate(predictions)]
    return "\n".join(["index\tprediction", *rows, ""])


def evaluation(va_acc: float, **changes: Any) -> dict[str, Any]:
    line = {"n_epochs": 1, "n_updates": 46, "tr_cost": 0.7, "va_cost": 0.7, "tr_acc": 50.0}
    return {**line, "va_acc": va_acc, "time": 1.5e9, **changes}


def log_text(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in (SETTINGS, *lines))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A directory with all that a finished run and its test set leave."""
    rows = [f"id{n},A.,B.,C.,D.,Good.,Bad.,{label + 1}" for n, label in enumerate(LABELS)]
    (tmp_path / TEST_CSV).write_text("\n".join([CSV_HEADER, *rows, ""]))
    (tmp_path / "first.tsv").write_text(submission_text(FIRST))
    digest = hashlib.sha256(submission_text(FIRST).encode()).hexdigest()
    (tmp_path / "first.run.json").write_text(json.dumps({**RECORD, "sha256": digest}))
    (tmp_path / "second.tsv").write_text(submission_text(SECOND))
    (tmp_path / "log.jsonl").write_text(log_text(evaluation(60.0), evaluation(62.5)))
    return tmp_path


def message(read: Callable[[Path], Any], path: Path, content: str | bytes) -> str:
    """What ``read`` complains about in a file of this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# Numbers


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson_interval_of_known_cases(k: int, n: int, low: float, high: float) -> None:
    assert analysis.wilson_interval(k, n) == pytest.approx((low, high), abs=5e-7)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 374, 1871])
def test_wilson_interval_is_scipys(n: int, level: float) -> None:
    from scipy.stats import binomtest

    for k in sorted({0, 1, n // 3, n - 1, n}):
        expected = binomtest(k, n).proportion_ci(level, method="wilson")
        low, high = analysis.wilson_interval(k, n, level)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= k / n <= high <= 1


def test_wilson_interval_ends_exactly_when_none_or_all_are_right() -> None:
    for n in range(1, 300):
        assert analysis.wilson_interval(0, n)[0] == 0.0
        assert analysis.wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize(
    ("k", "n", "level"),
    [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan)],
)
def test_wilson_interval_refuses_what_has_none(k: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        analysis.wilson_interval(k, n, level)


def test_confusion_has_labels_in_rows() -> None:
    assert analysis.confusion([0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]) == [[2, 2], [1, 1]]
    with pytest.raises(ValueError, match="longer"):
        analysis.confusion([0], [0, 1])


def test_mcnemar_by_hand() -> None:
    # 6 against 2: 1 + 8 + 28 of the 256 ways on either side.
    assert analysis.mcnemar_exact(FIRST, SECOND, LABELS) == (6, 2, 74 / 256)


def test_mcnemar_is_scipys_binomial_test() -> None:
    from scipy.stats import binomtest

    for x, y in [*product(range(8), repeat=2), (300, 250), (0, 2000), (40, 80)]:
        a, b = [1] * x + [0] * y, [0] * x + [1] * y
        result = analysis.mcnemar_exact(a, b, [1] * (x + y))
        expected = binomtest(x, x + y).pvalue if x + y else 1.0
        assert result == (x, y, pytest.approx(expected, rel=1e-9))


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), max_size=60))
def test_mcnemar_is_symmetric(stories: list[tuple[int, int, int]]) -> None:
    a, b, labels = ([story[i] for story in stories] for i in range(3))
    there, back = analysis.mcnemar_exact(a, b, labels), analysis.mcnemar_exact(b, a, labels)
    assert there == (back.only_b, back.only_a, back.p)
    assert 0 < there.p <= 1


def test_mcnemar_without_discordant_stories_is_certain() -> None:
    assert analysis.mcnemar_exact(FIRST, FIRST, LABELS) == (0, 0, 1.0)
    assert analysis.mcnemar_exact([], [], []) == (0, 0, 1.0)


def test_best_valid_accuracy_is_not_the_last(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_text(evaluation(50.0), evaluation(62.5), evaluation(61.0)))
    assert analysis.best_valid_accuracy(analysis.read_log(path)) == 62.5


# Reading


@pytest.mark.parametrize("change", [str, lambda t: t.replace("\n", "\r\n"), str.rstrip])
def test_submission_is_read_with_any_line_end(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "s.tsv"
    path.write_bytes(change(submission_text(FIRST)).encode())
    assert analysis.read_submission(path) == FIRST


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ("index\tprediction\n", "no predictions"),
        ("0\t1\n1\t0\n", r"line 1: expected the header 'index\tprediction', found '0\t1'"),
        ("index,prediction\n0,1\n", "line 1: expected the header"),
        ("index\tprediction\n0\t1\n1\t2\n", r"line 3: expected index 1, a tab, and 0 or 1"),
        ("index\tprediction\n0\t1\n2\t1\n", r"line 3: expected index 1"),
        ("index\tprediction\n1\t1\n2\t1\n", r"line 2: expected index 0"),
        ("index\tprediction\n0\t1\t1\n", "line 2: expected index 0"),
        ("index\tprediction\n0 1\n", "line 2: expected index 0"),
        ("index\tprediction\n0\t1\n\n", "line 3: expected index 1"),
        ("index\tprediction\n0\t٠\n", "line 2: expected index 0"),
        ("index\tprediction\n0\t" + "1" * 9999, "1...'"),
        (b"index\tprediction\n0\t\xff\n", "line 2: the submission must be UTF-8"),
    ],
)
def test_bad_submission(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    assert complaint in message(analysis.read_submission, tmp_path / "s.tsv", content)


@pytest.mark.parametrize("read", [analysis.read_submission, analysis.read_log])
def test_missing_file(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


def test_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    diverged = evaluation(50.0, n_epochs=2, tr_cost=math.nan, va_cost=math.inf, more="ignored")
    path.write_text(log_text(evaluation(62), diverged).replace("\n", "\r\n"))
    first, second = analysis.read_log(path)
    assert first == analysis.LogLine(**evaluation(62.0))
    assert isinstance(first.n_updates, int)
    assert math.isnan(second.tr_cost)
    assert second.va_cost == math.inf


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        (log_text(), "only settings, no evaluation yet"),
        (json.dumps(evaluation(50.0)) + "\n", "line 1: expected the settings"),
        (log_text(evaluation(50.0))[:-9], "line 2: expected one JSON object"),
        (log_text(evaluation(50.0)) + "\n", "line 3: expected one JSON object"),
        (log_text() + "[1]\n", "line 2: expected one JSON object, found '[1]'"),
        ("[" * 100_000 + "\n", "line 1: expected one JSON object"),
        (
            log_text({"n_epochs": 1}),
            "line 2: expected n_updates to be a whole number from 0, found nothing",
        ),
        (log_text(evaluation(50.0, n_updates=1.5)), "n_updates to be a whole number from 0, found"),
        (log_text(evaluation(50.0, n_epochs=-1)), "n_epochs to be a whole number"),
        (log_text(evaluation(50.0, n_epochs=True)), "n_epochs to be a whole number"),
        (log_text(evaluation(100.5)), "va_acc to be a percentage from 0 to 100, found '100.5'"),
        (log_text(evaluation(math.nan)), "va_acc to be a percentage"),
        (log_text(evaluation(10**400)), "va_acc to be a percentage"),
        (log_text(evaluation(50.0, va_cost="0.7")), "va_cost to be a number"),
        (log_text(evaluation(50.0, time=None)), "time to be a number, found 'null'"),
        (log_text(evaluation(50.0), evaluation(50.0, tr_acc=[1])), "line 3: expected tr_acc"),
        (log_text().replace("x", "1" * 5000) + "1" * 5000 + "\n", "line 2: expected one JSON"),
    ],
)
def test_bad_log(tmp_path: Path, content: str, complaint: str) -> None:
    assert complaint in message(analysis.read_log, tmp_path / "log.jsonl", content)


def edits(text: str) -> st.SearchStrategy[bytes]:
    """Any bytes, or ``text`` with a stretch of it replaced."""
    data = text.encode()
    cut = st.tuples(st.integers(0, len(data)), st.integers(0, 9), st.binary(max_size=6))
    near = cut.map(lambda c: data[: c[0]] + c[2] + data[c[0] + c[1] :])
    return st.one_of(near, st.binary(max_size=60))


def result_or_complaint(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except InputError as error:
        return str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
ODD_LOG = st.builds(
    lambda name, value: log_text({**evaluation(50.0), name: value}).encode(),
    st.sampled_from(list(evaluation(50.0))),
    JSON,
)


@given(data=edits(submission_text(FIRST)))
def test_any_bytes_are_a_submission_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
    path.write_bytes(data)
    outcome = result_or_complaint(analysis.read_submission, path)
    if isinstance(outcome, str):
        assert str(path) in outcome
    else:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\r\n")
        assert lines == submission_text(outcome).rstrip("\n")


@given(data=edits(log_text(evaluation(50.0), evaluation(62.5))) | ODD_LOG)
def test_any_bytes_are_a_log_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    outcome = result_or_complaint(analysis.read_log, path)
    if isinstance(outcome, str):
        assert str(path) in outcome
    else:
        assert 0 <= analysis.best_valid_accuracy(outcome) <= 100


# Reports


def test_report_is_exact(run_dir: Path) -> None:
    files = [run_dir / name for name in ("first.tsv", "log.jsonl", "second.tsv")]
    assert analysis.analyse_rocstories(run_dir, *files) == REPORT


def test_report_without_log_and_second_submission(run_dir: Path) -> None:
    text = analysis.analyse_rocstories(run_dir, run_dir / "first.tsv")
    assert text == "\n".join(REPORT.splitlines()[1:10])


def test_report_names_the_significantly_better_one() -> None:
    worse, better, labels = [0] * 10, [1] * 6 + [0] * 4, [1] * 10
    assert analysis.report(worse, labels, other=better).endswith(
        "only the first gets right: 0; only the second: 6\nExact McNemar test, two-sided: "
        "p = 0.0312; at the 5 % level the difference is significant: the second is better."
    )
    assert analysis.report(better, labels, other=worse).endswith("the first is better.")


def test_report_on_equal_submissions() -> None:
    text = analysis.report(FIRST, LABELS, other=FIRST)
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
        analysis.analyse_rocstories(run_dir, *paths)
    assert str(caught.value).startswith(
        f"{run_dir / 'short.tsv'} has 9 predictions, but {run_dir / TEST_CSV} has 10 stories;"
    )


def test_original_run(rocstories_dir: Path, references_dir: Path) -> None:
    text = analysis.analyse_rocstories(
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
        # Half a real data set is a mistake to report, not a reason to take the demo.
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
    """As in ``scripts/analysis.py ... | head -1``."""
    body = "import sys; from gpt1.runtime.errors import report_errors\n"
    body += "sys.exit(report_errors('x', lambda: [print('y' * 100) for _ in range(10**5)] and 0))"
    command = f'"{sys.executable}" -c "{body}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "y" * 100 + "\n"
    assert done.stderr == ""
