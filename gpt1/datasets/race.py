"""RACE: which of four answers to a question about an article is right? (Lai et al. 2017)

The questions are from English exams of Chinese middle and high schools. Each file has one article
with its questions, as a JSON object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from gpt1.datasets.labelled import check_text
from gpt1.datasets.tables import COPY
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import read_errors, read_text
from gpt1.runtime.json_files import Kind, Text, parse_object, shown, typed
from gpt1.tasks import ACCURACY, ChoiceIndex, Choices, Example, Splits, Task

_SPLITS = ("train", "dev", "test")
_LETTERS = ("A", "B", "C", "D")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_lists(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_texts, value))


_Texts = Annotated[list[str], Kind("a list of texts", _is_texts)]
_Lists = Annotated[list[list[str]], Kind("a list of lists of texts", _is_lists)]


@dataclass(frozen=True)
class _Passage:
    """The content of a file; the three lists have one entry per question."""

    article: Text
    questions: _Texts
    options: _Lists
    answers: _Texts


def _read(levels: tuple[str, ...], title: str, folder: Path) -> Splits:
    train, valid, test = (
        [example for level in levels for example in _read_level(folder / split / level)]
        for split in _SPLITS
    )
    return Splits(train, valid, {title: test, f"{title}.dev": valid})


def _read_level(folder: Path) -> Iterator[Example]:
    """Yield the questions of a folder, in the order of the numbers that are the files' names."""
    with read_errors(folder, "the folder of articles"):
        names = [name for name in os.listdir(folder) if name.endswith(".txt") and name[0] != "."]
    if not names:
        raise InputError(
            f"{folder}: there are no .txt files, but at least one article was expected; get a "
            "complete copy of RACE."
        )
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield from _read_passage(folder / name)


def _read_passage(path: Path) -> Iterator[Example]:
    """Yield the questions of a file: article, question and four answers each."""
    values = parse_object(read_text(path, "the article"), str(path), COPY)
    passage = typed(_Passage, values, str(path), COPY)
    check_text(str(path), passage.article, "article")
    counts = [len(passage.questions), len(passage.options), len(passage.answers)]
    if len(set(counts)) > 1 or not counts[0]:
        n_questions, n_options, n_answers = counts
        raise InputError(
            f"{path}: there are {n_questions} questions, {n_options} lists of options and "
            f"{n_answers} answers, but as many of each were expected, at least 1; {COPY}."
        )
    entries = zip(passage.questions, passage.options, passage.answers, strict=True)
    for number, (question, options, answer) in enumerate(entries, 1):
        where = f"{path}, question {number}"
        _check_question(where, question, options, answer)
        texts = (passage.article, question, *options)
        yield Example(texts, _LETTERS.index(answer), where)


def _check_question(where: str, question: str, options: list[str], answer: str) -> None:
    """Raise an :class:`InputError` unless a question has text, four options and a letter."""
    check_text(where, question, "the question")
    if len(options) != len(_LETTERS):
        raise InputError(
            f"{where}: the number of options is {len(options)}, but {len(_LETTERS)} were expected; "
            f"{COPY}."
        )
    for letter, option in zip(_LETTERS, options, strict=True):
        check_text(where, option, f"option {letter}")
    if answer not in _LETTERS:
        raise InputError(
            f"{where}: the answer is {shown(answer)}, but a letter from A to D was expected; "
            f"{COPY}."
        )


def _race(name: str, title: str, *levels: str) -> Task:
    """Make the task of some levels of schools, which are folders."""
    return Task(
        name=name,
        title=title,
        folders=("RACE", "race", title, name),
        files=(tuple(f"{split}/{level}" for split in _SPLITS for level in levels),),
        remedy=(
            "ask for RACE at https://www.cs.cmu.edu/~glai1/data/race/ and put its folders train, "
            "dev and test there"
        ),
        read=partial(_read, levels, title),
        layout=Choices(has_question=True),
        target=ChoiceIndex(_LETTERS),
        metrics=(ACCURACY,),
    )


RACE = _race("race", "RACE", "middle", "high")
RACE_MIDDLE = _race("race-middle", "RACE-middle", "middle")
RACE_HIGH = _race("race-high", "RACE-high", "high")
