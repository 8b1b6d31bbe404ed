"""The reader of cloze CSVs: accepted files, messages for others, and the original's split."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt1.datasets import TASKS
from gpt1.datasets.story_cloze import (
    COLUMNS,
    TEST_CSV,
    VALIDATION_CSV,
    Cloze,
    missing_csvs,
    read_cloze,
    rocstories,
)
from gpt1.runtime.errors import InputError
from gpt1.settings import groups

HEADER = ",".join(COLUMNS)
ROW = "a-1,One.,Two.,Three.,Four.,Right end.,Wrong end.,1"
FUZZ = settings(max_examples=5 * settings.default.max_examples)  # an example takes little time


def rows(count: int) -> list[list[str]]:
    """Return rows that differ in every cell, with labels in an irregular order."""
    return [
        [f"id-{i}", *(f"Row {i}, part {j}." for j in range(1, 7)), str(1 + (i * i // 3) % 2)]
        for i in range(count)
    ]


def write(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows(count)])


def put(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def csv_path(tmp_path: Path) -> Path:
    return tmp_path / "stories.csv"


def test_reads_sentences_endings_and_labels(csv_path: Path) -> None:
    put(csv_path, f'{HEADER}\n{ROW}\na-2,"I, too.",B.,"Say ""hi"".",D., E ,"F\nf",2\n')
    cloze = read_cloze(csv_path)
    assert cloze == Cloze(
        ["One. Two. Three. Four.", 'I, too. B. Say "hi". D.'],
        ["Right end.", " E "],
        ["Wrong end.", "F\nf"],
        [0, 1],
    )
    stories, endings1, endings2, labels = cloze
    assert len(stories) == len(endings1) == len(endings2) == len(labels)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not-ended"])
def test_line_ends_and_byte_order_mark_do_not_matter(
    csv_path: Path, bom: bytes, end: str, last: bool
) -> None:
    text = f'{HEADER}\n{ROW}\nb,"Two\nlines.",Zw\u00f6lf\u2028.,C.,D.,E.,F.,2' + "\n" * last
    put(csv_path, bom + text.replace("\n", end).encode())
    cloze = read_cloze(csv_path)
    assert cloze.stories[1] == "Two\nlines. Zw\u00f6lf\u2028. C. D."
    assert cloze.labels == [0, 1]


BAD_CONTENTS: dict[str, tuple[str | bytes, int, str]] = {
    "empty": ("", 1, "empty"),
    "only a mark": (b"\xef\xbb\xbf", 1, "empty"),
    "no header": (f"{ROW}\n{ROW}\n", 1, "all of other names; make the first line InputStoryid,"),
    "blank first line": (f"\n{ROW}\n", 1, "found a blank line; make the first line"),
    "semicolons": (
        f"{HEADER}\n{ROW}\n".replace(",", ";"),
        1,
        "the columns are separated by semicolons, but commas were expected; save the file again",
    ),
    "missing column": (
        HEADER.replace(",InputSentence3", "") + "\n" + ROW.replace(",Three.", ""),
        1,
        "lacks InputSentence3",
    ),
    "other order": (
        ",".join([*COLUMNS[1:], COLUMNS[0]]) + f"\n{ROW}\n",
        1,
        "other columns or another order",
    ),
    "extra column": (f"{HEADER},More\n{ROW},x\n", 1, "other columns"),
    "no rows": (f"{HEADER}\n", 2, "at least one story"),
    "short row": (f"{HEADER}\n{ROW}\na,b,c\n", 3, "3 cells"),
    "long row": (f"{HEADER}\n{ROW}\n{ROW},x\n", 3, "9 cells"),
    "blank line": (f"{HEADER}\n{ROW}\n\n{ROW}\n", 3, "blank"),
    "label 0": (f"{HEADER}\n{ROW[:-1]}0\n", 2, "1 or 2"),
    "label 3": (f"{HEADER}\n{ROW[:-1]}3\n", 2, "1 or 2"),
    "label 1.0": (f"{HEADER}\n{ROW}.0\n", 2, "1 or 2"),
    "label in Arabic digits": (f"{HEADER}\n{ROW[:-1]}\u0661\n", 2, "1 or 2"),
    "empty sentence": (f"{HEADER}\n{ROW}\n{ROW.replace('Two.', '')}\n", 3, "InputSentence2"),
    "blank ending": (
        f"{HEADER}\n{ROW.replace('Wrong end.', ' ')}\n",
        2,
        "RandomFifthSentenceQuiz2",
    ),
    "empty label": (f"{HEADER}\n{ROW[:-1]}\n", 2, "AnswerRightEnding is empty"),
    "open quote": (f'{HEADER}\n{ROW}\n"b,c,d\n{ROW}\n{ROW}\n', 3, "never ends"),
    "text after a quote": (f'{HEADER}\n"a"b,c\n', 2, "double quotes"),
    "NUL": (f"{HEADER}\n{ROW}\n{ROW}\0\n", 3, "NUL"),
    "giant cell": (f"{HEADER}\n{ROW}\n{'x' * 200_000}\n", 3, "longer than"),
    "Latin-1": (f"{HEADER}\n{ROW}\n".encode() + b"caf\xe9\n", 3, "UTF-8"),
    "UTF-16": (f"{HEADER}\n{ROW}\n".encode("utf-16"), 1, "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_malformed_file_names_file_line_and_expectation(csv_path: Path, name: str) -> None:
    content, line, expected = BAD_CONTENTS[name]
    with pytest.raises(InputError) as caught:
        read_cloze(put(csv_path, content))
    message = str(caught.value)
    assert f"{csv_path}, line" in message
    assert message.split(", line", 1)[1].lstrip("s ").startswith(str(line)), message
    assert expected in message
    assert "\n" not in message


def test_line_numbers_count_lines_not_rows(csv_path: Path) -> None:
    put(csv_path, f'{HEADER}\nb,"Two\nor three\nlines.",B.,C.,D.,E.,F.,2\nshort,row\n')
    with pytest.raises(InputError, match="line 5: the row has 2 cells"):
        read_cloze(csv_path)


def test_a_row_of_several_lines_is_named_by_its_first_and_last(csv_path: Path) -> None:
    put(csv_path, f'{HEADER}\n{ROW}\n"b,c,d\n{ROW}\n{ROW}\n')
    with pytest.raises(InputError, match="lines 3 to 5: a quoted cell begins here"):
        read_cloze(csv_path)


def test_missing_file_and_directory_are_input_errors(csv_path: Path, tmp_path: Path) -> None:
    for path in (csv_path, tmp_path):
        with pytest.raises(InputError, match="cannot be read") as caught:
            read_cloze(path)
        assert str(path) in str(caught.value)


def read_or_refuse(path: Path, data: bytes) -> bool:
    """Return whether ``data`` can be read; if not, check that an InputError names a line."""
    try:
        cloze = read_cloze(put(path, data))
    except InputError as error:
        message = str(error)
    else:
        assert len({len(column) for column in cloze}) == 1
        assert cloze.labels
        assert set(cloze.labels) <= {0, 1}
        assert all(text.strip() for column in cloze[:3] for text in column)
        return True
    assert f"{path}, line" in message
    return False


PIECES = st.sampled_from(
    [HEADER, ROW, "\n", "\r", "\r\n", ",", '"', '""', "1", "2", "\0", "\ufeff"]
)


@FUZZ
@given(st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
def test_fuzz_pieces_of_csv(tmp_path: Path, text: str) -> None:
    read_or_refuse(tmp_path / "fuzz.csv", text.encode("utf-8"))


@FUZZ
@given(st.binary(max_size=60), st.booleans())
def test_fuzz_bytes(tmp_path: Path, data: bytes, headed: bool) -> None:
    read_or_refuse(tmp_path / "fuzz.csv", HEADER.encode() + b"\n" + data if headed else data)


def test_fuzz_mutations_of_a_valid_file(tmp_path: Path) -> None:
    valid = (f"{HEADER}\r\n" + f'{ROW}\r\nb,"Q, ""q""\n.",B.,C.,D.,E.,F.,2\r\n' * 2).encode()
    generator = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        data = bytearray(valid)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(data))
            length = generator.choice([0, 1, 1, 5])
            noise = generator.choice([b"", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"2", b"\xc3"])
            data[at : at + length] = noise
        outcomes.add(read_or_refuse(tmp_path / "fuzz.csv", bytes(data)))
    assert outcomes == {True, False}


def test_split_is_scikit_learns_in_its_order(tmp_path: Path) -> None:
    from sklearn.model_selection import train_test_split

    write(tmp_path / VALIDATION_CSV, 1871)
    write(tmp_path / TEST_CSV, 5)
    train, valid, test = rocstories(tmp_path)
    columns = read_cloze(tmp_path / VALIDATION_CSV)
    split = train_test_split(*columns, test_size=374, random_state=3535999445)
    assert train == Cloze(*split[0::2])
    assert valid == Cloze(*split[1::2])
    assert (len(train.labels), len(valid.labels)) == (1497, 374)
    assert test == read_cloze(tmp_path / TEST_CSV)


@pytest.mark.parametrize(("count", "n_valid"), [(2, 1), (3, 1), (10, 2), (480, 96), (3742, 748)])
def test_other_row_counts_keep_the_proportion(tmp_path: Path, count: int, n_valid: int) -> None:
    write(tmp_path / VALIDATION_CSV, count)
    write(tmp_path / TEST_CSV, 1)
    train, valid, _ = rocstories(tmp_path)
    assert (len(train.labels), len(valid.labels)) == (count - n_valid, n_valid)
    assert not set(train.stories) & set(valid.stories)


def test_own_sizes_are_taken_exactly(tmp_path: Path) -> None:
    write(tmp_path / VALIDATION_CSV, 20)
    write(tmp_path / TEST_CSV, 1)
    train, valid, _ = rocstories(tmp_path, n_train=13, n_valid=7)
    assert (len(train.labels), len(valid.labels)) == (13, 7)


def test_one_story_cannot_be_split(tmp_path: Path) -> None:
    write(tmp_path / VALIDATION_CSV, 1)
    write(tmp_path / TEST_CSV, 1)
    with pytest.raises(InputError, match="at least 2 were expected"):
        rocstories(tmp_path)


def test_sizes_below_one_are_refused(tmp_path: Path) -> None:
    write(tmp_path / VALIDATION_CSV, 4)
    write(tmp_path / TEST_CSV, 1)
    with pytest.raises(InputError, match="n_valid=0: both must be at least 1"):
        rocstories(tmp_path, n_train=4, n_valid=0)


@pytest.mark.parametrize("present", [[], [VALIDATION_CSV], [TEST_CSV]])
def test_missing_csvs_are_all_named_with_the_remedy(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        write(tmp_path / name, 3)
    absent = [name for name in (VALIDATION_CSV, TEST_CSV) if name not in present]
    with pytest.raises(InputError) as caught:
        rocstories(tmp_path)
    message = str(caught.value)
    assert [name for name in (VALIDATION_CSV, TEST_CSV) if f'"{name}"' in message] == absent
    assert "https://cs.rochester.edu/nlp/rocstories/" in message
    assert str(tmp_path) in message
    assert [path.name for path in missing_csvs(tmp_path)] == absent


def test_missing_directory_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="request"):
        rocstories(tmp_path / "nowhere")


def test_real_splits_have_the_originals_labels(rocstories_dir: Path, references_dir: Path) -> None:
    train, valid, test = rocstories(rocstories_dir)
    with np.load(references_dir / "rocstories_run.npz") as reference:
        np.testing.assert_array_equal(train.labels, reference["trY"])
        np.testing.assert_array_equal(valid.labels, reference["vaY"])
    assert len(test.labels) == 1871


def test_every_data_set_is_a_choice_of_the_flag() -> None:
    """Settings know no data set; their list of names must be that of the tasks."""
    assert (*TASKS, groups.OWN) == groups.DATASETS
    assert all(name == task.name for name, task in TASKS.items())
