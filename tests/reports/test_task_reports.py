"""Reports on submissions of any task: classes, letters and grades."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from small_tasks import COLOURS, LETTERS, LIKENESS, examples

from gpt1.commands import analysis as command
from gpt1.datasets import TASKS
from gpt1.reports import analysis, calibration, labelled
from gpt1.reports.learning_curves import curves
from gpt1.reports.runs import table
from gpt1.results import submissions
from gpt1.results.log_lines import Run, read_runs
from gpt1.results.submissions import Record
from gpt1.runtime.errors import InputError
from gpt1.tasks import Task

COLOUR_LABELS = [0, 1, 2, 1] * 4
FIRST = [0, 1, 2, 1] * 3 + [2, 2, 2, 1]
SECOND = [0, 1, 2, 2] * 4
GRADES = [0.5, 1.25, 3.5, 4.75] * 4


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; the small tasks are among those that the analysis knows."""
    for task in (COLOURS, LETTERS, LIKENESS):
        monkeypatch.setitem(TASKS, task.name, task)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(
    name: str, task: Task, predictions: Sequence[float], split: str | None, score: float = 50.0
) -> Path:
    """Write a submission, and its record if a split is given."""
    rows = [task.target.spell(prediction) for prediction in predictions]
    record = Record(
        desc="mine",
        run_id="1",
        log="log/mine.jsonl",
        dataset=task.name,
        split=split or "",
        metric=task.metrics[0].title,
        valid_score=score,
        sha256=submissions.sha256(rows),
    )
    path = Path(name)
    submissions.write(path, rows, record)
    if split is None:
        submissions.record_path(path).unlink()
    return path


def write_log(task: Task, *scores: float) -> Path:
    """Write the log of the run whose submissions :func:`submit` writes."""
    name = task.metrics[0].name
    settings = {"desc": "mine", "submission_dir": "submission/", "run_id": "1"}
    rows = [
        {"n_epochs": 1, "n_updates": 4, "tr_cost": 1.0, "va_cost": 1.0}
        | {f"tr_{name}": 50.0, f"va_{name}": score, "time": 1.0}
        for score in scores
    ]
    text = "".join(json.dumps(row) + "\n" for row in ({**settings, "dataset": task.name}, *rows))
    Path("a.jsonl").write_text(text)
    return Path("a.jsonl")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Run the command; return its status, its report and its error message."""
    status = command.main([*map(str, words), "--data_dir", "."])
    return status, *capsys.readouterr()


# ------------------------------------------------------------------------------- reports


def test_report_on_classes(capsys: pytest.CaptureFixture[str]) -> None:
    first = submit("a.tsv", COLOURS, FIRST, "Colours.dev", score=80.0)
    second = submit("b.tsv", COLOURS, SECOND, None)
    status, text, _ = run(capsys, first, second, "--log", write_log(COLOURS, 50.0, 80.0))
    assert status == 0
    labels = np.array(COLOUR_LABELS)
    scores = [COLOURS.metrics[0].compute(np.array(each), labels) for each in (FIRST, SECOND)]
    found = text.splitlines()
    assert found[:4] == [
        "Colours Valid Matthews: 80.00",
        f"Colours.dev Matthews:   {scores[0]:.2f}",
        "",
        "Run: mine",
    ]
    assert found[4].startswith(f"Colours.dev: Matthews {scores[0]:.2f} %; 95 % interval (bootstr")
    assert found[5].startswith("Colours.dev: 14 of 16 right, 87.50 %; 95 % interval (Wilson) 63.98")
    assert found[6:11] == [
        "",
        "                        predicted blue  predicted green  predicted red",
        "right answer blue                    3                0              1",
        "right answer green                   0                7              1",
        "right answer red                     0                0              4",
    ]
    assert found[12].startswith(f"Second submission: Matthews {scores[1]:.2f} %; 95 % interval (bo")
    assert found[13].startswith("Second submission: 12 of 16 right, 75.00 %; 95 % interval (Wilso")
    assert found[14].startswith(
        f"Matthews of the second minus that of the first: {scores[1] - scores[0]:+.2f} points; 95 "
    )
    assert found[15].startswith("Paired bootstrap test, two-sided: p = 0.")
    assert found[15].endswith("not significant: chance alone could explain it.")
    assert found[16:] == [
        "Examples that only the first gets right: 4; only the second: 2",
        "Exact McNemar test, two-sided: p = 0.688; at the 5 % level the difference is not "
        "significant: chance alone could explain it.",
    ]


def test_report_on_letters(capsys: pytest.CaptureFixture[str]) -> None:
    path = submit("a.tsv", LETTERS, [0, 1, 2, 0] * 4, "Letters.dev")
    status, text, _ = run(capsys, path)
    assert status == 0
    assert text.splitlines()[0] == "Letters.dev Accuracy:   75.00"
    assert text.splitlines()[-2:] == [
        "right answer C                0            0            4            0",
        "right answer D                4            0            0            0",
    ]


def test_report_on_grades_has_correlations_and_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    path = submit("a.tsv", LIKENESS, GRADES, "Likeness.dev")
    status, text, _ = run(capsys, path, path)
    assert status == 0
    pearson = f"{100 * np.corrcoef(GRADES, [0, 1.5, 3, 5] * 4)[0, 1]:.2f}"
    assert [line.partition("; 95")[0] for line in text.splitlines()] == [
        f"Likeness.dev Pearson:   {pearson}",
        "",
        "Run: mine",
        f"Likeness.dev: Pearson {pearson} %",
        "Likeness.dev: Spearman 100.00 %",
        "",
        f"Second submission: Pearson {pearson} %",
        "Second submission: Spearman 100.00 %",
        "Pearson of the second minus that of the first: +0.00 points",
        "Paired bootstrap test, two-sided: p = 1; at the 5 % level the difference is not "
        "significant: chance alone could explain it.",
    ]


def test_a_significant_difference_names_the_better_one() -> None:
    split = labelled.first_labelled(LIKENESS, LIKENESS.read(Path()).predicted)
    good, bad = np.array(GRADES), np.array(GRADES)[::-1]
    assert analysis.report(split, good, other=bad).endswith("significant: the first is better.")
    assert analysis.report(split, bad, other=good).endswith("significant: the second is better.")


def test_a_wide_table_has_the_names_alone() -> None:
    names = ("contradiction", "entailment", "neutral")
    task = replace(COLOURS, target=replace(COLOURS.target, names=names))
    split = labelled.first_labelled(task, task.read(Path()).predicted)
    text = analysis.report(split, np.array(FIRST))
    assert text.splitlines()[-4:] == [
        "right, predicted:      contradiction  entailment  neutral",
        "contradiction                      3           0        1",
        "entailment                         0           7        1",
        "neutral                            0           0        4",
    ]


def test_equal_predictions_have_the_score_0(capsys: pytest.CaptureFixture[str]) -> None:
    path = submit("a.tsv", COLOURS, [1] * 16, "Colours.dev")
    status, text, err = run(capsys, path, path)
    assert (status, err) == (0, "")
    assert "nan" not in text
    assert "Colours.dev: Matthews 0.00 %; 95 % interval (bootstrap) 0.00 to 0.00 %" in text


# ------------------------------------------------------------------------------- which split


def test_task_and_split_follow_from_the_record_whatever_the_files_name() -> None:
    path = submit("x.tsv", LETTERS, [0] * 16, "Letters.dev")
    assert labelled.find_task(path) is LETTERS
    assert labelled.find_task(path, "letters") is LETTERS
    assert labelled.read_labelled(LETTERS, Path(), path).stem == "Letters.dev"


def test_without_a_record_the_split_follows_from_the_files_name() -> None:
    """Otherwise it is the first one with labels. MNLI has two validation splits."""
    dev = {
        f"{title}.dev": examples("d.tsv", labels)
        for title, labels in (("C-m", [0, 1]), ("C-mm", [2, 1]))
    }
    splits = replace(COLOURS.read(Path()), predicted={"C-m": examples("t.tsv", [None]), **dev})
    task = replace(COLOURS, read=lambda folder: splits)
    for name, labels in (("C-mm.dev.tsv", [2, 1]), ("C-m.dev.tsv", [0, 1]), ("x.tsv", [0, 1])):
        path = submit(name, task, [1, 1], None)
        assert labelled.read_labelled(task, Path(), path).labels.tolist() == labels
    assert labelled.find_task(path, "colours") is COLOURS
    assert labelled.find_task(path).name == "rocstories"


def test_hidden_labels_lead_to_the_validation_split(capsys: pytest.CaptureFixture[str]) -> None:
    path = submit("Colours.tsv", COLOURS, [0] * 5, "Colours")
    assert run(capsys, path) == (
        2,
        "",
        "gpt1 analysis: error: Colours.tsv: the labels of the split Colours are hidden, . has "
        "none; name the submission of a split with labels, Colours.dev.tsv.\n",
    )


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        (["nothing.tsv"], {}, "nothing.tsv: the submission cannot be read"),
        (
            ["a.tsv", "--dataset", "rocstories"],
            {},
            "--dataset rocstories: a.tsv is of the data set 'colours', says a.run.json; leave the",
        ),
        (
            ["a.tsv"],
            {"dataset": "own"},
            "a.tsv: its data set is 'own', but one of rocstories,",
        ),
        (["a.tsv"], {"dataset": "likeness"}, "a.tsv, line 2: expected index 0, a tab, and a numb"),
        (["a.tsv"], {"split": "Colours"}, "a.tsv: the labels of the split Colours are hidden"),
        (["short.tsv"], {}, "short.tsv has 3 predictions, but dev.tsv has 16 examples; they must"),
        (["a.tsv", "short.tsv"], {}, "short.tsv has 3 predictions, but dev.tsv has 16 examples"),
        (
            ["a.tsv", "--log", "a.jsonl"],
            {"valid_score": 25.0},
            "a.jsonl: its best validation matthews is 80.00 %, but the parameters that made a.tsv "
            "had 25.00 %, says a.run.json;",
        ),
        (
            ["a.tsv", "--log", "a.jsonl"],
            {"valid_score": None},
            "but the parameters that made a.tsv had no score, says a.run.json;",
        ),
        (
            ["a.tsv", "--log", "a.jsonl"],
            {"run_id": "2", "desc": "yours"},
            "the submission of the run mine, which writes it to submission/mine/Colours.dev.tsv,",
        ),
        (
            ["a.tsv", "--log", "a.jsonl"],
            {"run_id": "2", "desc": "yours", "dataset": "likeness"},
            "a.tsv, line 2: expected index 0",
        ),
        (
            ["a.tsv", "--log", "other.jsonl"],
            {"sha256": "0" * 64},
            "other.jsonl: the log of a run that is scored by accuracy, but Colours is scored by ma",
        ),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], words: list[str], changes: dict[str, object], expected: str
) -> None:
    submit("a.tsv", COLOURS, FIRST, "Colours.dev")
    submit("short.tsv", COLOURS, FIRST[:3], "Colours.dev")
    record = submissions.read_record("a.tsv")
    assert record is not None
    Path("a.run.json").write_text(json.dumps({**asdict(record), **changes}))
    write_log(LETTERS, 80.0).rename("other.jsonl")
    write_log(COLOURS, 80.0)
    status, text, err = run(capsys, *words)
    assert (status, text) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_a_missing_file_of_a_data_set_is_named(place: Path) -> None:
    task = replace(COLOURS, files=(("train.tsv", "dev.tsv"),), remedy="get it at x")
    path = submit("a.tsv", task, FIRST, "Colours.dev")
    (place / "dev.tsv").write_text("")
    with pytest.raises(InputError) as caught:
        labelled.read_labelled(task, Path(), path)
    assert str(caught.value).startswith("./ has no 'train.tsv': get it at x, or name their direct")


# ------------------------------------------------------------------------------- probabilities


def probs_of(labels: Sequence[int], n: int) -> np.ndarray:
    """Return logits of predictions that are right but for the last label, with other margins."""
    logits = np.random.default_rng(1).normal(size=(len(labels), n)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 4
    logits[-1] = np.where(np.arange(n) == labels[-1], -3, 0)
    return logits


def test_calibration_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    logits = probs_of(COLOUR_LABELS, 3)
    choices = submissions.choices_of(logits, COLOURS.target)
    path = submit("a.tsv", COLOURS, choices.predictions.tolist(), "Colours.dev")
    submissions.write_probs("p.tsv", logits, COLOURS.target)
    status, text, _ = run(capsys, path, "--probs", "p.tsv", "--mistakes", "1")
    assert status == 0
    right = np.eye(3)[COLOUR_LABELS]
    brier = ((choices.probs - right) ** 2).sum() / 2 / 16
    loss = -np.log(choices.probs[right == 1]).mean()
    assert f"\nBrier score: {brier:.4f} (equal probabilities have 0.3333)\n" in text
    assert f"\nLog-loss: {loss:.4f} nats (equal probabilities have 1.0986)\n" in text
    assert "\nconfidence     examples  right  mean confidence  accuracy\n0.33 to 0.40 " in text
    wrong = int(choices.predictions[-1])
    assert text.splitlines()[-4:] == [
        "",
        "15  dora lost a boat .",
        f"   chosen {choices.probs[-1, wrong]:.4f}  {COLOURS.target.spell(wrong)}",
        f"   right  {choices.probs[-1, 1]:.4f}  green",
    ]


def test_mistakes_of_choices_show_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    logits = probs_of([0, 1, 2, 3] * 4, 4)
    predictions = LETTERS.target.decide(logits).tolist()
    path = submit("a.tsv", LETTERS, predictions, "Letters.dev")
    submissions.write_probs("p.tsv", logits, LETTERS.target)
    status, text, _ = run(capsys, path, "--probs", "p.tsv")
    assert status == 0
    texts = LETTERS.read(Path()).valid[-1].texts
    assert f"\n15  {texts[0]}\n   chosen " in text
    assert text.endswith(f"  {texts[4]}\n")  # the right answer, the fourth


def test_grades_have_no_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    path = submit("a.tsv", LIKENESS, GRADES, "Likeness.dev")
    status, text, err = run(capsys, path, "--probs", "p.tsv")
    assert (status, text) == (2, "")
    assert "--probs p.tsv: Likeness has grades, but calibration is reported of classes" in err


def test_bins_begin_at_the_confidence_of_a_guess() -> None:
    choices = submissions.choices_of(np.zeros((1, 4), dtype=np.float32), LETTERS.target)
    bins = calibration.reliability(choices, [0], n_bins=3)
    assert [(item.low, item.n) for item in bins] == [(0.25, 1), (0.5, 0), (0.75, 0)]


# ------------------------------------------------------------------------------- tables, curves


def runs_of(*tasks: Task) -> list[Run]:
    """Return a run of each task, with one evaluation."""
    found = []
    for task in tasks:
        path = write_log(task, 40.0)
        found += [replace(run, name=task.name) for run in read_runs([path])]
    return found


def test_the_table_names_the_metric_or_the_score() -> None:
    own = runs_of(LIKENESS)
    assert table(own).startswith("run       valid pearson %  epoch  updates  train pearson %  ")
    assert table(own + runs_of(COLOURS)).startswith("run       valid score %  epoch  updates  ")


def test_curves_are_named_after_the_metric_and_know_chance() -> None:
    pytest.importorskip("matplotlib")

    def panels(*tasks: Task) -> dict[str, tuple[str, list[str]]]:
        return {
            axes.get_title(): (
                axes.get_ylabel(),
                [text.get_text() for text in axes.get_legend().get_texts()],
            )
            for axes in curves(runs_of(*tasks)).axes
        }

    loss, known = "Classification loss at evaluations", ["training", "validation", "best epoch"]
    label = "classification loss (nats per example)"
    assert panels(LETTERS) == {
        loss: (label, [*known, "chance"]),
        "Accuracy at evaluations": ("accuracy (%)", [*known, "chance"]),
    }
    assert panels(COLOURS) == {
        loss: (label, [*known, "chance"]),
        "Matthews at evaluations": ("matthews (%)", known),
    }
    assert panels(LIKENESS, COLOURS) == {
        loss: (label, known),
        "Pearson or matthews at evaluations": ("pearson or matthews (%)", known),
    }
    assert panels(LETTERS, COLOURS)[loss] == (label, known)  # four letters, three colours
    (axes, _) = curves(runs_of(LETTERS)).axes
    assert [line.get_ydata()[0] for line in axes.lines][-1] == pytest.approx(np.log(4))
