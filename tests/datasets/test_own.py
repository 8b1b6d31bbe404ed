"""A user's own data: all formats and shapes, the split, and what is refused, with its place."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt1.datasets import find_task
from gpt1.datasets.own import read_to_predict, split_off
from gpt1.datasets.own_tables import read_table
from gpt1.runtime.errors import InputError
from gpt1.settings.training import parse
from gpt1.tasks import (
    SHAPES,
    ChoiceIndex,
    Classes,
    Example,
    Grades,
    Splits,
    Task,
    TaskRecord,
)

MOODS = [("Ada won.", "good"), ("Ben lost.", "bad")] * 5
PAIRS = [("Ada won.", "Ada smiled.", 1.0), ("Ben lost.", "He won.", 4.5), ("So.", "No.", 3.0)]
CHOICES = [
    ("Ada won.", "smiled", "cried", "", "1"),
    ("Ben lost.", "won", "ran", "cried", "answer3"),
]


def write(path: Path, columns: str, rows: list[Any]) -> Path:
    """Write a table in the format that the suffix of the path names."""
    names = columns.split(",")
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([names, *rows])
        elif path.suffix == ".tsv":
            file.writelines("\t".join(map(str, row)) + "\n" for row in [names, *rows])
        else:
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    return path


def own(*words: object) -> Task:
    return find_task(parse(["--dataset", "own", *map(str, words)]))


def splits(task: Task) -> Splits:
    return task.read(Path("nowhere"))


def classified(path: Path, *words: object) -> Task:
    return own("--shape", "classification", "--train_file", path, *words)


def labels(examples: list[Example]) -> list[float | None]:
    return [example.label for example in examples]


# Formats


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_all_formats_give_the_same_examples(tmp_path: Path, suffix: str) -> None:
    rows = [('He said "no", twice', "1"), ("“é” \u2028 x", "0"), ("a , b", "1"), ("c", "0")]
    path = write(tmp_path / f"a{suffix}", "text,label", rows)
    found = splits(classified(path, "--valid_file", path)).train
    assert [example.texts for example in found] == [(text,) for text, _ in rows]
    assert labels(found) == [1, 0, 1, 0]
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert [each.source for each in found] == [f"{path}, line {first + i}" for i in range(4)]


def test_quotes_in_a_tsv_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a\tx\nb"\ty\n')
    assert [cells["text"] for _, cells in read_table(path).rows] == ['"a', 'b"']


def test_values_of_json_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1.50, "b": null, "c": true}\n{"d": "x", "a": 99999999999999999999}\n')
    table = read_table(path)
    assert table.columns == ["a", "b", "c", "d"]
    assert [cells for _, cells in table.rows] == [
        {"a": "1.50", "b": "", "c": "true"},
        {"d": "x", "a": "9" * 20},
    ]


def test_columns_without_names_are_not_read(tmp_path: Path) -> None:
    """A spreadsheet writes such columns after the last one, and pandas writes one for its index."""
    path = tmp_path / "a.csv"
    path.write_text(",text,label,,\n0,good,1,,\n1,bad,0,,x\n")
    found = splits(classified(path, "--valid_file", path)).train
    assert [example.texts for example in found] == [("good",), ("bad",)]
    assert labels(found) == [1, 0]


def test_files_are_found_in_data_dir(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label", MOODS)
    assert len(splits(classified(Path("a.csv"), "--data_dir", tmp_path)).train) == 8


# Shapes and targets


def test_classes_are_the_sorted_labels_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    task = classified(path)
    assert task.target == Classes(("bad", "good"))
    assert task.layout == SHAPES["classification"]
    assert task.columns == ("text",)
    assert [metric.title for metric in task.metrics] == ["accuracy"]


def test_grades_lie_between_the_ends_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "one,two,score", PAIRS)
    words = ["--text_columns", "one, two", "--label_column", "score", "--metric", "pearson"]
    task = own("--shape", "similarity", "--train_file", path, "--valid_file", path, *words)
    assert task.target == Grades(1.0, 4.5)
    assert labels(splits(task).train) == [1.0, 4.5, 3.0]
    assert [metric.title for metric in task.metrics] == ["pearson", "spearman"]
    np.testing.assert_allclose(task.target.encode([1.0, 4.5])[:, [0, 5]], np.eye(2))


def test_choices_by_name_or_number_with_missing_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "context,answer1,answer2,answer3,label", CHOICES)
    task = own("--shape", "choice", "--train_file", path, "--valid_file", path)
    assert task.target == ChoiceIndex(("answer1", "answer2", "answer3"))
    found = splits(task).train
    assert labels(found) == [0, 2]
    assert found[0].texts == ("Ada won.", "smiled", "cried", "")


@pytest.mark.parametrize(
    ("words", "positive"),
    [([], 1), (["--positive", "bad"], 0), (["--positive", "good"], 1)],
)
def test_f1_is_of_the_second_label_or_of_the_one_named(
    tmp_path: Path, words: list[str], positive: int
) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    task = classified(path, "--metric", "f1", *words)
    truth, guess = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    expected = {0: 100 * 2 * 2 / (2 + 3), 1: 100 * 2 * 1 / (2 + 1)}
    assert task.metrics[0].compute(guess, truth) == pytest.approx(expected[positive])
    assert task.record(77).scores()[0].compute(guess, truth) == pytest.approx(expected[positive])


def test_matthews(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    titles = [metric.title for metric in classified(path, "--metric", "matthews").metrics]
    assert titles == ["matthews", "accuracy"]


# Splits


def test_a_test_file_may_have_labels_or_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    bare = write(tmp_path / "b.csv", "text", [("x",), ("y",)])
    empty = write(tmp_path / "c.csv", "text,label", [("x", ""), ("y", " ")])
    for file, expected in ((path, [1, 0] * 5), (bare, [None] * 2), (empty, [None] * 2)):
        task = classified(path, "--test_file", file)
        assert list(splits(task).predicted) == ["own", "own.dev"]
        assert labels(splits(task).predicted["own"]) == expected
        assert task.submission == "own"


def test_without_a_test_file_validation_alone_is_predicted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    task = classified(path)
    assert list(splits(task).predicted) == ["own.dev"]
    assert splits(task).predicted["own.dev"] is splits(task).valid
    assert task.submission == "own.dev"


def examples_of(found: str) -> list[Example]:
    return [Example((str(i),), ord(label), f"a, line {i}") for i, label in enumerate(found)]


def test_a_stratified_fifth_is_split_off() -> None:
    train, valid = split_off(examples_of("a" * 60 + "b" * 30 + "c" * 10), stratified=True)
    assert Counter(labels(valid)) == {ord("a"): 12, ord("b"): 6, ord("c"): 2}
    assert sorted(train + valid, key=lambda each: int(each.texts[0])) == examples_of(
        "a" * 60 + "b" * 30 + "c" * 10
    )
    assert valid == split_off(examples_of("a" * 60 + "b" * 30 + "c" * 10), stratified=True)[1]
    assert [int(each.texts[0]) for each in valid] != list(range(80, 100))


def test_labels_that_are_rare_are_split_as_far_as_they_can_be() -> None:
    train, valid = split_off(examples_of("aaabbbbbbbbc"), stratified=True)
    assert {ord("a"), ord("b"), ord("c")} == set(labels(train))
    assert {ord("a"), ord("b")} == set(labels(valid))
    train, valid = split_off(examples_of("aabb"), stratified=True)
    assert set(labels(train)) == set(labels(valid)) == {ord("a"), ord("b")}


def test_grades_are_split_without_strata() -> None:
    train, valid = split_off(examples_of("abcdefghij"), stratified=False)
    assert (len(train), len(valid)) == (8, 2)
    with pytest.raises(InputError, match="no two examples have the same label, so that none can"):
        split_off(examples_of("abcdefghij"), stratified=True)


# Mistakes in flags


@pytest.mark.parametrize(
    ("words", "complaints"),
    [
        (
            "",
            [
                "--train_file: must be given with --dataset own; name a .csv",
                "--shape: must be given; give one of classification, entail",
            ],
        ),
        (
            "--shape choice --train_file a.csv --text_columns a,b --metric f1 --positive x",
            [
                "--text_columns a,b: --shape choice takes 3 or more columns, but these are 2; give "
                "them as context,answer1,answer2",
                "--metric f1: choices have --metric accuracy alone; leave it out",
            ],
        ),
        (
            "--shape entailment --train_file a.csv --text_columns a,a --positive x",
            [
                "--text_columns a,a: a name is empty or is there twice; give each column once",
                "--positive x: is for --metric f1; leave it out",
            ],
        ),
        (
            "--shape classification --train_file a.txt",
            ["a.txt: the name ends in '.txt', but .csv, .tsv, .jsonl, .json were expected"],
        ),
        (
            "--shape classification --train_file nothing.csv",
            ["nothing.csv: the table of examples cannot be read: No such file or directory"],
        ),
    ],
)
def test_flags_that_do_not_fit(words: str, complaints: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        own(*words.split())
    for complaint in complaints:
        assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == (len(complaints) + 1 if complaints[1:] else 1)


def test_flags_of_own_data_beside_another_data_set() -> None:
    with pytest.raises(InputError) as caught:
        find_task(parse(["--shape", "choice", "--train_file", "a.csv"]))
    assert str(caught.value).splitlines()[1:] == [
        "  --shape: is for --dataset own; give that, or leave it out",
        "  --train_file: is for --dataset own; give that, or leave it out",
    ]


# Mistakes in files


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "", "line 1: the line is blank or missing, but the names of the columns were"),
        ("a.csv", "text,label\n", "line 2: the file ends, but at least one row was expected"),
        ("a.jsonl", "", "line 1: the file ends, but at least one row was expected"),
        ("a.csv", "text,text\nx,y\n", "line 1: the column 'text' is there twice"),
        (
            "a.csv",
            "texts,label\nx,y\n",
            "line 1: there is no column text; did you mean texts? Give --text_columns with names "
            "among these: texts, label",
        ),
        ("a.csv", "text,mood\nx,y\n", "line 1: there is no column label; give --label_column"),
        (
            "a.csv",
            "text;label\nx;y\n",
            "The columns seem to be separated by semicolons, but commas were expected in a .csv",
        ),
        ("a.tsv", "text,label\nx,y\n", "separated by commas, but tabs were expected in a .tsv"),
        ("a.csv", "text,label\nx,y\n\nz,y\n", "line 3: the line is blank, but a row was expected"),
        (
            "a.csv",
            "text,label\nx,y,z\n",
            "line 2: the row has 3 cells, but 2 were expected as in the header; put cells with com",
        ),
        ("a.tsv", "text\tlabel\nx\n", "line 2: the row has 1 cell, but 2 were expected as in the"),
        ("a.csv", "text,label\n ,y\n", "line 2: text is empty, but text was expected; fill it in"),
        ("a.csv", "text,label\n\u200b,y\n", "line 2: text is empty, but text was expected"),
        ("a.csv", "text,label\nx,y\nx,\n", "line 3: label is empty, but examples to train and val"),
        (
            "a.csv",
            "text,label\nx,y\nz,y\n",
            "line 2: label is 'y' here and in all other training examples, but at least two labels",
        ),
        ("a.csv", 'text,label\nx,"y\tz"\nx,a\n', "line 2: label is 'y\\tz', but a label is on one"),
        ("a.csv", 'text,label\nx,"y\n', "line 2: a quoted cell begins here and never ends"),
        ("a.tsv", "text\tlabel\nx\0\ty\nx\tz\n", "line 2: text holds a character that no text has"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n{"text": "a", "label": 2}', "line 1: text h"),
        ("a.jsonl", '{"text": "x", "label": [1]}\n', "line 1: label is '[\"1\"]', but a text or a"),
        ("a.jsonl", '[{"text": "x"}]\n', "line 1: expected one JSON object, such as"),
        ("a.json", '{\n"text": "x"}\n', "line 1: expected one JSON object, such as"),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(InputError) as caught:
        classified(path)
    assert str(caught.value).startswith(f"{path}, line ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("4", "label is '4', but a number from 1 to 3 or one of answer1, answer2, answer3 was exp"),
        ("0", "label is '0', but a number from 1 to 3 or one of"),
        ("smiled", "label is 'smiled', but a number from 1 to 3 or one of"),
        ("answer3", "label is 'answer3', but this answer is empty; fill it in, or correct the lab"),
        ("", "label is empty, but examples to train and validate on need one"),
    ],
)
def test_a_wrong_answer(tmp_path: Path, label: str, complaint: str) -> None:
    rows = [CHOICES[1], (*CHOICES[0][:-1], label)]
    path = write(tmp_path / "a.csv", "context,answer1,answer2,answer3,label", rows)
    with pytest.raises(InputError, match=f"a.csv, line 3: {complaint}"):
        own("--shape", "choice", "--train_file", path, "--valid_file", path)


def test_a_choice_of_one_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "context,answer1,answer2,label", [("a", "b", "", "1")])
    with pytest.raises(InputError, match="line 2: fewer than two answers have text; fill in"):
        own("--shape", "choice", "--train_file", path)


def test_a_grade_that_is_no_number_and_grades_that_are_all_equal(tmp_path: Path) -> None:
    for rows, complaint in (
        ([("a", "1"), ("b", "nan")], "line 3: label is 'nan', but --metric pearson needs a number"),
        ([("a", "1"), ("b", "1.0")], "line 2: label is '1' here and in all other training exam"),
    ):
        path = write(tmp_path / "a.csv", "text,label", rows)
        with pytest.raises(InputError, match=complaint):
            classified(path, "--metric", "pearson")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_label_that_training_lacks(tmp_path: Path, split: str) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    other = write(tmp_path / "b.csv", "text,label", [("x", "bad"), ("x", "Good")])
    expected = (
        "b.csv, line 3: label is 'Good', which no training example has; did you mean good? "
        "Expected one of bad, good."
    )
    with pytest.raises(InputError) as caught:
        classified(path, f"--{split}_file", other)
    assert str(caught.value) == f"{tmp_path}/{expected}"


def test_labels_of_a_part_of_the_test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    other = write(tmp_path / "b.csv", "text,label", [("x", "bad"), ("x", "")])
    with pytest.raises(InputError, match=r"b.csv, line 3: label is empty, but .*b.csv, line 2 has"):
        classified(path, "--test_file", other)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--positive: must be given with more than two labels; give one of bad, good, so-so"),
        (["--positive", "goof"], "no training example has this label; did you mean good? Give one"),
    ],
)
def test_the_positive_label(tmp_path: Path, words: list[str], complaint: str) -> None:
    path = write(tmp_path / "a.csv", "text,label", [*MOODS, ("x", "so-so"), ("y", "so-so")])
    with pytest.raises(InputError) as caught:
        classified(path, "--metric", "f1", *words)
    assert complaint in str(caught.value)


# Examples in Python


def in_memory(train: Any, *words: str, **splits: Any) -> Task:
    settings = parse(["--dataset", "own", *words])
    return find_task(settings, {"train": train, **splits})


CLASSIFICATION = ["--shape", "classification"]


def test_tuples_are_the_same_task_as_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label", MOODS)
    found, expected = in_memory(MOODS, *CLASSIFICATION), classified(path)
    assert (found.target, found.layout) == (expected.target, expected.layout)
    for one, two in zip(splits(found).train, splits(expected).train, strict=True):
        assert one[:2] == two[:2]
    both = splits(found).train + splits(found).valid
    assert {each.source for each in both} == {f"train, example {n}" for n in range(1, 11)}


def test_the_last_answer_of_a_test_example_is_not_taken_for_a_label() -> None:
    train = [("2+2", "3", "4", "5", 1), ("1+1", "2", "3", "1", 0)] * 4
    for example, label in ((("2+1", "3", "4", "1"), None), (("2+0", "1", "2", "3", 1), 1)):
        task = in_memory(train, "--shape", "choice", test=[example])
        (found,) = splits(task).predicted["own"]
        assert (found.texts, found.label) == (example[:4], label)


def test_labels_in_python() -> None:
    assert in_memory([("a", 1), ("b", np.int64(0))] * 2, *CLASSIFICATION).target == Classes(
        ("0", "1")
    )
    task = in_memory(
        [("a", "b", "c", 0), ("a", "b", "c", "d", 2)] * 2,
        *("--shape", "choice"),
        test=[("a", "b", "c")],
    )
    assert task.target == ChoiceIndex(("0", "1", "2"))
    assert {example.texts[3] for example in splits(task).train} == {"", "d"}
    assert splits(task).predicted["own"] == [Example(("a", "b", "c", ""), None, "test, example 1")]


@pytest.mark.parametrize(
    ("train", "words", "complaint"),
    [
        (["a", "b"], CLASSIFICATION, "train, example 1: must be texts and then a label (text, lab"),
        ([*MOODS, ("a",)], CLASSIFICATION, "train, example 11: must be texts and then a label"),
        ([*MOODS, (1, "a")], CLASSIFICATION, "train, example 11: must be texts and then a label"),
        ([*MOODS, ("a", None)], CLASSIFICATION, "train, example 11: must be texts and then a lab"),
        ([*MOODS, ("", "bad")], CLASSIFICATION, "train, example 11: text is empty, but text was"),
        (
            [("a", "b", "c", 2), ("a", "b", "c", 0)],
            ["--shape", "choice"],
            "train, example 1: label is '2', but a number from 0 to 1 was expected",
        ),
        (
            MOODS,
            [*CLASSIFICATION, "--train_file", "a.csv", "--label_column", "x"],
            "--train_file: is for examples in files; leave it out, or leave train out",
        ),
    ],
)
def test_mistakes_in_python(train: Any, words: list[str], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        in_memory(train, *words)
    assert complaint in str(caught.value)


# Files to predict


def test_a_file_to_predict(tmp_path: Path) -> None:
    record = TaskRecord(
        layout=SHAPES["classification"],
        target=Classes(("bad", "good")),
        n_ctx=77,
        columns=("review",),
        label_column="mood",
    )
    path = write(tmp_path / "a.csv", "text,review,mood", [("x", "y", "good"), ("x", "z", "bad")])
    assert read_to_predict(path, record)[:2] == ([("y",), ("z",)], [1, 0])
    assert read_to_predict(path, record, "text")[0] == [("x",), ("x",)]
    bare = write(tmp_path / "b.tsv", "review", [("y",)])
    assert read_to_predict(bare, record).labels is None
    with pytest.raises(InputError, match=r"b.tsv, line 1: there is no column label"):
        read_to_predict(bare, record, label_column="label")
    with pytest.raises(InputError, match="takes 1 columns, but these are 2; give them as text"):
        read_to_predict(path, record, "text,review")
    odd = write(tmp_path / "c.csv", "review,mood", [("y", "so")])
    with pytest.raises(InputError, match=r"c.csv, line 2: mood is 'so', which no training exampl"):
        read_to_predict(odd, record)
