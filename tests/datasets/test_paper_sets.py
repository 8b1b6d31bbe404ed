"""The readers of the paper's other data sets: their formats, and messages for wrong files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from task_files import FILES, MRPC_NAMES, mnli, passage, snli, snli_txt, tsv, write_task

from gpt1.commands import train
from gpt1.datasets import TASKS
from gpt1.runtime.errors import InputError
from gpt1.tasks import Choices, Classification, Entailment, Example, Similarity, Splits
from gpt1.text_utils.words import text_standardize


def read(folder: Path, name: str, changes: dict[str, str | bytes | None] | None = None) -> Splits:
    return TASKS[name].read(write_task(folder, name, changes))


def refusal(folder: Path, name: str, changes: dict[str, str | bytes | None] | None = None) -> str:
    """Return the message for a data set with some other contents."""
    with pytest.raises(InputError) as caught:
        read(folder, name, changes)
    return str(caught.value)


def brief(examples: list[Example]) -> list[tuple[tuple[str, ...], float | None]]:
    return [(texts, label) for texts, label, _ in examples]


# ------------------------------------------------------------------------------- what is read


EXPECTED: dict[str, list[tuple[tuple[str, ...], float]]] = {
    "sst2": [(("a fine film ",), 1), (('"a dull film ',), 0)],
    "cola": [(("The cat sat.",), 1), (('Sat "cat the.',), 0)],
    "mrpc": [
        (('" I came , " he said .', '" He came .'), 1),
        (("She left .", "She stayed ."), 0),
    ],
    "qqp": [(('What is ""it""?', "What is it?"), 1), (("Who?", '"When?'), 0)],
    "stsb": [
        (("A plane \\ takes off.", "It is."), 5.0),
        (("A plane \\ takes off.", "It is."), 3.8),
    ],
    "mnli": [(('A "premise', "A hypothesis"), label) for label in (1, 2, 0)],
    "snli": [((f'Premise "{i}".', f"Hypothesis {i}."), label) for i, label in enumerate((1, 2, 0))],
    "qnli": [(('"Who came?', "Ann came."), 0), (("Who left?", '"Ann came.'), 1)],
    "rte": [(("Ann came home.", "Ann came."), 0), (("Ann came home.", "Ann left."), 1)],
    "scitail": [(("Water is wet.", "Water wets."), 0), (("It is.", 'A "b.'), 1)],
}
"""The training examples that :data:`task_files.FILES` has for each data set."""


@pytest.mark.parametrize("name", EXPECTED)
def test_texts_and_labels_of_the_training_split(tmp_path: Path, name: str) -> None:
    splits = read(tmp_path, name)
    assert brief(splits.train) == EXPECTED[name]
    target = TASKS[name].target
    assert target.encode([label for _, label in EXPECTED[name]]).shape[0] == len(splits.train)


PREDICTED = {
    "sst2": ["SST-2", "SST-2.dev"],
    "cola": ["CoLA", "CoLA.dev"],
    "mrpc": ["MRPC", "MRPC.dev"],
    "qqp": ["QQP", "QQP.dev"],
    "stsb": ["STS-B", "STS-B.dev"],
    "mnli": ["MNLI-m", "MNLI-mm", "MNLI-m.dev", "MNLI-mm.dev", "AX"],
    "snli": ["SNLI", "SNLI.dev"],
    "qnli": ["QNLI", "QNLI.dev"],
    "rte": ["RTE", "RTE.dev"],
    "scitail": ["SciTail", "SciTail.dev"],
    "race": ["RACE", "RACE.dev"],
    "race-middle": ["RACE-middle", "RACE-middle.dev"],
    "race-high": ["RACE-high", "RACE-high.dev"],
}
LABELLED_TESTS = {"snli", "scitail", "race", "race-middle", "race-high"}


@pytest.mark.parametrize("name", PREDICTED)
def test_names_and_labels_of_the_predicted_splits(tmp_path: Path, name: str) -> None:
    splits = read(tmp_path, name)
    assert list(splits.predicted) == PREDICTED[name]
    developed = [stem for stem in splits.predicted if stem.endswith(".dev")]
    assert splits.predicted[developed[0]] is splits.valid
    for stem, examples in splits.predicted.items():
        known = stem in developed or name in LABELLED_TESTS
        assert examples
        assert {example.label is not None for example in examples} == {known}, stem


SHAPES = {
    "sst2": (Classification(), ["accuracy"], "01"),
    "cola": (Classification(), ["matthews", "accuracy"], "01"),
    "mrpc": (Similarity(), ["f1", "accuracy"], "01"),
    "qqp": (Similarity(), ["f1", "accuracy"], "01"),
    "stsb": (Similarity(), ["pearson", "spearman"], None),
    "mnli": (Entailment(), ["accuracy"], ("contradiction", "entailment", "neutral")),
    "snli": (Entailment(), ["accuracy"], ("contradiction", "entailment", "neutral")),
    "qnli": (Entailment(), ["accuracy"], ("entailment", "not_entailment")),
    "rte": (Entailment(), ["accuracy"], ("entailment", "not_entailment")),
    "scitail": (Entailment(), ["accuracy"], ("entails", "neutral")),
    "race": (Choices(has_question=True), ["accuracy"], "ABCD"),
    "race-middle": (Choices(has_question=True), ["accuracy"], "ABCD"),
    "race-high": (Choices(has_question=True), ["accuracy"], "ABCD"),
}
"""Layout, metrics and the names of the labels: the paper, sections 3.3 and 4.2, and GLUE's."""


@pytest.mark.parametrize("name", SHAPES)
def test_layout_metrics_and_labels_are_those_of_the_paper(name: str) -> None:
    task = TASKS[name]
    layout, metrics, labels = SHAPES[name]
    assert task.layout == layout
    assert [metric.title for metric in task.metrics] == metrics
    spelled = [task.target.spell(i) for i in range(len(labels or ()))]
    assert spelled == list(labels or ())
    outputs = 1 if name.startswith("race") else len(labels) if labels else 6
    assert task.target.n_outputs == outputs


def test_every_data_set_is_tested_here() -> None:
    assert TASKS.keys() - {"rocstories"} == SHAPES.keys() == FILES.keys() == PREDICTED.keys()


@pytest.mark.parametrize("name", FILES)
def test_every_source_names_the_file_and_ends_with_a_number(tmp_path: Path, name: str) -> None:
    splits = read(tmp_path, name)
    word = "question" if name.startswith("race") else "line"
    for examples in (splits.train, *splits.predicted.values()):
        sources = [example.source for example in examples]
        assert len(set(sources)) == len(sources)
        for source in sources:
            path, number = re.fullmatch(rf"(.*), {word} (\d+)", source).groups()  # type: ignore[union-attr]
            assert Path(path).is_file()
            assert Path(path).is_relative_to(tmp_path)
            if word == "line":  # The line of the file has the texts of the example.
                line = Path(path).read_text(encoding="utf-8").split("\n")[int(number) - 1]
                (example,) = (example for example in examples if example.source == source)
                assert all(json.dumps(t) in line or t in line for t in example.texts)


@pytest.mark.parametrize("name", FILES)
def test_the_folder_is_found_itself_and_in_a_directory_of_data_sets(
    tmp_path: Path, name: str
) -> None:
    task = TASKS[name]
    assert {task.title.removesuffix("-middle").removesuffix("-high"), name.partition("-")[0]} <= {
        *task.folders
    }
    for number, folder in enumerate(task.folders):
        root = tmp_path / str(number)
        write_task(root / folder, name)
        assert task.folder(root) == root / folder
        assert task.folder(root / folder) == root / folder
        assert task.missing(task.folder(root)) == []
        assert task.missing(root) != []


# ------------------------------------------------------------------------------- formats


def test_text_is_as_in_the_file_and_a_space_at_its_end_changes_nothing(tmp_path: Path) -> None:
    (text,) = read(tmp_path, "sst2").train[0].texts
    assert text == "a fine film "
    assert text_standardize(text) == text_standardize("a fine film")


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"race", "race-middle", "race-high"}))
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "not-ended"])
def test_line_ends_and_byte_order_mark_do_not_matter(
    tmp_path: Path, name: str, bom: bytes, end: str, ended: bool
) -> None:
    plain = read(tmp_path, name)
    changes: dict[str, str | bytes | None] = {}
    for file, text in FILES[name].items():
        lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
        changes[file] = bom + (end.join(lines) + end * ended).encode()
    assert read(tmp_path, name, changes) == plain


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_newline_ends_a_line(tmp_path: Path, mark: str) -> None:
    """Python's ``splitlines`` would end a line at each of these characters."""
    text = f"a fine{mark}film"
    rows = tsv(("sentence", "label"), (text, 1), ("bad", 0))
    assert brief(read(tmp_path, "sst2", {"train.tsv": rows}).train) == [((text,), 1), (("bad",), 0)]
    line = json.dumps({**snli("neutral", 1), "sentence1": text}, ensure_ascii=mark < " ")
    other = json.dumps(snli("entailment", 2))
    files = {"snli_1.0_train.jsonl": f"{line}\n{other}\n", "snli_1.0_dev.txt": snli_txt("neutral")}
    assert read(tmp_path, "snli", {**files}).train[0].texts[0] == text


def test_quotes_never_join_rows(tmp_path: Path) -> None:
    """Python's usual reader of CSV joins rows from a quote that opens a field to the next one."""
    texts = ['"open', "between", 'close"', '"a "" b"', '""']
    rows = tsv(("sentence", "label"), *((text, i % 2) for i, text in enumerate(texts)))
    found = brief(read(tmp_path, "sst2", {"train.tsv": rows}).train)
    assert found == [((text,), i % 2) for i, text in enumerate(texts)]


def test_the_order_of_columns_is_that_of_the_header(tmp_path: Path) -> None:
    rows = tsv(("label", "sentence", "more"), (1, "good", "x"), (0, "bad", "y"))
    assert brief(read(tmp_path, "sst2", {"train.tsv": rows}).train) == [
        (("good",), 1),
        (("bad",), 0),
    ]


def test_mnli_reads_labels_from_files_with_12_and_with_16_columns(tmp_path: Path) -> None:
    splits = read(tmp_path, "mnli")
    widths = {
        file: FILES["mnli"][file].partition("\n")[0].count("\t") + 1
        for file in ("train.tsv", "dev_matched.tsv", "test_matched.tsv")
    }
    assert widths == {"train.tsv": 12, "dev_matched.tsv": 16, "test_matched.tsv": 10}
    assert [example.label for example in splits.valid] == [1, 2, 0]
    assert splits.valid is splits.predicted["MNLI-m.dev"]
    assert [example.label for example in splits.predicted["MNLI-mm.dev"]] == [2]


@pytest.mark.parametrize("place", ["AX.tsv", "../diagnostic/diagnostic.tsv", "../AX/AX.tsv", None])
def test_mnli_finds_the_diagnostic_split_where_glue_has_it(
    tmp_path: Path, place: str | None
) -> None:
    changes: dict[str, str | bytes | None] = {"diagnostic.tsv": None}
    if place is not None:
        changes[place] = FILES["mnli"]["diagnostic.tsv"]
    splits = read(tmp_path / "MNLI", "mnli", changes)
    if place is None:
        assert "AX" not in splits.predicted
    else:
        assert brief(splits.predicted["AX"]) == [(("Some a.", "All a."), None)]


def published_mrpc() -> dict[str, str | bytes | None]:
    rows = [(i % 2, 10 + i, 20 + i, f'" first {i}', f"second {i}") for i in range(6)]
    return {
        "train.tsv": None,
        "dev.tsv": None,
        "msr_paraphrase_train.txt": tsv(MRPC_NAMES, *rows),
        "dev_ids.tsv": tsv((11, 21), (14, 24), (10, 25), (22, 12)),  # the last two: other pairs
        "msr_paraphrase_test.txt": tsv(MRPC_NAMES, (1, 5, 6, "a", "b"), (0, 7, 8, "c", "d")),
    }


def test_mrpc_as_published_is_split_by_the_ids_of_the_pairs(tmp_path: Path) -> None:
    splits = read(tmp_path, "mrpc", published_mrpc())
    numbers = [
        [int(example.texts[0].split()[-1]) for example in part]
        for part in (splits.train, splits.valid)
    ]
    assert numbers == [[0, 2, 3, 5], [1, 4]]
    assert [example.label for example in splits.train] == [0, 0, 1, 1]
    assert brief(splits.predicted["MRPC"]) == [(("a", "b"), 1), (("c", "d"), 0)]


def test_mrpc_as_published_may_have_the_test_file_of_glue(tmp_path: Path) -> None:
    splits = read(tmp_path, "mrpc", {**published_mrpc(), "msr_paraphrase_test.txt": None})
    assert brief(splits.predicted["MRPC"]) == [(('" Go .', "Go ."), None)]


STS_ROW = ("captions", "MSRvid", "2012", "1", "2.500", "One \\ cat.", "Two cats.")


@pytest.mark.parametrize("has_test", [False, True])
def test_stsb_as_published_has_tabs_and_seven_or_nine_fields(
    tmp_path: Path, has_test: bool
) -> None:
    content = tsv(STS_ROW, (*STS_ROW[:4], "0.0", "A, b.", '"C', "more", "terms"))
    changes: dict[str, str | bytes | None] = dict.fromkeys(FILES["stsb"], None)
    changes |= {"sts-train.csv": content, "sts-dev.csv": content}
    changes["sts-test.csv"] = content if has_test else None
    splits = read(tmp_path, "stsb", changes)
    expected = [(("One \\ cat.", "Two cats."), 2.5), (("A, b.", '"C'), 0.0)]
    assert brief(splits.train) == brief(splits.valid) == expected
    assert list(splits.predicted) == ["STS-B"] * has_test + ["STS-B.dev"]
    assert brief(next(iter(splits.predicted.values()))) == expected
    assert TASKS["stsb"].missing(tmp_path) == []


@pytest.mark.parametrize("train_form", ["jsonl", "txt"])
@pytest.mark.parametrize("dev_form", ["jsonl", "txt"])
def test_snli_is_read_from_both_forms(tmp_path: Path, train_form: str, dev_form: str) -> None:
    lines = "".join(json.dumps(snli(x, i)) + "\n" for i, x in enumerate(("neutral", "entailment")))
    forms = {"jsonl": lines, "txt": snli_txt("neutral", "entailment")}
    changes: dict[str, str | bytes | None] = dict.fromkeys(FILES["snli"], None)
    for split, form in (("train", train_form), ("dev", dev_form), ("test", "jsonl")):
        changes[f"snli_1.0_{split}.{form}"] = forms[form]
    splits = read(tmp_path, "snli", changes)
    expected = [(('Premise "0".', "Hypothesis 0."), 2), (('Premise "1".', "Hypothesis 1."), 1)]
    assert brief(splits.train) == brief(splits.valid) == expected
    assert splits.notes == ()


def test_snli_leaves_out_pairs_without_a_majority_and_says_how_many(tmp_path: Path) -> None:
    splits = read(tmp_path, "snli")
    assert [len(part) for part in (splits.train, splits.valid, splits.predicted["SNLI"])] == [
        *(3, 3, 1)
    ]
    (note,) = splits.notes
    assert note.startswith("SNLI: 3 pairs are left out because their label is '-'")


def test_snli_rows_may_lack_the_last_annotators(tmp_path: Path) -> None:
    short = "\n".join(line.rstrip("\t") for line in snli_txt("neutral", "entailment").split("\n"))
    assert len(read(tmp_path, "snli", {"snli_1.0_dev.txt": short}).valid) == 2


def test_qqp_leaves_out_damaged_rows_and_counts_them(tmp_path: Path) -> None:
    damaged = FILES["qqp"]["train.tsv"] + "3\t4\t5\tHow?\n6\t7\t8\tWhy?\t\t0\n\n"
    splits = read(tmp_path, "qqp", {"train.tsv": damaged})
    assert brief(splits.train) == EXPECTED["qqp"]
    (note,) = splits.notes
    assert note.startswith("QQP: 3 rows with too few fields or an empty question are left out")
    assert note.endswith("train.tsv, line 4")
    assert read(tmp_path, "qqp").notes == ()


@pytest.mark.parametrize("row", ["1\tWhy?", "1\tWhy?\t"])
def test_qqps_test_split_must_be_complete(tmp_path: Path, row: str) -> None:
    """A submission has a line for each row; without one, all later lines would be wrong."""
    message = refusal(tmp_path, "qqp", {"test.tsv": FILES["qqp"]["test.tsv"] + row + "\n"})
    assert message.startswith(f"{tmp_path}/test.tsv, line 3: ")


def test_race_reads_files_by_number_and_keeps_the_newlines_of_articles(tmp_path: Path) -> None:
    splits = read(tmp_path, "race")
    sources = [Path(example.source).relative_to(tmp_path).as_posix() for example in splits.train]
    assert sources == [
        f"train/{level}/{file}.txt, question {number}"
        for level in ("middle", "high")
        for file, number in ((9, 1), (9, 2), (10, 1))
    ]
    assert [example.label for example in splits.train] == [0, 3, 1] * 2
    article = 'He said "no".\nThen he left.'
    assert splits.train[1].texts == (article, "Question 1 is  _  .", *(f"1 {x}" for x in "abcd"))
    assert "train/high" not in str(read(tmp_path, "race-middle").train)
    assert "train/middle" not in str(read(tmp_path, "race-high").train)


def test_race_ignores_files_that_hold_no_article(tmp_path: Path) -> None:
    others: dict[str, str | bytes | None] = {"train/middle/._9.txt": b"\0", "dev/middle/a.md": "x"}
    assert len(read(tmp_path, "race-middle", others).train) == 3


# ------------------------------------------------------------------------------- bad files


def cells(name: str, file: str, line: int, old: str, new: str) -> dict[str, str | bytes | None]:
    """Return a file of a data set with a change in one line."""
    lines = FILES[name][file].split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return {file: "\n".join(lines)}


def race(**values: object) -> dict[str, str | bytes | None]:
    return {"dev/middle/1.txt": json.dumps({**json.loads(passage("AB")), **values})}


OPTIONS = [["a", "b", "c", "d"]]
BAD: dict[str, tuple[str, dict[str, str | bytes | None], str, str]] = {
    "too few fields": (
        "rte",
        cells("rte", "dev.tsv", 3, "\tnot_entailment", ""),
        "dev.tsv, line 3",
        "the row has 3 fields, but 4 were expected (index, sentence1, sentence2, label), with tabs",
    ),
    "too many fields": ("cola", cells("cola", "dev.tsv", 1, "cat", "\t"), "dev.tsv, line 1", "5 f"),
    "too many fields for QQP": (
        *("qqp", cells("qqp", "train.tsv", 2, "What", "\t"), "train.tsv, line 2"),
        "the row has 7 fields, but 6 were expected",
    ),
    "six fields in sts-dev.csv": (
        "stsb",
        {
            **dict.fromkeys(FILES["stsb"], None),
            "sts-train.csv": tsv(STS_ROW, (*STS_ROW[:4], 1, "a", "b")),
            "sts-dev.csv": tsv(STS_ROW, STS_ROW[1:]),
        },
        "sts-dev.csv, line 2",
        "the row has 6 fields, but 7 to 9 were expected",
    ),
    "blank line": (
        *("sst2", {"dev.tsv": "sentence\tlabel\ngood\t1\n\nbad\t0\n"}, "dev.tsv, line 3"),
        "the line is blank, but a row was expected; delete the line",
    ),
    "unknown label": (
        *("sst2", cells("sst2", "train.tsv", 3, "\t0", "\t2"), "train.tsv, line 3"),
        "the label is '2', but '0' or '1' was expected",
    ),
    "unknown word for a label": (
        *(
            "mnli",
            cells("mnli", "dev_matched.tsv", 4, "\tcontradiction", "\t-"),
        ),
        "dev_matched.tsv, line 4",
        "the label is '-', but 'contradiction' or 'entailment' or 'neutral' was expected",
    ),
    "no number": (
        *("stsb", cells("stsb", "train.tsv", 2, "5.000", "high"), "train.tsv, line 2"),
        "the grade is 'high', but a number from 0 to 5 was expected",
    ),
    "grade above 5": (
        *("stsb", cells("stsb", "dev.tsv", 3, "2.75", "5.01"), "dev.tsv, line 3"),
        "the grade is '5.01', but a number from 0 to 5",
    ),
    "grade below 0": (
        *("stsb", cells("stsb", "dev.tsv", 3, "2.75", "-0.1"), "dev.tsv, line 3"),
        "the grade is '-0.1'",
    ),
    "NaN": ("stsb", cells("stsb", "dev.tsv", 3, "2.75", "nan"), "dev.tsv, line 3", "'nan'"),
    "empty text": (
        *("sst2", cells("sst2", "dev.tsv", 2, "good", ""), "dev.tsv, line 2"),
        "the text is empty, but text was expected; fill it in or delete the row",
    ),
    "blank second text": (
        *("rte", cells("rte", "test.tsv", 2, "Ann moved.", " \u2028"), "test.tsv, line 2"),
        "text 2 is empty",
    ),
    "header of another set": (
        *("sst2", {"train.tsv": FILES["qnli"]["train.tsv"]}, "train.tsv, line 2"),
        "the label is 'entailment', but '0' or '1' was expected",
    ),
    "columns of another set": (
        *("rte", {"train.tsv": FILES["qnli"]["train.tsv"]}, "train.tsv, line 1"),
        "found the columns 'index', 'question', 'sentence', 'label', but a header with sentence1, "
        "sentence2 was expected",
    ),
    "no header": ("sst2", {"dev.tsv": "good\t1\n"}, "dev.tsv, line 1", "found the columns 'good'"),
    "only a header": (
        *("sst2", {"dev.tsv": "sentence\tlabel\n"}, "dev.tsv, line 2"),
        "the file ends after its header, but at least one row was expected; get a complete copy",
    ),
    "empty": ("sst2", {"dev.tsv": ""}, "dev.tsv, line 1", "found a blank line or none"),
    "empty without header": ("cola", {"dev.tsv": ""}, "dev.tsv, line 1", "the file is empty"),
    "empty JSON lines": (
        *("snli", {"snli_1.0_train.jsonl": "\ufeff"}, "snli_1.0_train.jsonl, line 1"),
        "the file is empty",
    ),
    "one class": (
        *("sst2", {"train.tsv": "sentence\tlabel\ngood\t1\nfine\t1\n"}, "train.tsv"),
        "every label is 1, but training needs at least two different ones",
    ),
    "one grade": (
        *("stsb", cells("stsb", "train.tsv", 3, "3.8", "5.0"), "train.tsv"),
        "every label is 5.0",
    ),
    "a class of the validation split alone": (
        *("mnli", {"train.tsv": mnli("entailment", "neutral")}, "dev_matched.tsv, line 4"),
        "the label contradiction is not in the training split (train.tsv)",
    ),
    "no whole row": (
        *(
            "qqp",
            {"train.tsv": FILES["qqp"]["train.tsv"].replace("\t1\n", "\n").replace("\t0\n", "\n")},
        ),
        *("train.tsv", "none of the rows can be used"),
    ),
    "no majorities": (
        *("snli", {"snli_1.0_test.txt": snli_txt("-", "-")}, "snli_1.0_test.txt"),
        "none of the rows can be used",
    ),
    "NUL": (
        *("sst2", cells("sst2", "test.tsv", 3, "well", "we\0ll"), "test.tsv, line 3"),
        "there is a NUL character",
    ),
    "Latin-1": (
        *("sst2", {"dev.tsv": b"sentence\tlabel\ncaf\xe9\t1\n"}, "dev.tsv, line 2"),
        "must be UTF-8 text, but byte 0xe9 is not; save the file as UTF-8",
    ),
    "no JSON": (
        *("snli", {"snli_1.0_train.jsonl": "{}}\n"}, "snli_1.0_train.jsonl, line 1"),
        "expected one JSON object",
    ),
    "no hypothesis": (
        *("snli", {"snli_1.0_train.jsonl": '{"sentence1": "a", "gold_label": "-"}\n'}),
        *("snli_1.0_train.jsonl, line 1", "expected sentence2 to be a text, found nothing"),
    ),
    "hypothesis is a number": (
        "snli",
        {"snli_1.0_train.jsonl": '{"sentence1": "a", "sentence2": 3, "gold_label": "-"}\n'},
        *("snli_1.0_train.jsonl, line 1", "expected sentence2 to be a text, found '3.0'"),
    ),
    "NUL in JSON": (
        "snli",
        {"snli_1.0_train.jsonl": json.dumps({**snli("neutral", 1), "sentence2": "a\0"})},
        *("snli_1.0_train.jsonl, line 1", "text 2 has a NUL character"),
    ),
    "half a surrogate pair": (
        "snli",
        {"snli_1.0_train.jsonl": json.dumps({**snli("neutral", 1), "sentence1": "a\ud83d"})},
        *("snli_1.0_train.jsonl, line 1", "text 1 has a NUL character or half of a surrogate pair"),
    ),
    "broken passage": (
        *("race-middle", {"dev/middle/1.txt": passage("A")[:-9]}, "dev/middle/1.txt"),
        "expected one JSON object",
    ),
    "three options": (
        *("race-middle", race(options=[*OPTIONS, OPTIONS[0][:3]]), "dev/middle/1.txt, question 2"),
        "the number of options is 3, but 4 were expected",
    ),
    "letter E": (
        *("race-middle", race(answers=["A", "E"]), "dev/middle/1.txt, question 2"),
        "the answer is 'E', but a letter from A to D was expected",
    ),
    "too few answers": (
        *("race-middle", race(answers=["A"]), "dev/middle/1.txt"),
        "there are 2 questions, 2 lists of options and 1 answers, but as many of each",
    ),
    "no questions": (
        *("race-middle", race(answers=[], options=[], questions=[]), "dev/middle/1.txt"),
        "there are 0 questions",
    ),
    "empty article": ("race-middle", race(article=" \n"), "dev/middle/1.txt", "article is empty"),
    "empty question": (
        *("race-middle", race(questions=["a", ""]), "dev/middle/1.txt, question 2"),
        "the question is empty",
    ),
    "empty option": (
        *("race-middle", race(options=[["a", "b", "", "d"], *OPTIONS])),
        *("dev/middle/1.txt, question 1", "option C is empty"),
    ),
    "options of another kind": (
        *("race-middle", race(options=["abcd", "abcd"]), "dev/middle/1.txt"),
        "expected options to be a list of lists of texts",
    ),
    "no articles": (
        *("race-middle", {"dev/middle/1.txt": None, "dev/middle/1.json": "x"}, "dev/middle"),
        "there are no .txt files, but at least one article was expected",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_names_the_place_and_what_was_expected(tmp_path: Path, case: str) -> None:
    name, changes, place, expected = BAD[case]
    message = refusal(tmp_path, name, changes)
    assert message.startswith(f"{tmp_path}/{place}: ")
    assert expected in message
    assert "\n" not in message
    assert re.search("; (get|fill|delete|save|put)|; .* copy", message), "no remedy"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    """A run finds this earlier; whoever calls a reader from Python sees these messages."""
    needed = [file for file in FILES[name] if file != "diagnostic.tsv" and "train/" not in file]
    for number, file in enumerate(needed):
        message = refusal(tmp_path / str(number), name, {file: None})
        assert message.startswith(str(tmp_path / str(number)))


# ------------------------------------------------------------------------------- missing files


ADDRESSES = {
    **dict.fromkeys(
        ["sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"],
        "https://gluebenchmark.com/tasks",
    ),
    "snli": "https://nlp.stanford.edu/projects/snli/",
    "scitail": "https://allenai.org/data/scitail",
    **dict.fromkeys(
        ["race", "race-middle", "race-high"], "https://www.cs.cmu.edu/~glai1/data/race/"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_without_files_one_message_names_them_and_where_to_ask(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dataset", name]) == 2
    _, message, model = capsys.readouterr().err.splitlines()
    assert message.startswith("  data/ has no ")
    assert all(f"'{file}'" in message for file in TASKS[name].files[0])
    assert ADDRESSES[name] in message
    assert "--data_dir" in message
    assert model.startswith("  model/ has no pretrained model")
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "SST-2", "sst2", {"dev.tsv": None})
    assert train.main(["--dataset", "sst2", "--data_dir", str(tmp_path)]) == 2
    message = next(line for line in capsys.readouterr().err.splitlines() if "has no '" in line)
    assert message.strip().startswith(f"{tmp_path}/SST-2/ has no 'dev.tsv': get SST-2 at https://")


def test_the_missing_files_are_those_of_the_form_that_is_nearly_complete(tmp_path: Path) -> None:
    task = TASKS["mrpc"]
    assert task.missing(tmp_path) == ["train.tsv", "dev.tsv", "test.tsv"]
    (tmp_path / "msr_paraphrase_train.txt").touch()
    (tmp_path / "dev_ids.tsv").touch()
    assert task.missing(tmp_path) == ["msr_paraphrase_test.txt"]
    assert TASKS["stsb"].missing(tmp_path) == ["train.tsv", "dev.tsv", "test.tsv"]
    (tmp_path / "sts-dev.csv").touch()
    assert TASKS["stsb"].missing(tmp_path) == ["sts-train.csv"]


# ------------------------------------------------------------------------------- the real files


COUNTS = {
    "sst2": ([67349, 872, 1821], {1: 37569, 0: 29780}, {1: 444, 0: 428}),
    "cola": ([8551, 1043, 1063], {1: 6023, 0: 2528}, {1: 721, 0: 322}),
    "mrpc": ([3668, 408, 1725], {1: 2474, 0: 1194}, {1: 279, 0: 129}),
    "rte": ([2490, 277, 3000], {0: 1249, 1: 1241}, {0: 146, 1: 131}),
    "race-middle": (
        [25421, 1436, 1436],
        {0: 5445, 1: 6705, 2: 7006, 3: 6265},
        {0: 311, 1: 384, 2: 386, 3: 355},
    ),
}
"""Numbers of examples of the three splits; labels of the training and the validation split."""


@pytest.mark.parametrize("name", COUNTS)
def test_rows_and_labels_of_complete_sets(tasks_dir: Path, name: str) -> None:
    sizes, train_labels, valid_labels = COUNTS[name]
    task = TASKS[name]
    splits = task.read(task.folder(tasks_dir))
    test = next(iter(splits.predicted.values()))
    assert [len(part) for part in (splits.train, splits.valid, test)] == sizes
    assert Counter(example.label for example in splits.train) == train_labels
    assert Counter(example.label for example in splits.valid) == valid_labels


def test_real_stsb_is_the_same_in_both_forms(tasks_dir: Path) -> None:
    task = TASKS["stsb"]
    glue = task.read(task.folder(tasks_dir))
    published = task.read(task.folder(tasks_dir / "stsb/stsbenchmark"))
    assert [len(glue.train), len(glue.valid), len(glue.predicted["STS-B"])] == [5749, 1500, 1379]
    assert [len(published.train), len(published.valid)] == [5749, 1500]
    assert [example.label for example in glue.train] == [e.label for e in published.train]
    texts = [
        [text.strip() for example in splits.train for text in example.texts]
        for splits in (glue, published)
    ]
    differing = [(one, other) for one, other in zip(*texts, strict=True) if one != other]
    assert [one.replace("\\", "") == other for one, other in differing] == [True]


def test_real_mrpc_as_published_is_split_as_glue_splits_it(tasks_dir: Path, tmp_path: Path) -> None:
    folder = TASKS["mrpc"].folder(tasks_dir)
    for name in ("msr_paraphrase_train.txt", "dev_ids.tsv", "test.tsv"):
        (tmp_path / name).symlink_to(folder / name)
    published, glue = TASKS["mrpc"].read(tmp_path), TASKS["mrpc"].read(folder)
    assert [len(published.train), len(published.valid)] == [3668, 408]
    assert sorted(brief(published.train)) == sorted(brief(glue.train))
    assert sorted(brief(published.valid)) == sorted(brief(glue.valid))


def test_real_snli_leaves_out_16_pairs(tasks_dir: Path) -> None:
    task = TASKS["snli"]
    splits = task.read(task.folder(tasks_dir))
    assert len(splits.valid) == 1289 - 16
    assert splits.notes[0].startswith("SNLI: 16 pairs ")


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [("qnli", "train.tsv", 32), ("qqp", "dev.tsv", 32), ("mnli", "train.tsv", 48)],
)
def test_real_samples_can_be_read(
    tasks_dir: Path, tmp_path: Path, name: str, file: str, rows: int
) -> None:
    """The other files of these sets are made up; only samples of the real ones are at hand."""
    real = (tasks_dir / name / file).read_bytes()
    splits = read(tmp_path, name, {file: real})
    assert len(splits.train if file == "train.tsv" else splits.valid) == rows
    assert splits.notes == ()
