"""The stories of a user: both forms of CSV, and what is refused, with its line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from gpt1.datasets.own_stories import Stories, read_stories
from gpt1.datasets.story_cloze import TEST_CSV, read_cloze
from gpt1.runtime.errors import InputError

SIMPLE = "story,ending1,ending2,label\nAnna ran.,Anna won.,Anna cried.,1\nBen lost.,He won.,No.,2\n"


@pytest.fixture(scope="module")
def cloze_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny(tmp_path_factory.mktemp("task")).data_dir / TEST_CSV


def test_cloze_and_simple_form_are_the_same_stories(tmp_path: Path, cloze_csv: Path) -> None:
    test = read_cloze(cloze_csv)
    assert read_stories(cloze_csv) == Stories(*test)
    path = tmp_path / "simple.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "ending2", "ending1", "story"])  # The header decides the order.
        rows.writerows([y + 1, two, one, story] for story, one, two, y in zip(*test, strict=True))
    assert read_stories(path) == Stories(*test)


@pytest.mark.parametrize("dropped", [{0}, {7}, {0, 7}])
def test_columns_of_the_cloze_form_that_may_be_missing(
    tmp_path: Path, cloze_csv: Path, dropped: set[int]
) -> None:
    test, path = read_cloze(cloze_csv), tmp_path / "part.csv"
    with open(cloze_csv, newline="") as file, open(path, "w", newline="") as out:
        for cells in csv.reader(file):
            csv.writer(out).writerow([cell for i, cell in enumerate(cells) if i not in dropped])
    labels = None if 7 in dropped else test.labels
    assert read_stories(path) == Stories(*test[:3], labels)


@pytest.mark.parametrize("empty", ["", "  "])
def test_labels_may_be_empty_throughout(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(SIMPLE.replace(",1\n", f",{empty}\n").replace(",2\n", f",{empty}\n"))
    found = read_stories(path)
    assert found.labels is None
    assert found.stories == ["Anna ran.", "Ben lost."]
    path.write_text("\ufeff" + SIMPLE.replace("\n", "\r\n"))
    assert read_stories(path) == found._replace(labels=[0, 1])


def changed(old: str, new: str) -> str:
    assert old in SIMPLE
    return SIMPLE.replace(old, new)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: the file is empty or begins blank; make the first line story,ending1,ending"),
        ("\n" + SIMPLE, "line 1: the file is empty or begins blank"),
        ("story,ending1,ending2\n", "line 2: the file ends after its header"),
        (
            "Anna ran.,Anna won.,Anna cried.\n",
            "line 1: found the columns 'Anna ran.', 'Anna won.', 'Anna cried.', all of other "
            "names; make the first line story,ending1,ending2, with label",
        ),
        (
            "id,context,right,wrong,by\n",
            "line 1: found the columns 'id', 'context', 'right', 'wrong' and 1 more, all of other "
            "names; make the first line story,ending1,ending2, with label",
        ),
        (
            SIMPLE.replace(",", ";"),
            "line 1: the columns are separated by semicolons, but commas were expected; save the",
        ),
        (SIMPLE.replace(",", "\t"), "line 1: the columns are separated by tabs, but commas"),
        (changed(",ending2", ""), "line 1: the header lacks ending2; make the first line"),
        (changed("ending2,label", "ending1,label"), "the column 'ending1' is there twice"),
        (changed("label", "lable"), "line 1: there is no column 'lable'; make the first line"),
        (changed("label", "AnswerRightEnding"), "line 1: there is no column 'AnswerRightEnding'"),
        (changed("story", "InputSentence1"), "line 1: the header lacks InputSentence2, Inp"),
        (changed("Anna cried.", ""), "line 2: ending2 is empty, but text was expected"),
        (changed("Anna won.", " "), "line 2: ending1 is empty"),
        (changed("Ben lost.", ""), "line 3: story is empty"),
        (changed(",He won.", ""), "line 3: the row has 3 cells, but 4 were expected"),
        (changed("He won.", "He, won."), "line 3: the row has 5 cells, but 4 were expected"),
        (changed("Ben", "\nBen"), "line 3: the line is blank"),
        (changed(",2\n", ",0\n"), "line 3: label is '0', but 1 or 2 was expected"),
        (changed(",2\n", ",\n"), "line 3: label is empty, but line 2 has an answer"),
        (changed(",1\n", ",\n"), "line 2: label is empty, but line 3 has an answer"),
        (changed("Ben", "Ben\0"), "line 3: there is a NUL character"),
        (changed("No.", '"No.'), "line 3: a quoted cell begins here and never ends"),
        (SIMPLE.encode() + b"\xff", "line 4: the CSV of stories must be UTF-8 text"),
    ],
)
def test_bad_file(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_stories(path)
    assert str(caught.value).startswith(f"{path}, line ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    cut=st.tuples(st.integers(0, len(SIMPLE)), st.integers(0, 9), st.binary(max_size=6)),
    junk=st.none() | st.binary(max_size=60),
)
def test_any_bytes_are_stories_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[int, int, bytes], junk: bytes | None
) -> None:
    begin, n, new = cut
    near = SIMPLE.encode()[:begin] + new + SIMPLE.encode()[begin + n :]
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(near if junk is None else junk)
    found = stories_or_complaint(path)
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert all(text.strip() for texts in found[:3] for text in texts)
        assert found.labels is None or set(found.labels) <= {0, 1}


def stories_or_complaint(path: Path) -> Stories | str:
    try:
        return read_stories(path)
    except InputError as error:
        return str(error)
