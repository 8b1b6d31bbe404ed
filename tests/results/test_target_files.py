"""Submissions and probabilities of classes, letters and grades."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from small_tasks import COLOURS, LETTERS, LIKENESS

from gpt1.results import submissions
from gpt1.results.log_lines import read_run_log
from gpt1.runtime.errors import InputError
from gpt1.tasks import Target

CLASSES, CHOICE, GRADES = (task.target for task in (COLOURS, LETTERS, LIKENESS))
TARGETS = {"classes": CLASSES, "letters": CHOICE, "grades": GRADES}
EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)

# ------------------------------------------------------------------------------- submissions


@pytest.mark.parametrize(
    ("target", "predictions", "text"),
    [
        (CLASSES, [2, 0], "0\tred\n1\tblue\n"),
        (CHOICE, [3, 0], "0\tD\n1\tA\n"),
        (GRADES, [3.25, 0.1 + 0.2], "0\t3.25\n1\t0.30000000000000004\n"),
    ],
)
def test_predictions_are_spelled_and_read_by_the_target(
    tmp_path: Path, target: Target, predictions: list[float], text: str
) -> None:
    rows = [target.spell(prediction) for prediction in predictions]
    assert submissions.table(rows) == f"index\tprediction\n{text}"
    path = tmp_path / "a.tsv"
    path.write_text(submissions.table(rows))
    assert submissions.read_submission(path, target) == predictions
    assert submissions.digest(path) == submissions.sha256(rows)


@given(grade=st.floats(allow_nan=False, allow_infinity=False))
def test_every_grade_reads_back_bit_for_bit(grade: float) -> None:
    assert GRADES.parse(GRADES.spell(grade)).hex() == grade.hex()


@pytest.mark.parametrize(
    ("target", "row", "expected"),
    [
        (CLASSES, "1\tRed", "blue, green or red, found '1\\tRed'"),
        (CLASSES, "1\t2", "blue, green or red, found"),
        (CLASSES, "1\tred ", "blue, green or red, found"),
        (CLASSES, "2\tred", "blue, green or red, found"),
        (CHOICE, "1\tE", "A, B, C or D, found '1\\tE'"),
        (CHOICE, "1\ta", "A, B, C or D, found"),
        (CHOICE, "1", "A, B, C or D, found"),
        (GRADES, "1\tnan", "a number, found '1\\tnan'"),
        (GRADES, "1\t1e999", "a number, found"),
        (GRADES, "1\t٣", "a number, found"),
        (GRADES, "1\t1_0", "a number, found"),
        (GRADES, "1\t 3", "a number, found"),
        (GRADES, "1\t3\t4", "a number, found"),
    ],
)
def test_what_the_target_cannot_say_is_refused(
    tmp_path: Path, target: Target, row: str, expected: str
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"index\tprediction\n0\t{target.spell(1)}\n{row}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        submissions.read_submission(path, target)
    assert f"{path}, line 3: expected index 1, a tab, and {expected}" in str(caught.value)
    assert str(caught.value).endswith("; write the submission again.")


# ------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("target", "columns"),
    [
        (CLASSES, "prob_blue\tprob_green\tprob_red"),
        (CHOICE, "prob_0\tprob_1\tprob_2\tprob_3"),
        (GRADES, "prob_0\tprob_1\tprob_2\tprob_3\tprob_4\tprob_5"),
    ],
)
def test_columns_are_named_after_classes_or_numbered(
    tmp_path: Path, target: Target, columns: str
) -> None:
    n = len(target.columns)
    submissions.write_probs(tmp_path / "a.tsv", np.zeros((1, n), dtype=np.float32), target)
    header, row = (tmp_path / "a.tsv").read_text().splitlines()
    assert header == f"index\tprediction\t{columns}"
    prediction = "2.5" if target is GRADES else target.spell(0)
    assert row == "\t".join(["0", prediction, *[repr(1 / n)] * n])


@EVERY
@given(data=st.data())
def test_what_is_written_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, target: Target, data: st.DataObject
) -> None:
    shape = st.tuples(st.integers(1, 4), st.just(len(target.columns)))
    numbers = st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32)
    logits = data.draw(npst.arrays(np.float32, shape, elements=numbers))
    path = tmp_path_factory.getbasetemp() / "any.probs.tsv"
    submissions.write_probs(path, logits, target)
    found, expected = (
        submissions.read_probs(path, target),
        submissions.choices_of(logits, target),
    )
    assert found.probs.tobytes() == expected.probs.tobytes()
    assert found.predictions.tolist() == expected.predictions.tolist()


@pytest.mark.parametrize(
    ("target", "row", "expected"),
    [
        (CLASSES, "0\tred\t0.25\t0.25\t0.4", "3 probabilities that sum to 1, found a sum of 0.9;"),
        (CLASSES, "0\tred\t0.25\t0.75", "index 0, blue, green or red, and 3 probabilities from 0"),
        (CLASSES, "0\t2\t0.25\t0.25\t0.5", "index 0, blue, green or red, and 3 probabilities"),
        (CLASSES, "0", "index 0, blue, green or red, and 3 probabilities"),
        (CLASSES, "0\tblue\t0.25\t0.25\t0.5", "the most probable outcome, red, as the prediction,"),
        (GRADES, "0\t3.0\t0.5\t0.5\t0.0\t0.0\t0.0\t0.0", "the expected grade, 0.5, as the predict"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(
    tmp_path: Path, target: Target, row: str, expected: str
) -> None:
    path = tmp_path / "a.tsv"
    header = "\t".join(["index", "prediction", *(f"prob_{name}" for name in target.columns)])
    path.write_text(f"{header}\n{row}\n")
    with pytest.raises(InputError) as caught:
        submissions.read_probs(path, target)
    assert str(caught.value).startswith(f"{path}, line 2: expected {expected}")


def test_a_missing_answer_has_the_probability_0(tmp_path: Path) -> None:
    path, logits = tmp_path / "a.tsv", np.array([[0, 1, -np.inf, -np.inf]], dtype=np.float32)
    submissions.write_probs(path, logits, CHOICE)
    assert submissions.read_probs(path, CHOICE).probs[0, 2:].tolist() == [0, 0]


# ------------------------------------------------------------------------------- logs

LINE = {"n_epochs": 1, "n_updates": 4, "tr_cost": 0.5, "va_cost": 0.6}


def log(path: Path, *figures: dict[str, float]) -> Path:
    """Write a log with an evaluation for each set of figures."""
    rows = [{"desc": "x"}, *({**LINE, **each, "time": 1.0} for each in figures)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_log_has_any_metrics_and_the_first_decides(tmp_path: Path) -> None:
    rows = [{"tr_pearson": -3.0, "va_pearson": -9.0, "tr_spearman": 1.0, "va_spearman": 2.0}]
    rows.append({**rows[0], "va_pearson": -100.0, "va_spearman": 99.0})
    first, second = read_run_log(log(tmp_path / "a.jsonl", *rows)).evaluations
    assert first.metric.title == "pearson"
    assert (first.train_score, first.valid_score, second.valid_score) == (-3, -9, -100)
    assert first.as_row() == {**LINE, **rows[0], "time": 1.0}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"tr_f1": 50, "va_f1": -1}], "line 2: expected va_f1 to be a percentage from 0 to 100"),
        ([{"tr_f1": 50, "va_f1": 101}], "line 2: expected va_f1 to be a percentage from 0 to 100"),
        ([{"va_pearson": 5}], "line 2: expected tr_pearson to be a percentage from -100 to 100, f"),
        (
            [{"tr_f1": 1, "va_f1": 1}, {"tr_acc": 1, "va_acc": 1}],
            "line 3: expected tr_f1 to be a percentage from 0 to 100, found nothing",
        ),
        ([{"va_other": 5}], "line 2: expected tr_acc to be a percentage from 0 to 100, found noth"),
    ],
)
def test_a_log_with_other_metrics_is_refused(
    tmp_path: Path, rows: list[dict[str, float]], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_run_log(log(tmp_path / "a.jsonl", *rows))
    assert expected in str(caught.value)
