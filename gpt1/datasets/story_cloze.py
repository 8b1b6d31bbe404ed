"""Read and split the Story Cloze CSVs (ROCStories): text and labels, without tokens.

The splits, and the order of their rows, are those of ``rocstories`` in the original's
``datasets.py``. A mistake in a file is reported with its line.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sklearn.model_selection import train_test_split

from gpt1.datasets.tables import check_no_nul
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_text
from gpt1.settings.words import shorten
from gpt1.tasks import ACCURACY, ChoiceIndex, Example, Splits, StoryChoices, Task

VALIDATION_CSV = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
TEST_CSV = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
N_TRAIN = 1497
N_VALID = 374

COLUMNS = (
    "InputStoryid",
    "InputSentence1",
    "InputSentence2",
    "InputSentence3",
    "InputSentence4",
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
)
"""The header of a cloze CSV. The original ignores it and takes the columns in this order."""

SPLIT_SEED = 3535999445
"""The original's seed for the split; the seed of the run does not change it."""

REQUEST_FORM = "https://cs.rochester.edu/nlp/rocstories/"


class Cloze(NamedTuple):
    """Stories with two endings each; the four lists have one entry per story.

    Attributes:
        stories: the four sentences of each story, joined by single spaces.
        endings1: the first ending of each story.
        endings2: the second ending of each story.
        labels: which ending is right: 0 for the first, 1 for the second.
    """

    stories: list[str]
    endings1: list[str]
    endings2: list[str]
    labels: list[int]


def rocstories(
    data_dir: str | Path, n_train: int = N_TRAIN, n_valid: int = N_VALID
) -> tuple[Cloze, Cloze, Cloze]:
    """Read the training, validation and test splits of ROCStories.

    Training and validation stories are both drawn from the validation CSV, by scikit-learn's
    ``train_test_split`` with the original's seed. The test stories are those of the test CSV, in
    its order. If the validation CSV does not have ``n_train + n_valid`` rows, it is split in the
    same proportion. Source: the paper, section 4.2, and the original's ``rocstories``.

    Args:
        data_dir: the directory that holds :data:`VALIDATION_CSV` and :data:`TEST_CSV`.
        n_train: number of training stories, at least 1.
        n_valid: number of validation stories, at least 1.

    Returns:
        The training, validation and test splits.

    Raises:
        InputError: a CSV is missing or malformed, or has too few rows to split.
    """
    require_csvs(data_dir)
    validation_path = Path(data_dir) / VALIDATION_CSV
    stories = read_cloze(validation_path)
    train_rows, valid_rows = split_rows(len(stories.labels), n_train, n_valid, validation_path)
    test = read_cloze(Path(data_dir) / TEST_CSV)
    return _take(stories, train_rows), _take(stories, valid_rows), test


def missing_csvs(data_dir: str | Path) -> list[Path]:
    """Return the paths of the cloze CSVs that ``data_dir`` lacks: none, one or both."""
    paths = [Path(data_dir) / name for name in (VALIDATION_CSV, TEST_CSV)]
    return [path for path in paths if not os.path.exists(path)]


def require_csvs(data_dir: str | Path) -> None:
    """Check that ``data_dir`` has both cloze CSVs.

    Raises:
        InputError: a CSV is missing. The message says where to get it and where to put it.
    """
    missing = missing_csvs(data_dir)
    if missing:
        names = " and ".join(f'"{path.name}"' for path in missing)
        raise InputError(
            f"{data_dir}: no {names} here. The ROCStories cloze CSVs (spring 2016) are sent on "
            f"request: fill in the form at {REQUEST_FORM} and put both files, their names "
            f"unchanged, into {data_dir}."
        )


def read_cloze(path: str | Path) -> Cloze:
    """Read one cloze CSV and check it (the original's ``_rocstories`` does not check its file).

    The file must be UTF-8, with or without a byte-order mark. Line ends may be of any kind, and
    quoted cells may contain newlines. The first row must be :data:`COLUMNS`. Every other row must
    have eight cells, none of them blank, and the last cell must be 1 or 2.

    Raises:
        InputError: the file cannot be read or breaks one of these rules. The message names the
            line, counted from 1 as in an editor. No content of a file raises any other error.
    """
    text = read_text(path, "the cloze CSV")
    rows = csv_rows(path, text)
    _check_header(path, next(rows, None))
    result = Cloze([], [], [], [])
    for line, cells in rows:
        _check_row(path, line, cells)
        result.stories.append(" ".join(cells[1:5]))
        result.endings1.append(cells[5])
        result.endings2.append(cells[6])
        result.labels.append(int(cells[7].strip()) - 1)
    if not result.labels:
        raise InputError(
            f"{path}, line 2: the file ends after its header, but at least one story was "
            "expected; get a complete copy."
        )
    return result


def csv_rows(path: str | Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row, with the number of the line on which the row begins.

    A row with a newline in a quoted cell takes more than one line.

    Args:
        path: the file, for messages.
        text: the content of the file.

    Raises:
        InputError: a row is not CSV.
    """
    # newline=None turns every kind of line end into "\n", as the original's text-mode open does.
    reader = csv.reader(_lines_without_nul(path, io.StringIO(text, newline=None)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, {_span(line, reader.line_num)}: {_csv_problem(error)}"
            ) from error
        yield line, cells


def _lines_without_nul(path: str | Path, lines: io.StringIO) -> Iterator[str]:
    """Yield lines; refuse NUL characters, which Python 3.11 and later would accept."""
    for number, line in enumerate(lines, start=1):
        check_no_nul(f"{path}, line {number}", line)
        yield line


def _span(first: int, last: int) -> str:
    return f"lines {first} to {last}" if last > first else f"line {first}"


def _csv_problem(error: csv.Error) -> str:
    """Return what is wrong with a row that the csv module refuses, and what to do about it."""
    if "unexpected end of data" in str(error):
        return (
            "a quoted cell begins here and never ends; close it with a double quote, and write "
            'a quote inside a quoted cell as "".'
        )
    if "field limit" in str(error):
        return (
            f"a cell is longer than {csv.field_size_limit()} characters, but one sentence was "
            "expected; look for a quote that is not closed."
        )
    return (
        f"not a row of comma-separated cells ({error}); put a cell with a comma, quote or newline "
        'in double quotes, and write a quote inside it as "".'
    )


def _check_header(path: str | Path, first: tuple[int, list[str]] | None) -> None:
    """Raise an :class:`InputError` unless the first row is :data:`COLUMNS`."""
    expected = ",".join(COLUMNS)
    if first is None:
        raise InputError(
            f"{path}, line 1: the file is empty, but the header {expected} was expected; get a "
            "complete copy."
        )
    line, cells = first
    if tuple(cells) == COLUMNS:
        return
    missing = [name for name in COLUMNS if name not in cells]
    remedy = f"make the first line {expected}"
    if len(missing) == len(COLUMNS):
        raise other_columns(f"{path}, line {line}", cells, COLUMNS, remedy)
    if missing:
        problem = f"the header lacks {', '.join(missing)}"
    else:
        problem = "the header has other columns or another order"
    raise InputError(f"{path}, line {line}: {problem}; {remedy}")


def other_columns(
    where: str, cells: Sequence[str], expected: Iterable[str], remedy: str
) -> InputError:
    """Make the error for a first row in which no column has an expected name.

    Args:
        where: file and line, for the message.
        cells: the cells of the row.
        expected: the names of which there is none; they tell which other separator a file has.
        remedy: how to name the columns.
    """
    names = set(expected)
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        parts = ",".join(cells).split(separator)
        if names & {part.strip(' "') for part in parts}:
            return InputError(
                f"{where}: the columns are separated by {name}, but commas were expected; save the "
                "file again as CSV, with commas"
            )
    shown = ", ".join(repr(shorten(cell, 20)) for cell in cells[:4])
    more = f" and {len(cells) - 4} more" if len(cells) > 4 else ""
    found = f"the columns {shown}{more}, all of other names" if cells else "a blank line"
    return InputError(f"{where}: found {found}; {remedy}")


def _check_row(path: str | Path, line: int, cells: list[str]) -> None:
    """Raise an :class:`InputError` unless a row has eight cells with text and a valid label."""
    where = f"{path}, line {line}"
    if not cells:
        raise InputError(
            f"{where}: the line is blank, but a story of {len(COLUMNS)} cells was expected; "
            "delete the line."
        )
    if len(cells) != len(COLUMNS):
        raise InputError(
            f"{where}: the row has {len(cells)} cells, but {len(COLUMNS)} were expected as in the "
            "header; put cells with commas in double quotes and add what is missing."
        )
    for column, cell in zip(COLUMNS, cells, strict=True):
        if not cell.strip():
            raise InputError(
                f"{where}: {column} is empty, but text was expected; fill the cell or delete "
                "the row."
            )
    if cells[-1].strip() not in ("1", "2"):
        raise InputError(
            f"{where}: {COLUMNS[-1]} is {cells[-1][:20]!r}, but 1 or 2 was expected; write the "
            "number of the right ending."
        )


def split_rows(
    n_rows: int,
    n_train: int = N_TRAIN,
    n_valid: int = N_VALID,
    source: str | Path = VALIDATION_CSV,
) -> tuple[list[int], list[int]]:
    """Choose the rows of the training and validation splits, in the original's order.

    Args:
        n_rows: number of stories to split. If it is not ``n_train + n_valid``, the stories are
            split in the same proportion.
        n_train: number of training stories, at least 1.
        n_valid: number of validation stories, at least 1.
        source: the file of the stories, for messages.

    Returns:
        The numbers of the rows, from 0, of the training and of the validation split.

    Raises:
        InputError: there are too few stories to split, or a number is not positive.
    """
    if n_train < 1 or n_valid < 1:
        raise InputError(
            f"n_train={n_train}, n_valid={n_valid}: both must be at least 1; leave them out for "
            f"the paper's {N_TRAIN} and {N_VALID}."
        )
    if n_rows < 2:
        raise InputError(
            f"{source}, line 2: the only story in the file, but at least 2 were expected, one to "
            "train and one to validate on; add stories."
        )
    if n_rows != n_train + n_valid:
        n_valid = round(n_rows * n_valid / (n_train + n_valid))
        n_valid = min(max(n_valid, 1), n_rows - 1)
    train, valid = train_test_split(list(range(n_rows)), test_size=n_valid, random_state=SPLIT_SEED)
    return train, valid


def _take(cloze: Cloze, rows: list[int]) -> Cloze:
    """Return the stories of some rows, in the order of ``rows``."""
    return Cloze(
        [cloze.stories[row] for row in rows],
        [cloze.endings1[row] for row in rows],
        [cloze.endings2[row] for row in rows],
        [cloze.labels[row] for row in rows],
    )


def read_splits(data_dir: Path) -> Splits:
    """Read the splits of :func:`rocstories` as examples; their sources count stories from 1."""
    train, valid, test = rocstories(data_dir)
    train_rows, valid_rows = split_rows(len(train.labels) + len(valid.labels))
    valid_examples = _examples(valid, data_dir / VALIDATION_CSV, valid_rows)
    return Splits(
        train=_examples(train, data_dir / VALIDATION_CSV, train_rows),
        valid=valid_examples,
        predicted={
            "ROCStories": _test_examples(test, data_dir / TEST_CSV),
            "ROCStories.dev": valid_examples,
        },
    )


def read_test(data_dir: Path) -> list[Example]:
    """Read the test split alone, for which the original's ``analysis.py`` needs no other file.

    Raises:
        InputError: the CSV is missing or malformed.
    """
    path = data_dir / TEST_CSV
    if not path.exists():
        raise InputError(
            f"{path}: no such file; name the test CSV's directory with --data_dir, "
            "or another data set with --dataset."
        )
    return _test_examples(read_cloze(path), path)


def _test_examples(cloze: Cloze, path: Path) -> list[Example]:
    return _examples(cloze, path, range(len(cloze.labels)))


def _examples(cloze: Cloze, path: Path, rows: Sequence[int]) -> list[Example]:
    return [
        Example((story, ending1, ending2), label, f"{path}, story {row + 1}")
        for story, ending1, ending2, label, row in zip(*cloze, rows, strict=True)
    ]


ROCSTORIES = Task(
    name="rocstories",
    title="ROCStories",
    folders=("ROCStories", "rocstories"),
    files=((VALIDATION_CSV, TEST_CSV),),
    remedy=f"ask for ROCStories at {REQUEST_FORM} and put the CSVs there",
    read=read_splits,
    layout=StoryChoices(),
    target=ChoiceIndex(("0", "1")),
    metrics=(ACCURACY,),
    read_test=read_test,
    plural="stories",
    legend="0: the first ending, label 1 in the CSV; 1: the second, label 2",
)
