"""Reading the files of a run: logs, submissions and probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import log_line
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from run_texts import (
    CONFIDENCE,
    PREDICTIONS,
    PROBS_FILE,
    evaluation,
    log_text,
    submission_text,
)

from gpt1.results import log_lines, submissions
from gpt1.results.submissions import Choices
from gpt1.runtime.errors import InputError

PROBS = np.array(
    [[0.625, 0.375], [0.25, 0.75], [0.9375, 0.0625], [0, 1], [0.5, 0.5], [0.0625, 0.9375]]
)


def message(read: Callable[[Path], Any], path: Path, content: str | bytes) -> str:
    """Return the error message of ``read`` for a file of this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


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


@pytest.mark.parametrize(
    "read", [submissions.read_submission, submissions.read_probs, log_lines.read_log]
)
def test_missing_file(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


# Logs


def test_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    diverged = evaluation(50.0, n_epochs=2, tr_cost=math.nan, va_cost=math.inf, more="ignored")
    path.write_text(log_text(evaluation(62), diverged).replace("\n", "\r\n"))
    first, second = log_lines.read_log(path)
    assert first == log_line(evaluation(62.0))
    assert isinstance(first.n_updates, int)
    assert math.isnan(second.figures["tr_cost"])
    assert second.figures["va_cost"] == math.inf


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
            "index\tprediction\n0\t1\n",
            r"line 1: expected one JSON object, found 'index\tprediction'; this is no log of a run:"
            " name the file that training wrote, log/<desc>.jsonl",
        ),
        ('{"desc": "roc', "if a crash cut the line off, delete it"),
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
    assert complaint in message(log_lines.read_log, tmp_path / "log.jsonl", content)


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


@given(data=edits(log_text(evaluation(50.0), evaluation(62.5))) | ODD_LOG)
def test_any_bytes_are_a_log_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    outcome = result_or_complaint(log_lines.read_log, path)
    if isinstance(outcome, str):
        assert str(path) in outcome
    else:
        assert all(0 <= line.valid_score <= 100 for line in outcome)


# Submissions


@pytest.mark.parametrize("change", [str, lambda t: t.replace("\n", "\r\n"), str.rstrip])
def test_submission_is_read_with_any_line_end(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "s.tsv"
    path.write_bytes(change(submission_text(PREDICTIONS)).encode())
    assert submissions.read_submission(path) == PREDICTIONS


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: expected the header"),
        ("index\tprediction\n", "ends after its header"),
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
    assert complaint in message(submissions.read_submission, tmp_path / "s.tsv", content)


@given(data=edits(submission_text(PREDICTIONS)))
def test_any_bytes_are_a_submission_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
    path.write_bytes(data)
    outcome = result_or_complaint(submissions.read_submission, path)
    if isinstance(outcome, str):
        assert str(path) in outcome
    else:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\r\n")
        assert lines == submission_text(outcome).rstrip("\n")


# Probabilities


def test_choices_are_argmax_and_softmax() -> None:
    logits = np.array([[0, math.log(3)], [2, 2], [1e4, -1e4], [5, 4]], dtype=np.float32)
    found = submissions.choices_of(logits)
    assert found.predictions.tolist() == [1, 0, 0, 0]  # a tie is the first ending
    expected = [[0.25, 0.75], [0.5, 0.5], [1, 0], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]]
    np.testing.assert_allclose(found.probs, expected, rtol=1e-6, atol=0)
    assert found.probs.dtype == np.float64
    assert found.confidence.tolist() == found.probs.max(-1).tolist()
    assert logits.tolist()[0][0] == 0  # not checked


def test_softmax_is_taken_in_float64() -> None:
    logits = np.array([[0, -30]], dtype=np.float32)
    assert submissions.choices_of(logits).probs[0, 1] == pytest.approx(math.exp(-30), rel=1e-12)


def test_file_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "ROCStories.probs.tsv"
    submissions.write_probs(path, np.array([[0, 0], [-2000, 0]], dtype=np.float32))
    assert path.read_bytes() == (
        b"index\tprediction\tprob_0\tprob_1\n0\t0\t0.5\t0.5\n1\t1\t0.0\t1.0\n"
    )
    assert submissions.probs_table(Choices(np.array(PREDICTIONS), PROBS)) == PROBS_FILE


@given(
    logits=npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.just(2)),
        elements=st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32),
    )
)
def test_what_is_written_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, logits: np.ndarray
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.tsv"
    submissions.write_probs(path, logits)
    found, expected = submissions.read_probs(path), submissions.choices_of(logits)
    assert found.probs.tobytes() == expected.probs.tobytes()
    assert found.predictions.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("change", [str, lambda t: t.replace("\n", "\r\n"), str.rstrip])
def test_file_is_read_with_any_line_end(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "p.tsv"
    path.write_bytes(change(PROBS_FILE).encode())
    found = submissions.read_probs(path)
    assert found.predictions.tolist() == PREDICTIONS
    assert found.confidence.tolist() == CONFIDENCE


HEAD = "index\tprediction\tprob_0\tprob_1\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: expected the header"),
        (HEAD, "ends after its header"),
        ("index\tprediction\n0\t1\n", r"line 1: expected the header"),
        ("0\t1\t0.5\t0.5\n", r"line 1: expected the header"),
        (HEAD + "0\t1\t0.25\t0.75\n0\t1\t0.25\t0.75\n", "line 3: expected index 1"),
        (HEAD + "0\t1\t0.25\t0.75\n\n", "line 3: expected index 1"),
        (HEAD + "00\t1\t0.25\t0.75\n", "line 2: expected index 0"),
        (HEAD + "0\t2\t0.25\t0.75\n", "line 2: expected index 0, 0 or 1, and 2"),
        (HEAD + "0\t1\t0.25\n", "line 2: expected index 0"),
        (HEAD + "0\t1\t0.25\t0.75\t\n", "line 2: expected index 0"),
        (HEAD + "0 1 0.25 0.75\n", "line 2: expected index 0"),
        (HEAD + "0\t1\t-0.25\t1.25\n", "line 2: expected index 0"),
        (HEAD + "0\t0\tnan\tnan\n", "found '0\\t0\\tnan\\tnan'; the model had diverged"),
        (HEAD + "0\t1\t0.2_5\t0.75\n", "line 2: expected index 0"),
        (HEAD + "0\t1\t٠.25\t0.75\n", "line 2: expected index 0"),
        (HEAD + "0\t1\t0.25\t0.7\n", "line 2: expected 2 probabilities that sum to 1"),
        (HEAD + "0\t1\t0.0\t2.0\n", "line 2: expected 2 probabilities that sum to 1"),
        (HEAD + "0\t0\t0.25\t0.75\n", "line 2: expected the most probable outcome, 1, as"),
        (HEAD.encode() + b"0\t\xff\n", "line 2: the file of probabilities must be UTF-8"),
    ],
)
def test_bad_file(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    path = tmp_path / "p.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        submissions.read_probs(path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_diverged_logits_are_written_and_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    submissions.write_probs(path, np.array([[1, 2], [math.nan, 0], [math.inf, 0]], np.float32))
    with pytest.raises(InputError, match=r"line 3: .*; the model had diverged"):
        submissions.read_probs(path)


@given(data=edits(PROBS_FILE))
def test_any_bytes_are_probabilities_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
    path.write_bytes(data)
    found = result_or_complaint(submissions.read_probs, path)
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert found.probs.shape == (len(found.predictions), 2)
        np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-6)
        assert (found.confidence >= 0.5 - 1e-6).all()
