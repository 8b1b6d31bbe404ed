"""Probabilities beside a submission: the file, their calibration, and the picture of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_texts import CONFIDENCE, PREDICTIONS, PROBS_FILE, submission_text

from gpt1.commands import analysis as command
from gpt1.datasets.story_cloze import COLUMNS, ROCSTORIES, TEST_CSV
from gpt1.inference.prediction import mean_cross_entropy
from gpt1.reports import calibration
from gpt1.reports.calibration import Bin
from gpt1.reports.labelled import LabelledSplit
from gpt1.reports.statistics import wilson_interval
from gpt1.results.submissions import Choices, Record, choices_of, record_path, sha256
from gpt1.tasks import Example

LABELS = [0, 0, 1, 1, 0, 0]
STORIES = [*(f"Story {n}." for n in range(5)), "It rained. " * 12]
SPLIT = LabelledSplit(
    task=ROCSTORIES,
    stem="ROCStories",
    labels=np.array(LABELS),
    source="x.csv",
    examples=[
        Example((story, f"One {n}.", f"Two {n}."), label, f"x.csv, story {n + 1}")
        for n, (story, label) in enumerate(zip(STORIES, LABELS, strict=True))
    ],
)


def choices(predictions: list[int], confidence: list[float]) -> Choices:
    """Return choices with these confidences."""
    rows = [
        (1 - p, p) if choice else (p, 1 - p)
        for choice, p in zip(predictions, confidence, strict=True)
    ]
    return Choices(np.array(predictions), np.array(rows))


SIX = choices(PREDICTIONS, CONFIDENCE)


# Numbers


def test_reliability_by_hand() -> None:
    bins = calibration.reliability(SIX, LABELS, n_bins=4)
    assert bins == [
        Bin(0.5, 0.625, n=1, n_right=1, confidence=0.5),
        Bin(0.625, 0.75, n=1, n_right=1, confidence=0.625),  # An edge belongs to its upper bin.
        Bin(0.75, 0.875, n=1, n_right=0, confidence=0.75),
        Bin(0.875, 1.0, n=3, n_right=1, confidence=2.875 / 3),  # The last bin includes 1.
    ]
    assert [item.accuracy for item in bins] == [1, 1, 0, 1 / 3]
    # |1 - 0.5| + |1 - 0.625| + |0 - 0.75| + |1 - 2.875|, over six stories
    assert calibration.expected_calibration_error(bins) == pytest.approx(3.5 / 6, rel=1e-12)


def test_bins_without_stories_are_there_and_count_nothing() -> None:
    bins = calibration.reliability(choices([1], [0.875]), [1])
    assert [item.n for item in bins] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert math.isnan(bins[0].confidence)
    assert math.isnan(bins[0].accuracy)
    assert calibration.expected_calibration_error(bins) == 0.125


def test_edges_of_the_bins_are_those_that_are_shown() -> None:
    for edge in [item.low for item in calibration.reliability(SIX, LABELS)]:
        bins = calibration.reliability(choices([0], [edge]), [0])
        assert [item.low for item in bins if item.n] == [edge]


def test_calibration_error_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    found = choices_of(rng.standard_normal((300, 2)) * 2)
    labels = rng.integers(0, 2, 300).tolist()
    total = 0.0
    for step in range(10):
        low, high = 0.5 + step / 20, 0.55 + step / 20
        inside = [i for i in range(300) if low <= max(found.probs[i]) < high]
        surplus = [max(found.probs[i]) - (found.predictions[i] == labels[i]) for i in inside]
        total += abs(sum(surplus)) / 300
    error = calibration.expected_calibration_error(calibration.reliability(found, labels))
    assert error == pytest.approx(total, rel=1e-12)
    assert error > 0.1


def test_no_stories_have_no_calibration_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        calibration.expected_calibration_error([Bin(0.5, 1, 0, 0, math.nan)])


def test_error_by_chance_of_one_story() -> None:
    mean, rarely = calibration.error_by_chance(choices([0], [0.75]))
    assert mean == pytest.approx(2 * 0.75 * 0.25, abs=0.03)  # 0.25 in 3 of 4 cases, else 0.75
    assert rarely == 0.75


def test_a_calibrated_model_exceeds_its_error_by_chance_one_time_in_twenty() -> None:
    rng = np.random.default_rng(2)
    found = choices([0] * 200, rng.uniform(0.5, 1, 200).tolist())
    mean, rarely = calibration.error_by_chance(found)
    errors = []
    for _ in range(400):
        labels = (rng.random(200) >= found.confidence).astype(int).tolist()
        bins = calibration.reliability(found, labels)
        errors.append(calibration.expected_calibration_error(bins))
    assert np.mean(errors) == pytest.approx(mean, rel=0.1)
    assert 0.02 < np.mean(np.array(errors) > rarely) < 0.09


def test_brier_score_by_its_definition_and_log_loss_as_sklearns() -> None:
    from sklearn.metrics import log_loss as sklearn_log_loss

    rng = np.random.default_rng(3)
    logits = rng.standard_normal((50, 2)).astype(np.float32) * 3
    probs, labels = choices_of(logits).probs, rng.integers(0, 2, 50).astype(np.int32)
    brier = calibration.brier_score(probs, labels.tolist())
    right = probs[np.arange(50), labels]
    assert brier == pytest.approx(((1 - right) ** 2).mean(), rel=1e-12)
    loss = calibration.log_loss(probs, labels.tolist())
    assert loss == pytest.approx(sklearn_log_loss(labels, probs), rel=1e-12)
    assert loss == pytest.approx(mean_cross_entropy(logits, labels), rel=1e-9)  # what training logs


def test_log_loss_of_a_right_ending_held_impossible_is_infinite() -> None:
    assert calibration.log_loss(np.array([[0.0, 1.0], [0.5, 0.5]]), [0, 0]) == math.inf


def test_most_confident_mistakes() -> None:
    def mistakes(n: int) -> list[int]:
        return calibration.most_confident_mistakes(SIX, LABELS, n)

    assert mistakes(10) == [2, 5, 1]  # 2 and 5 are equally confident, and keep their order.
    assert mistakes(1) == [2]
    assert mistakes(0) == []


def test_choices_and_labels_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="6 choices, 5 labels"):
        calibration.reliability(SIX, LABELS[:-1])
    with pytest.raises(ValueError, match="6 choices, 7 labels"):
        calibration.most_confident_mistakes(SIX, [*LABELS, 0], 1)


# Reports


def test_report_is_exact() -> None:
    by_chance, rarely = (100 * error for error in calibration.error_by_chance(SIX))
    loss = -math.log(0.625 * 0.25 * 0.0625 * 1 * 0.5 * 0.0625) / 6
    assert (
        calibration.report(SIX, SPLIT, 2)
        == f"""\
Mean confidence: 79.17 %, 29.17 points over the accuracy
Expected calibration error: 58.33 % in 10 bins; a perfectly calibrated model shows \
{by_chance:.2f} % on average, one time in 20 over {rarely:.2f} %
Brier score: 0.4518 (a coin has 0.25)
Log-loss: {loss:.4f} nats (a coin has 0.6931)

confidence      stories  right  mean confidence  accuracy
0.50 to 0.55          1      1           50.0 %   100.0 %
0.55 to 0.60          0      0
0.60 to 0.65          1      1           62.5 %   100.0 %
0.65 to 0.70          0      0
0.70 to 0.75          0      0
0.75 to 0.80          1      0           75.0 %     0.0 %
0.80 to 0.85          0      0
0.85 to 0.90          0      0
0.90 to 0.95          2      0           93.8 %     0.0 %
0.95 to 1.00          1      1          100.0 %   100.0 %

The most confident mistakes, 2 of 3:

2  Story 2.
   chosen 0.9375  One 2.
   right  0.0625  Two 2.

5  It rained. It rained. It rained. It rained. It rained. It rained. It rained. It rained. It
   rained. It rained. It rained. It rained.
   right  0.0625  One 5.
   chosen 0.9375  Two 5."""
    )


def test_report_without_mistakes_and_below_the_accuracy() -> None:
    right = Choices(SIX.predictions, SIX.probs)
    split = replace(SPLIT, labels=np.array(PREDICTIONS))
    assert calibration.report(right, split, 3).endswith("\n\nNo mistakes.")
    assert calibration.report(right, split, 0).endswith("100.0 %   100.0 %")
    assert "20.83 points under the accuracy" in calibration.report(right, split, 0)


# Picture


def test_picture_shows_the_bins() -> None:
    pytest.importorskip("matplotlib")
    bins = calibration.reliability(SIX, LABELS, n_bins=4)
    above, below = calibration.reliability_figure(bins, "Run six").axes
    places = [(item.low, item.high - item.low) for item in bins]
    for axes, heights in ((above, [1, 1, 0, 1 / 3]), (below, [1, 1, 1, 3])):
        bars = axes.patches
        assert [(bar.get_x(), bar.get_width()) for bar in bars] == places
        assert [bar.get_height() for bar in bars] == heights
    points, *_, diagonal = above.lines
    assert points.get_xdata() == pytest.approx([0.5, 0.625, 0.75, 2.875 / 3])
    assert list(points.get_ydata()) == [1, 1, 0, 1 / 3]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0.5, 1]
    assert [text.get_text() for text in below.texts] == ["1", "1", "1", "3"]


def test_picture_has_error_bars_and_the_name_of_the_run() -> None:
    pytest.importorskip("matplotlib")
    bins = calibration.reliability(SIX, LABELS)  # some bins are empty, and have no error bar
    figure = calibration.reliability_figure(bins, "Run $6$")
    assert figure.get_suptitle() == "Run $6$"
    above, _ = figure.axes
    (lines,) = above.collections
    filled = [item for item in bins if item.n]
    assert len(lines.get_segments()) == len(filled) == 5
    for item, (bottom, top) in zip(filled, lines.get_segments(), strict=True):
        low, high = wilson_interval(item.n_right, item.n)
        assert (bottom[0], top[0]) == (item.confidence, item.confidence)
        assert (bottom[1], top[1]) == pytest.approx((low, high), abs=1e-12)


def test_picture_is_named_after_the_run_that_the_record_names(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    names: list[str] = []
    draw = calibration.reliability_figure

    def draw_and_keep_name(bins: Sequence[Bin], name: str, plural: str) -> Any:
        names.append(name)
        return draw(bins, name, plural)

    monkeypatch.setattr(calibration, "reliability_figure", draw_and_keep_name)
    flags = ["--probs", "s.probs.tsv", "--plot", "r.svg"]
    assert analyse(*flags) == 0
    record = Record(
        desc="six",
        log="log/six.jsonl",
        run_id="1",
        dataset="rocstories",
        split="ROCStories",
        metric="accuracy",
        valid_score=50.0,
        sha256=sha256(PREDICTIONS),
    )
    for found in (record, replace(record, sha256="0" * 64)):
        record_path("s.tsv").write_text(json.dumps(asdict(found)))
        assert analyse(*flags) == 0
    assert names == ["s.tsv", "Run six", "s.tsv"]


# Command line


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a test CSV, a submission for it and its probabilities."""
    rows = [f"id{n},A.,B.,C.,D.,Good.,Bad.,{label + 1}" for n, label in enumerate(LABELS)]
    (tmp_path / TEST_CSV).write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    (tmp_path / "s.tsv").write_text(submission_text(PREDICTIONS))
    (tmp_path / "s.probs.tsv").write_text(PROBS_FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def analyse(*words: str) -> int:
    return command.main(["s.tsv", "--data_dir", ".", *words])


def test_probs_add_to_the_analysis(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyse() == 0
    without = capsys.readouterr().out
    assert analyse("s.tsv", "--probs", "s.probs.tsv") == 0
    text = capsys.readouterr().out
    first, second = text.split("\nMean confidence: ")
    assert first.startswith(without)
    assert "no difference to test" in first  # The second submission is compared all the same.
    assert second.endswith("Bad.\n")
    assert second.count("A. B. C. D.") == 3  # all mistakes, which are fewer than the default
    assert analyse("--probs", "s.probs.tsv", "--mistakes", "1") == 0
    assert capsys.readouterr().out.count("A. B. C. D.") == 1


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot_is_written_beside_the_report(
    run_dir: Path, capsys: pytest.CaptureFixture[str], suffix: str, begin: bytes
) -> None:
    pytest.importorskip("matplotlib")
    assert analyse("--probs", "s.probs.tsv", "--plot", f"r.{suffix}") == 0
    assert (run_dir / f"r.{suffix}").read_bytes().startswith(begin)
    captured = capsys.readouterr()
    assert "Brier score" in captured.out
    assert captured.err == f"gpt1 analysis: written: r.{suffix}\n"


def test_plot_that_cannot_be_written(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert analyse("--probs", "s.probs.tsv", "--plot", "s.tsv/r.png") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "s.tsv/r.png: cannot be written" in captured.err


def changed(old: str, new: str) -> str:
    assert old in PROBS_FILE
    return PROBS_FILE.replace(old, new)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            changed("2\t0\t0.9375\t0.0625", "2\t1\t0.4\t0.6"),
            "p.tsv, line 4: prediction 1, but s.ts",
        ),
        (changed("5\t1\t0.0625\t0.9375\n", ""), "p.tsv has 5 stories, but s.tsv has 6; name"),
        (PROBS_FILE + "6\t1\t0.25\t0.75\n", "p.tsv has 7 stories, but s.tsv has 6; name"),
        (changed("0.375", "0.38"), "p.tsv, line 2: expected 2 probabilities that sum"),
    ],
)
def test_probs_of_another_submission_are_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    (run_dir / "p.tsv").write_text(content)
    assert analyse("--probs", "p.tsv", "--plot", "r.png") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gpt1 analysis: error: ")
    assert complaint in captured.err
    assert not (run_dir / "r.png").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--plot", "r.png"], "--plot: needs probabilities; give --probs FILE too"),
        (["--mistakes", "3"], "--mistakes: needs probabilities; give --probs FILE too"),
        (
            ["--probs", "s.probs.tsv", "--plot", "r.txt"],
            "--plot r.txt: expected a name that ends in",
        ),
        (["--probs", "s.probs.tsv", "--mistakes", "-1"], "--mistakes -1: must be at least 0"),
        (["--probs", "nothing.tsv"], "nothing.tsv: the file of probabilities cannot be read"),
        (["--prob", "s.probs.tsv"], "--prob: there is no such flag or argument; did you mean --pr"),
        (["--probs"], "--probs: a value is missing; give one after it"),
    ],
)
def test_mistakes_on_the_command_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert analyse(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_missing_matplotlib_names_the_extra(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert analyse("--probs", "s.probs.tsv", "--plot", "r.png") == 2
    assert capsys.readouterr().err == (
        "gpt1 analysis: error: matplotlib is missing: run pip install -e '.[plots]' in the "
        "directory of the project\n"
    )
