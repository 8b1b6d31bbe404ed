"""The report of a reproduction: the numbers in its tables are those of the runs, none invented."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reproduction_runs import outcome

from gpt1.commands import reproduce
from gpt1.datasets import TASKS
from gpt1.reproduction import paper
from gpt1.reproduction.found import DEMO
from gpt1.reproduction.outcomes import Outcome, Place, Score, read_outcome
from gpt1.reproduction.report import write_report
from gpt1.reproduction.summaries import reported, summarize
from gpt1.runtime import extras
from gpt1.runtime.errors import InputError

TABLE_5 = "### Table 5"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results")


def page_of(place: Place, outcomes: list[Outcome]) -> str:
    """Write the results of runs and their report; return the page."""
    for each in outcomes:
        place.write(each)
    write_report(place, lambda text: None)
    return (place.directory / "results.md").read_text()


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without the rule below its head."""
    lines = page[page.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return [found[0], *found[2:]]


def test_median_range_interval_and_published_score(place: Place) -> None:
    seeds = {1: 52.0, 2: 58.0, 3: 55.5}
    page = page_of(place, [outcome("rte", "full", seed, x) for seed, x in seeds.items()])
    found = rows(page, "### Tables 2 to 5")
    assert found[0][3:5] == ["paper", "ours"]
    cells = ["RTE", "accuracy", "full fine-tuning", "56.0", "55.5", "52.0 to 58.0", "3"]
    assert found[1:] == [[*cells, "50.5 to 60.5", "dev, 200"]]
    data = json.loads((place.directory / "results.json").read_text())
    (ours,) = data["ours"]
    assert ours["scores"] == {"1": 52.0, "2": 58.0, "3": 55.5}
    assert (ours["median"], ours["low"], ours["high"]) == (55.5, 50.5, 60.5)
    assert ours["seeds_low"] is None, "three seeds are too few for an interval of the median"
    assert data["published"]["table_5"]["full"]["rte"] == 56.0
    assert len(data["runs"]) == 3


def test_the_demo_is_named_and_not_compared(place: Place) -> None:
    page = page_of(
        place,
        [
            replace(outcome("rocstories", "full", 1, 75.0), data=f"{DEMO}12345678"),
            replace(outcome("rocstories", "full", 2, 85.0), data="87654321"),
        ],
    )
    (_, *found) = rows(page, "### Tables 2 to 5")
    shown = {row[0]: row[3:5] for row in found}
    assert shown["ROCStories (bundled demo)"] == ["-", "75.0"]
    assert shown["ROCStories (87654321)"] == ["86.5", "85.0"]
    assert "cannot be compared with the paper's" in page


@pytest.mark.parametrize("name", ["results.md", "results.json"])
def test_a_file_of_the_user_is_not_replaced(
    place: Place, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page_of(place, [outcome("rte", "full", 1, 55.0)])
    assert reproduce.main(["--report", "--out", str(place.directory)]) == 0
    path = place.directory / name
    path.write_text("my notes")
    assert reproduce.main(["--report", "--out", str(place.directory)]) == 2
    assert f"holds a file {name} that is no report" in capsys.readouterr().err
    assert path.read_text() == "my notes"


def test_six_seeds_have_an_interval_of_the_median(place: Place) -> None:
    scores = [50.0, 51.0, 52.0, 53.0, 54.0, 59.0]
    found = summarize(outcome("rte", "full", seed, x) for seed, x in enumerate(scores))
    assert (found[0].seeds_low, found[0].seeds_high) == (50.0, 59.0)
    assert found[0].median == statistics.median(scores) == 52.5


def test_what_is_missing_is_a_dash(place: Place) -> None:
    """There is no average unless all eight data sets are there."""
    page = page_of(
        place, [outcome("rte", "full", 1, 55.0), outcome("mrpc", "no_lm", 1, 70.0, 66.0)]
    )
    table = {row[0]: row[1:] for row in rows(page, TABLE_5)}
    heads = rows(page, TABLE_5)[0][2:]
    assert heads == [TASKS[name].title for name in paper.ABLATION_TASKS]
    assert table["full fine-tuning: paper"][0] == "74.7"
    assert table["full fine-tuning: ours"] == [*["-"] * 8, "55.0"]
    assert table["without the auxiliary loss: ours"] == ["-", "-", "-", "70.0", *["-"] * 5]
    assert table["without pretraining: ours"] == ["-"] * 9
    assert table["without Transformer (LSTM): left out"] == ["-"] * 9
    assert table["without Transformer (LSTM): paper"][-1] == "54.6"


def test_the_average_is_that_of_all_eight(place: Place) -> None:
    runs = []
    for number, name in enumerate(paper.ABLATION_TASKS):
        scores = [10.0 * number, *[0.0] * (len(TASKS[name].metrics) - 1)]
        split = {"mnli": "MNLI-m.dev"}.get(name, "")
        runs.append(outcome(name, "full", 1, *scores, split=split))
    mismatched = replace(runs[5].scores[0], split="MNLI-mm.dev", score=60.0)
    runs[5] = replace(runs[5], scores=(*runs[5].scores, mismatched))
    table = {row[0]: row[1:] for row in rows(page_of(place, runs), TABLE_5)}
    expected = ["35.6", "0.0", "10.0", "20.0", "30.0", "40.0", "55.0", "60.0", "70.0"]
    assert table["full fine-tuning: ours"] == expected, "MNLI: the mean of 50 and 60"


def test_versions_of_a_data_set_are_told_apart(place: Place) -> None:
    """They have no common mean, and each has its own row and its own column."""
    runs = [*layers(), *zeroshot()]
    changed = [
        replace(
            each,
            data="eeeeeeee",
            name=f"{each.name}-e",
            scores=tuple(replace(score, score=score.score + 10) for score in each.scores),
        )
        for each in runs
    ]
    page = page_of(place, [*runs, *changed])
    found = [row for row in rows(page, "### Tables 2 to 5") if row[2] == "full fine-tuning"]
    cells = [("RTE (dddddddd)", "58.0"), ("RTE (eeeeeeee)", "68.0")]
    assert [(row[0], row[4]) for row in found] == cells
    table = {row[0]: row[1:] for row in rows(page, TABLE_5)}
    assert table["full fine-tuning: ours"] == ["-"] * 9
    heads, first, *_ = rows(page, "### Figure 2, left")
    assert dict(zip(heads, first, strict=True)) == {
        "layers": "none",
        "RTE.dev (dddddddd) accuracy": "50.0 (50.0 to 50.0)",
        "RTE.dev (eeeeeeee) accuracy": "60.0 (60.0 to 60.0)",
    }
    heads, first, *_ = rows(page, "## Figure 2, right")
    assert dict(zip(heads, first, strict=True)) == {
        "updates": "100",
        "SST-2.dev (dddddddd) accuracy": "51.0 (46.0 to 56.0)",
        "SST-2.dev (eeeeeeee) accuracy": "61.0 (46.0 to 56.0)",
    }


def test_a_run_that_is_there_twice_is_refused(place: Place) -> None:
    run = outcome("rte", "full", 1, 50.0, name="one")
    with pytest.raises(InputError, match=r"^one.json and two.json .* remove one"):
        page_of(place, [run, replace(run, name="two")])


def test_table_5_is_left_out_without_its_data_sets(place: Place) -> None:
    page = page_of(place, [outcome("race-high", "full", 1, 40.0)])
    assert TABLE_5 not in page
    assert "- 1 finished run\n" in page
    published = "RACE-high: the published score is of a model that was trained on both levels"
    assert f"\n{published} of RACE.\n" in page
    runs = [outcome("rte", "full", seed, 50.0 + seed, name=f"rte{seed}") for seed in range(6)]
    found = rows(page_of(place, runs), "### Tables 2 to 5")
    assert found[0][7:9] == ["median's 95 %", "95 %"]
    assert found[1][7] == "50.0 to 55.0"
    assert found[2][7] == "-", "one seed is too few"


def test_a_test_split_takes_the_place_of_the_validation_split(place: Place) -> None:
    run = outcome("mrpc", "full", 1, 80.0, 70.0)
    tests = tuple(replace(each, split="MRPC", score=each.score - 9) for each in run.scores)
    page = page_of(place, [replace(run, scores=(*tests, *run.scores))])
    found = rows(page, "### Tables 2 to 5")[1:]
    assert [(row[1], row[4], row[8]) for row in found] == [
        ("f1", "71.0", "test, 200"),
        ("accuracy", "61.0", "test, 200"),
    ]
    assert rows(page, TABLE_5)[2][4] == "71.0 t"
    data = json.loads((place.directory / "results.json").read_text())
    assert {each["split"] for each in data["ours"]} == {"MRPC", "MRPC.dev"}


def test_rocstories_has_the_published_median_beside_it(place: Place) -> None:
    page = page_of(place, [outcome("rocstories", "full", 1, 60.0, split="ROCStories")])
    assert rows(page, "### Tables 2 to 5")[1][3] == "86.5"
    assert "\nROCStories: 85.8 is the median of ten runs in" in page


def test_other_settings_are_another_section(place: Place) -> None:
    """Scores of different models or settings have no common median."""
    first = outcome("rte", "full", 1, 50.0)
    other = {
        "configuration": "bbbbbbbb",
        "settings": {"lr": 0.001, "n_embd": 20480.0, "fast": True},
    }
    second = outcome("rte", "full", 1, 60.0, name="other", **other)
    page = page_of(place, [first, second])
    assert rows(page, "### Tables 2 to 5 of configuration 1")[1][4] == "60.0"
    assert rows(page, "### Tables 2 to 5 of configuration 2")[1][4] == "50.0"
    assert "settings besides the defaults: `--lr 0.001 --n_embd 20480 --fast`\n" in page
    assert "settings besides the defaults: `--n_ctx 128`\n" in page


def layers() -> list[Outcome]:
    runs = [outcome("rte", "no_pretraining", 1, 50.0), outcome("rte", "full", 1, 58.0)]
    for n, scores in enumerate([(51.0, 53.0), (54.0, 56.0)]):
        runs += [outcome("rte", "layers", seed, x, n_transfer=n) for seed, x in enumerate(scores)]
    return runs


def zeroshot() -> list[Outcome]:
    return [
        outcome(
            *("sst2", "zeroshot", None, 50.0 + n / 100),
            n_updates=n,
            series="books",
            name=f"sst2-zeroshot-{n}",
            configuration=f"c{n}",
            train_score=None,
        )
        for n in (200, 100, 1000)
    ]


def test_figure_2(place: Place) -> None:
    page = page_of(place, [*layers(), *zeroshot()])
    assert rows(page, "### Figure 2, left") == [
        ["layers", "RTE.dev accuracy"],
        ["none", "50.0 (50.0 to 50.0)"],
        ["0", "52.0 (51.0 to 53.0)"],
        ["1", "55.0 (54.0 to 56.0)"],
        ["2", "58.0 (58.0 to 58.0)"],
    ]
    assert rows(page, "## Figure 2, right") == [
        ["updates", "SST-2.dev accuracy"],
        ["100", "51.0 (46.0 to 56.0)"],
        ["200", "52.0 (47.0 to 57.0)"],
        ["1,000", "60.0 (55.0 to 65.0)"],
    ]
    for name in ("layers.png", "zeroshot.png"):
        assert f"]({name})" in page
        assert (place.directory / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_tables_and_a_note(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    for each in layers():
        place.write(each)
    said: list[str] = []
    paths = write_report(place, said.append)
    assert [path.name for path in paths] == ["results.md", "results.json"]
    assert len(said) == 1
    assert "pip install -e '.[plots]'" in said[0]


def test_the_page_is_markdown_of_no_great_width(place: Place) -> None:
    """Every row has as many cells as its head, and only commands are longer than 110 characters."""
    runs = [*layers(), *zeroshot(), outcome("stsb", "no_pretraining", 1, 20.0, 21.0)]
    runs += [outcome("mrpc", what, 1, 80.0, 70.0) for what in ("full", "no_lm")]
    page = page_of(place, runs)
    text, _, commands = page.partition("```text")
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert max(map(len, text.splitlines())) <= 125
    assert max(len(line) for line in text.splitlines() if line[:1] != "|") <= 100
    assert commands.count("gpt1 ") == len(runs)


def test_results_survive_writing_and_reading(place: Place) -> None:
    run = outcome("stsb", "full", 3, 40.0, 41.0)
    run = replace(run, scores=(*run.scores, replace(run.scores[0], low=None, high=None)))
    place.write(run)
    read = read_outcome(place.result(run.name))
    assert read == run
    assert isinstance(read.seed, int)
    assert isinstance(read.scores[0], Score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": "long"}, "expected seconds to be a number, found '\"long\"'"),
        ({"seed": 1.5}, "expected seed to be a whole number from 0 or null"),
        ({"scores": [{"split": "RTE"}]}, "expected metric to be a text, found nothing"),
        ({"scores": "good"}, "expected scores to be a list of scores"),
    ],
)
def test_a_damaged_result_is_named(
    place: Place, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = outcome("rte", "full", 1, 50.0)
    place.write(run)
    path = place.result(run.name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert reproduce.main(["--out", str(place.directory), "--report"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gpt1 reproduce: error: {path}: {message}")
    assert err.endswith("remove this file, and the run is made again\n")


def test_a_report_on_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--out", str(place.directory), "--report"]) == 2
    assert "there is no result of a finished run; start the runs" in capsys.readouterr().err
    assert not place.directory.exists()


def test_a_report_alone_needs_no_data(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(outcome("rte", "full", 1, 50.0))
    assert reproduce.main(["--out", str(place.directory), "--report"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(place.directory / name) for name in ("results.md", "results.json")]
    assert err == ""


def test_the_published_numbers_agree_with_one_another() -> None:
    """The paper's averages are the means of its rows, and table 5 repeats tables 2 and 4."""
    for what, row in {**paper.ABLATIONS, "lstm": paper.LSTM}.items():
        assert statistics.mean(row) == pytest.approx(paper.AVERAGES[what], abs=0.0651)
    full = dict(zip(paper.ABLATION_TASKS, paper.ABLATIONS["full"], strict=True))
    for each in paper.FULL_RESULTS:
        task = TASKS[each.dataset]
        assert each.metric == task.metrics[0].title
        assert each.split in (task.submission, "MNLI-m", "MNLI-mm")
        if each.dataset in full and each.dataset != "mnli":
            assert full[each.dataset] == each.score
    matched = [each.score for each in paper.FULL_RESULTS if each.dataset == "mnli"]
    assert full["mnli"] == pytest.approx(statistics.mean(matched), abs=0.0501)


def test_reported_splits_are_chosen_for_each_experiment() -> None:
    both = outcome("rte", "full", 1, 50.0)
    both = replace(both, scores=(replace(both.scores[0], split="RTE"), *both.scores))
    found = reported(summarize([both, outcome("rte", "no_lm", 1, 50.0)]))
    assert [(each.what, each.split) for each in found] == [("full", "RTE"), ("no_lm", "RTE.dev")]
