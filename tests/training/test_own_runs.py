"""Runs on a user's own data: from files and from Python, and the models that they leave."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
from finished import train_tiny

import gpt1
from gpt1.commands import convert, predict, score, train
from gpt1.inference.language_model import LanguageModel
from gpt1.runtime.errors import InputError
from gpt1.weights.jl import read_jl

NAMES, THINGS = ("anna", "ben", "carl", "dora"), ("kite", "boat", "drum", "cake")
Row = tuple[Any, ...]


def mood(rng: random.Random) -> Row:
    y = rng.randrange(2)
    return f"{rng.choice(NAMES)} {('cried', 'smiled')[y]}. it was so big.", ("bad", "good")[y]


def same(rng: random.Random) -> Row:
    one, two = rng.choice(NAMES), rng.choice(NAMES)
    return f"{one} had a kite", f"{two} ran", "yes" if one == two else "no"


def alike(rng: random.Random) -> Row:
    one, two = rng.choice(THINGS), rng.choice(THINGS)
    return f"a {one} so big", f"a {two}", round(1 + 3 * (one == two) + rng.random(), 2)


def right_thing(rng: random.Random) -> Row:
    things = rng.sample(THINGS, 3)
    right, n = rng.randrange(2), rng.choice((2, 3))
    answers = [f"it was a {thing}" for thing in things[:n]] + [""] * (3 - n)
    return f"anna had a {things[right]}", *answers, right + 1


class Shape(NamedTuple):
    """A shape with rows of it, and the flags that it needs."""

    row: Callable[[random.Random], Row]
    columns: tuple[str, ...]
    words: tuple[str, ...] = ()


SHAPES = {
    "classification": Shape(mood, ("text",)),
    "entailment": Shape(same, ("text1", "text2"), ("--metric", "f1")),
    "similarity": Shape(alike, ("text1", "text2"), ("--metric", "pearson")),
    "choice": Shape(right_thing, ("context", "answer1", "answer2", "answer3")),
}


def write_rows(path: Path, shape: str, n: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = [SHAPES[shape].row(rng) for _ in range(n)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([(*SHAPES[shape].columns, "label"), *rows])
    return rows


class Place(NamedTuple):
    """A directory with data of all shapes, a tiny model, and a finished run on each file."""

    directory: Path
    task: tiny.Tiny

    def flags(self, shape: str, out: Path) -> list[str]:
        files = [f"{split}_file" for split in ("train", "test")]
        data = [f"--{name}={self.directory / shape}-{name[:-5]}.csv" for name in files]
        kinds = ("log", "save", "submission")
        places = [f"--{kind}_dir={out / kind}" for kind in kinds]
        size = ["--n_batch", "2", "--n_iter", "2", "--lr", "0.01", "--device", "cpu", "--quiet"]
        model = ["--model_dir", str(self.task.model_dir)]
        words = ["--dataset", "own", "--shape", shape, *SHAPES[shape].words]
        return [*words, *data, *places, *size, *model, "--submit", "--desc", shape]

    def model(self, shape: str) -> LanguageModel:
        return gpt1.load_pretrained(self.directory / "save" / shape, device="cpu")

    def submission(self, shape: str) -> list[str]:
        text = (self.directory / "submission" / shape / "own.tsv").read_text()
        return [row.split("\t")[1] for row in text.splitlines()[1:]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("own")
    place = Place(directory, tiny.write_tiny(directory / "tiny"))
    for shape in SHAPES:
        write_rows(directory / f"{shape}-train.csv", shape, 40, seed=1)
        write_rows(directory / f"{shape}-test.csv", shape, 12, seed=2)
        assert train.main(place.flags(shape, directory)) == 0
    return place


def texts_of(shape: str, seed: int = 2, n: int = 12) -> list[tuple[str, ...]]:
    rng = random.Random(seed)
    return [SHAPES[shape].row(rng)[:-1] for _ in range(n)]


# The model remembers its task


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_predicts_as_its_run_did(place: Place, shape: str) -> None:
    found, probabilities = place.model(shape).predict(texts_of(shape), probabilities=True)
    expected = place.submission(shape)
    n_outcomes = {"classification": 2, "entailment": 2, "similarity": 6, "choice": 3}[shape]
    assert probabilities.shape == (12, n_outcomes)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    if shape == "similarity":
        np.testing.assert_allclose(found, [float(each) for each in expected], rtol=1e-5)
        assert np.ptp(found) > 0
    elif shape == "choice":
        assert [f"answer{each + 1}" for each in found] == expected
        lacks = [not texts[3] for texts in texts_of(shape)]
        assert (probabilities[lacks, 2] == 0).all()
        assert (probabilities[np.logical_not(lacks), 2] > 0).all()
    else:
        assert found == expected


def test_a_single_text_stands_for_a_tuple(place: Place) -> None:
    model, texts = place.model("classification"), texts_of("classification")
    assert model.predict([text for (text,) in texts]) == model.predict(texts)
    assert model.predict([]) == []


def test_answers_may_be_left_out_of_a_choice(place: Place) -> None:
    model, texts = place.model("choice"), texts_of("choice")
    short = [tuple(text for text in each if text) for each in texts]
    assert {len(each) for each in short} == {3, 4}
    assert model.predict(short) == model.predict(texts)


@pytest.mark.parametrize(
    ("shape", "example", "expected"),
    [
        ("classification", ("a", "b"), "must be one text (text), but is ('a', 'b')"),
        ("entailment", "ab", "must be two texts (text1, text2), but is 'ab'"),
        ("choice", ("a", "b"), "must be three texts or more (context, answer1, answer2), but"),
        ("choice", ("a", "", " "), "must be three texts or more (context, answer1, answer2), but"),
    ],
)
def test_an_example_of_another_shape(place: Place, shape: str, example: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        place.model(shape).predict([example])
    assert str(caught.value).startswith(f"example 1: {expected}")
    with pytest.raises(InputError, match="examples: must be a list of examples, but is one text"):
        place.model(shape).predict("a text")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_task_survives_saving_and_conversion(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = place.model(shape)
    model.save("saved")
    run = str(place.directory / "save" / shape)
    assert convert.main([run, "a.safetensors"]) == 0
    assert convert.main(["a.safetensors", "hub", "--to", "hub", "--model_dir", run]) == 0
    for path in ("saved", "hub"):
        found = gpt1.load_pretrained(path, device="cpu")
        assert found.task == model.task is not None
        assert found.predict(texts_of(shape)) == model.predict(texts_of(shape))


def test_a_list_without_record(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model of classes needs its record; one with a choice head is taken for one of stories."""
    monkeypatch.chdir(tmp_path)
    for shape in ("classification", "choice"):
        run = str(place.directory / "save" / shape)
        assert convert.main([run, f"{shape}.jl"]) == 0
        assert "a .jl list has no place for the record of the task" in capsys.readouterr().err
    vocabulary = place.directory / "save" / "choice"
    found = gpt1.load_pretrained("choice.jl", vocabulary=vocabulary)
    assert found.task is None
    assert set(found.predict([("anna ran", "a kite", "a boat")])) <= {0, 1}
    with pytest.raises(InputError, match=r"must be three texts .story, ending1, ending2., but is"):
        found.predict([("anna ran", "a kite", "a boat", "a cake")])
    found = gpt1.load_pretrained("classification.jl", vocabulary=vocabulary)
    with pytest.raises(InputError, match="has 2 classes, but no file says what they are called"):
        found.predict(["anna ran"])


def test_answers_that_lose_all_their_text_are_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder removes a lone ``&nbsp;``, which is visible in the file."""
    with pytest.raises(InputError, match="example 1: no answer has text"):
        place.model("choice").predict([("Ada had a kite.", "&nbsp;", "&nbsp;")])
    file = tmp_path / "a.csv"
    rows = ["Ada had a kite.,It was a kite.,It was a cake.,1"] * 9 + [
        "Ben had a cake.,A kite.,&nbsp;,2"
    ]
    file.write_text("\n".join(["context,answer1,answer2,label", *rows, ""]))
    words = ["--dataset", "own", "--shape", "choice", "--train_file", str(file)]
    words += ["--valid_file", str(file), "--model_dir", str(place.task.model_dir)]
    assert train.main([*words, "--log_dir", str(tmp_path), "--save_dir", str(tmp_path)]) == 2
    assert (
        "a.csv, line 11: an answer has no text that the model can read" in capsys.readouterr().err
    )


def test_a_record_of_another_model(place: Place, tmp_path: Path) -> None:
    place.model("classification").save(tmp_path / "hub")
    path = tmp_path / "hub" / "config.json"
    config = json.loads(path.read_text())
    config["gpt1_task"]["target"]["names"].append("third")
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="the target has 3 outputs, but the model's classifier"):
        gpt1.load_pretrained(tmp_path / "hub")
    config["gpt1_task"] = "a text"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: gpt1_task: expected the record of a task"):
        gpt1.load_pretrained(tmp_path / "hub")


# Runs


def test_a_run_in_python_is_that_of_the_command(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    rows = [mood(rng) for _ in range(40)]
    result = gpt1.fine_tune(
        train=iter(rows),
        test=texts_of("classification"),
        model_dir=str(place.task.model_dir),
        n_batch=2,
        n_iter=2,
        lr=0.01,
        device="cpu",
        verbose=False,
    )
    expected = read_jl(place.directory / "save" / "classification" / "best_params.jl")
    for one, two in zip(read_jl(result.outputs.best_params), expected, strict=True):
        np.testing.assert_array_equal(one, two)
    assert result.model.predict(texts_of("classification")) == place.submission("classification")
    assert set(result.metrics) == {"valid_accuracy"}
    found = gpt1.load_pretrained("save/own", device="cpu")
    assert found.predict(texts_of("classification")) == place.submission("classification")


def test_validation_is_not_taken_for_a_test(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    model_dir = str(place.task.model_dir)
    result = gpt1.fine_tune(train=[mood(rng) for _ in range(40)], model_dir=model_dir, n_iter=1)
    assert list(result.predictions) == ["own.dev"]
    assert set(result.metrics) == {"valid_accuracy"}
    assert "32 examples to train on, 8 to validate, 0 to predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"train": [("a", "b", "c")]}, "shape: must be given; give one of"),
        ({"train": "a text"}, "train: must be a list of examples, but is 'a text'"),
        ({"train": {"a": "b"}}, "train: must be a list of examples, but is {'a': 'b'}"),
        ({"train": 3}, "train: must be a list of examples, but is 3"),
        ({"train": []}, "train: there are no examples; give at least one"),
        ({"train": [("a",)]}, "train, example 1: must be texts and then a label (text, label), b"),
        ({"train": [("a", "b")], "dataset": "rocstories"}, "dataset='rocstories': train is given"),
        ({"valid": [("a", "b")]}, "valid, test: are given without train"),
        (
            {"train": [("a", "b")], "train_file": "x.csv"},
            "train_file: is for examples in files; leave it out, or leave train out",
        ),
        ({"train": [("a", "x"), ("b", "y")] * 3, "metric": "pearson"}, "label is 'x', but metric"),
    ],
)
def test_mistakes_in_a_call(
    place: Place, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        gpt1.fine_tune(**arguments, save_dir=str(tmp_path), model_dir=str(place.task.model_dir))
    assert complaint in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_resume_and_the_log_as_configuration(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = place.flags("classification", tmp_path)
    assert train.main(flags) == 0
    written = (tmp_path / "submission" / "classification" / "own.tsv").read_text()
    capsys.readouterr()
    assert train.main([*flags, "--resume"]) == 0
    assert "going on after update 8 of 8" in capsys.readouterr().err
    assert (tmp_path / "submission" / "classification" / "own.tsv").read_text() == written
    assert train.main([*flags, "--resume", "--metric", "matthews"]) == 2
    assert "metric" in capsys.readouterr().err
    log, again = place.directory / "log" / "choice.jsonl", tmp_path / "again"
    places = [f"--{kind}_dir={again}" for kind in ("log", "save", "submission")]
    assert train.main(["--config", str(log), *places]) == 0
    expected = (place.directory / "submission" / "choice" / "own.tsv").read_text()
    assert (again / "choice" / "own.tsv").read_text() == expected


def test_long_texts_are_cut_as_in_training(place: Place, tmp_path: Path) -> None:
    """The record has the --n_ctx of training: the rows of positions alone cut to other lengths."""
    rng = random.Random(3)
    rows = [(f"{a} so big. it was {a}", f"{b} ran so. {b} ran", y) for a, b, y in _pairs(rng)]
    for name in ("train", "test"):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text1", "text2", "label"), *rows])
    flags = place.flags("entailment", tmp_path)
    files = [f"--{name}_file={tmp_path / name}.csv" for name in ("train", "test")]
    assert train.main([*flags, *files, "--n_ctx", "16", "--probs"]) == 0
    model = gpt1.load_pretrained(tmp_path / "save" / "entailment", device="cpu")
    assert model.module.config.n_ctx == 15
    texts = [row[:2] for row in rows]
    text = (tmp_path / "submission" / "entailment" / "own.probs.tsv").read_text()
    expected = [[float(x) for x in row.split("\t")[2:]] for row in text.splitlines()[1:]]
    _, found = model.predict(texts, probabilities=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    _, other = model.predict(texts, probabilities=True, n_ctx=512)
    assert not np.allclose(other, expected, rtol=1e-5)


def _pairs(rng: random.Random) -> list[tuple[str, str, str]]:
    names = [(rng.choice(NAMES), rng.choice(NAMES)) for _ in range(40)]
    return [(one, two, "yes" if one == two else "no") for one, two in names]


def test_too_few_examples_for_a_batch(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*place.flags("classification", tmp_path), "--n_batch", "9"]
    assert train.main(words) == 2
    file = place.directory / "classification-train.csv"
    expected = f"{file}: 32 training examples are fewer than a batch of --n_batch 9 * --n_gpu 4"
    assert expected in capsys.readouterr().err


# gpt1 predict


def predicted(place: Place, shape: str, file: Path, *words: str) -> int:
    run = place.directory / "save" / shape
    return predict.main([str(file), "--model_dir", str(run), "--device", "cpu", *words])


@pytest.mark.parametrize("shape", SHAPES)
def test_predict_gives_the_submission_and_the_scores(
    place: Place, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    assert predicted(place, shape, place.directory / f"{shape}-test.csv") == 0
    out, err = capsys.readouterr()
    rows = [row.split("\t") for row in out.splitlines()]
    assert rows[0] == ["index", "prediction"]
    assert [row[0] for row in rows[1:]] == [str(index) for index in range(12)]
    expected = place.submission(shape)
    if shape == "similarity":
        found = [float(row[1]) for row in rows[1:]]
        np.testing.assert_allclose(found, [float(each) for each in expected], rtol=1e-5)
    else:
        assert [row[1] for row in rows[1:]] == expected
    titles = [line.split(":")[1].strip() for line in err.splitlines()]
    metrics = {"entailment": ["f1", "accuracy"], "similarity": ["pearson", "spearman"]}
    assert titles == metrics.get(shape, ["accuracy"])


def test_probabilities_go_to_a_file_with_the_names_of_classes(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "new.jsonl", tmp_path / "deep" / "out.tsv"
    lines = [json.dumps({"words": text}) for (text,) in texts_of("classification")]
    file.write_text("\n".join(lines))
    words = ["--text_columns", "words", "--probs", "--out", str(out)]
    assert predicted(place, "classification", file, *words) == 0
    assert capsys.readouterr() == ("", "")
    rows = [row.split("\t") for row in out.read_text().splitlines()]
    assert rows[0] == ["index", "prediction", "prob_bad", "prob_good"]
    assert [row[1] for row in rows[1:]] == place.submission("classification")
    for row in rows[1:]:
        bad, good = map(float, row[2:])
        assert row[1] == ("good" if good > bad else "bad")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--text_columns", "txt"], "line 1: there is no column txt; did you mean text? Give"),
        (["--label_column", "mood"], "line 1: there is no column mood; give --label_column"),
        (["--out", "{file}"], "would overwrite a file that is read; name another file"),
        (["--n_ctx", "2"], "--n_ctx 2: must be at least 6"),
    ],
)
def test_mistakes_on_the_command_line(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    file = place.directory / "classification-test.csv"
    words = [word.format(file=file) for word in words]
    assert predicted(place, "classification", file, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt1 predict: error: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_a_model_of_stories_predicts_tables_of_stories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `gpt1 score` writes with probabilities, for the same table and also without a record."""
    run = train_tiny(tmp_path / "run")
    path = tmp_path / "stories.csv"
    rows = [("anna ran.", "anna won.", "anna cried.", 1), ("ben lost.", "he won.", "he ran.", 2)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("story", "ending1", "ending2", "label"), *rows])
    capsys.readouterr()
    params = ["--params", str(run.params.parent), "--device", "cpu"]
    assert score.main([str(path), *params]) == 0
    expected = capsys.readouterr()
    assert predict.main([str(path), "--probs", *params]) == 0
    found = capsys.readouterr()
    assert found.out == expected.out
    assert found.err.split("%")[0][13:] == expected.err.split("%")[0][11:]
    (run.params.parent / "gpt1_config.json").write_text('{"n_head": 4}')
    assert predict.main([str(path), "--probs", *params]) == 0
    assert capsys.readouterr() == found


def test_score_takes_models_that_choose_alone(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stories.csv"
    path.write_text("story,ending1,ending2\nanna ran.,anna won.,anna cried.\n")
    run = place.directory / "save" / "entailment"
    assert score.main([str(path), "--params", str(run), "--device", "cpu"]) == 2
    assert "was not trained to choose; use gpt1 predict, or --params" in capsys.readouterr().err
    run = place.directory / "save" / "choice"
    assert score.main([str(path), "--params", str(run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("index\tprediction\tprob_0\tprob_1\n0\t")


def test_a_model_that_was_not_fine_tuned(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    file = place.directory / "classification-test.csv"
    assert predict.main([str(file), "--model_dir", str(place.task.model_dir)]) == 2
    expected = "a fine-tuned model is needed: --model_dir DIR, such as save/own"
    assert expected in capsys.readouterr().err
