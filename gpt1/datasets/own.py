"""A user's own data as a task: from files, or from examples in a Python program.

``--dataset own`` takes data of any of the paper's four shapes without a line of code. Both ways
give :class:`Row` instances, which one set of checks turns into a :class:`gpt1.tasks.Task`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.model_selection import train_test_split

from gpt1.datasets.own_tables import Table, read_table
from gpt1.datasets.story_cloze import SPLIT_SEED
from gpt1.runtime.errors import InputError, join_problems
from gpt1.settings.fields import settings_of
from gpt1.settings.groups import OWN, OwnSettings
from gpt1.settings.training import Settings
from gpt1.settings.words import did_you_mean, shorten
from gpt1.tasks import (
    ACCURACY,
    MATTHEWS,
    PEARSON,
    SHAPES,
    SPEARMAN,
    ChoiceIndex,
    Classes,
    Example,
    Grades,
    Layout,
    Metric,
    Splits,
    StoryChoices,
    Target,
    Task,
    TaskRecord,
)
from gpt1.tasks.metrics import f1
from gpt1.tasks.shapes import are_texts, first_answer, has_answers, is_blank, text_names

LABEL = "label"
_SPLITS = ("train", "valid", "test")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Row(NamedTuple):
    """One example before it is checked.

    Attributes:
        where: the place of the example, which ends with a number.
        texts: its texts; missing answers are empty.
        label: the label as it is written; empty if there is none.
    """

    where: str
    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What the texts and the label of a row mean.

    Attributes:
        layout: the layout of the task.
        names: the names of the texts, for messages and for labels that name an answer.
        label: the name of the label, for messages.
        first: the number of the first answer: 1 in files, 0 in Python.
    """

    layout: Layout
    names: tuple[str, ...]
    label: str = LABEL
    first: int = 1

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the answers."""
        return self.names[first_answer(self.layout) :]


Examples = Mapping[str, Sequence[object]]
"""The examples of a Python program by split: ``train``, and perhaps ``valid`` and ``test``."""


def own_task(settings: Settings, examples: Examples | None = None) -> Task:
    """Read and check a user's data, and make the task of them.

    Args:
        settings: the settings, of which ``data_dir`` and those of
            :class:`gpt1.settings.groups.OwnSettings` are used.
        examples: the examples, if they are not in files.

    Raises:
        InputError: settings contradict one another; the message has all of them. Or an example is
            wrong; the message has its place.
    """
    problems = list(_contradictions(settings, in_files=examples is None))
    if problems:
        raise InputError(join_problems(problems))
    in_files = examples is None
    form, rows = _read_files(settings) if examples is None else _from_memory(settings, examples)
    for row in (row for split in rows.values() for row in split):
        _check_texts(form, row)
    target = _target(settings.metric, form, rows["train"], named=in_files)
    metrics = _metrics(settings.metric, settings.positive, target)
    splits = _splits(form, target, rows)
    return Task(
        name=OWN,
        title="own data",
        folders=(),
        files=(),
        submission=next(iter(splits.predicted)),
        remedy="",
        read=lambda _: splits,
        layout=form.layout,
        target=target,
        metrics=metrics,
        columns=form.names if in_files else (),
        label_column=form.label,
    )


def _contradictions(settings: Settings, *, in_files: bool) -> Iterator[str]:
    """Find settings that do not fit together."""
    for item in settings_of(OwnSettings):
        is_of_files = item.metavar in ("FILE", "NAMES", "NAME")
        if is_of_files and not in_files and getattr(settings, item.name) is not None:
            yield f"--{item.name}: is for examples in files; leave it out, or leave train out"
    if in_files and settings.train_file is None:
        yield "--train_file: must be given with --dataset own; name a .csv, .tsv or .jsonl file"
    if settings.shape is None:
        yield f"--shape: must be given; give one of {', '.join(SHAPES)}"
    elif settings.text_columns is not None:
        yield from _wrong_columns(SHAPES[settings.shape], settings.shape, settings.text_columns)
    if settings.positive is not None and settings.metric != "f1":
        yield f"--positive {shorten(settings.positive)}: is for --metric f1; leave it out"
    if settings.shape == "choice" and settings.metric not in (None, "accuracy"):
        yield f"--metric {settings.metric}: choices have --metric accuracy alone; leave it out"


def _wrong_columns(layout: Layout, shape: str, text: str) -> Iterator[str]:
    """Find a wrong number of columns, an empty name, and names that are there twice."""
    columns = _named_columns(text)
    usual = text_names(layout)
    flag = f"--text_columns {shorten(text)}"
    if len(columns) != len(text_names(layout, len(columns))):
        more = " or more" if has_answers(layout) else ""
        yield (
            f"{flag}: --shape {shape} takes {len(usual)}{more} columns, but these are "
            f"{len(columns)}; give them as {','.join(usual)}"
        )
    if len(set(columns)) < len(columns) or "" in columns:
        yield f"{flag}: a name is empty or is there twice; give each column once"


def _named_columns(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


# Rows from files


def _read_files(settings: Settings) -> tuple[_Form, dict[str, list[Row]]]:
    """Read the files that the settings name."""
    assert settings.shape is not None
    named = {split: getattr(settings, f"{split}_file") for split in _SPLITS}
    tables = {
        split: read_table(Path(settings.data_dir or "", name))
        for split, name in named.items()
        if name is not None
    }
    layout = SHAPES[settings.shape]
    columns = settings.text_columns and _named_columns(settings.text_columns)
    names = columns or _usual_columns(layout, tables["train"])
    form = _Form(layout=layout, names=names, label=settings.label_column or LABEL)
    rows = {
        split: _rows_of(table, form, needs_labels=split != "test")
        for split, table in tables.items()
    }
    return form, rows


def _usual_columns(layout: Layout, table: Table) -> tuple[str, ...]:
    """Return the usual names of the columns; for choices, as many answers as the table has."""
    answers = [name for name in table.columns if re.fullmatch(r"answer[1-9]\d{0,8}", name)]
    n_texts = first_answer(layout) + max((int(name[6:]) for name in answers), default=0)
    if n_texts > first_answer(layout) + len(answers):
        n_texts = 0
    return text_names(layout, n_texts)


def _rows_of(table: Table, form: _Form, *, needs_labels: bool) -> list[Row]:
    """Return the rows of a table; labels may be missing throughout where none are needed."""
    table.require(list(form.names), "--text_columns")
    if needs_labels:
        table.require([form.label], "--label_column")
    rows = [
        Row(where, tuple(cells.get(name, "") for name in form.names), cells.get(form.label, ""))
        for where, cells in table.rows
    ]
    return _with_stripped_labels(rows, form, needs_labels=needs_labels)


def _with_stripped_labels(rows: list[Row], form: _Form, *, needs_labels: bool) -> list[Row]:
    """Strip the labels, and check that all rows have one, or that none has where none is needed."""
    rows = [row._replace(label=row.label.strip()) for row in rows]
    empty = [row.where for row in rows if not row.label]
    if empty and needs_labels:
        raise InputError(
            f"{empty[0]}: {form.label} is empty, but examples to train and validate on need one; "
            "fill it in, or delete the example."
        )
    if empty and len(empty) < len(rows):
        filled = next(row.where for row in rows if row.label)
        raise InputError(
            f"{empty[0]}: {form.label} is empty, but {filled} has one; give all labels or none."
        )
    return rows


# Rows from Python


def _from_memory(settings: Settings, examples: Examples) -> tuple[_Form, dict[str, list[Row]]]:
    """Return the examples of a Python program as rows."""
    assert settings.shape is not None
    layout = SHAPES[settings.shape]
    rows = {split: _rows_in(split, found, layout) for split, found in examples.items()}
    n_texts = max(len(row.texts) for split in rows.values() for row in split)
    form = _Form(layout=layout, names=text_names(layout, n_texts), first=0)
    return form, {
        split: _with_stripped_labels(
            [row._replace(texts=padded(row.texts, n_texts)) for row in found],
            form,
            needs_labels=split != "test",
        )
        for split, found in rows.items()
    }


def padded(texts: Sequence[str], n_texts: int) -> tuple[str, ...]:
    """Return the texts of an example with empty answers for those that it lacks."""
    return (*texts, *[""] * (n_texts - len(texts)))


def listed(split: str, examples: Iterable[object]) -> list[Any]:
    """Return the examples of a Python program as a list, whatever holds them.

    Args:
        split: the name of the argument, for messages.
        examples: the examples.

    Raises:
        InputError: they are no examples, or there are none.
    """
    if isinstance(examples, str | Mapping) or not isinstance(examples, Iterable):
        raise InputError(f"{split}: must be a list of examples, but is {_shown(examples)}")
    found = list(examples)
    if not found:
        raise InputError(f"{split}: there are no examples; give at least one, or leave it out.")
    return found


def has_several_texts(example: object) -> bool:
    """Return whether an example has more than one text before its label."""
    return isinstance(example, tuple | list) and len(example) > 2


def _rows_in(split: str, examples: Sequence[object], layout: Layout) -> list[Row]:
    """Return the rows of one split; a test example may lack the label."""
    return [
        _row(f"{split}, example {number}", example, layout, is_test=split == "test")
        for number, example in enumerate(examples, start=1)
    ]


def _row(where: str, example: object, layout: Layout, *, is_test: bool) -> Row:
    """Return an example, texts first and the label last, as a row."""
    values = tuple(example) if isinstance(example, tuple | list) else (example,)
    *texts, label = values if values else (None,)
    # A text at the end of a test example may be its last answer: only a number is a label there.
    is_text_a_label = not (is_test and has_answers(layout))
    is_label = isinstance(label, str) if is_text_a_label else False
    is_label = is_label or (isinstance(label, Real) and not isinstance(label, bool))
    if is_label and are_texts(layout, texts):
        return Row(where, tuple(map(str, texts)), str(label))
    if is_test and are_texts(layout, values):
        return Row(where, tuple(map(str, values)), "")
    names = ", ".join(text_names(layout))
    more = ", ..." if has_answers(layout) else ""
    raise InputError(
        f"{where}: must be texts and then a label ({names}{more}, label), but is {_shown(example)}"
    )


def _shown(value: object) -> str:
    return shorten(repr(value))


# Checks


def _check_texts(form: _Form, row: Row) -> None:
    """Raise an :class:`InputError` if a text is empty or holds what is no text."""
    for name, text in zip(form.names, row.texts, strict=True):
        if _NO_TEXT.search(text):
            raise InputError(
                f"{row.where}: {name} holds a character that no text has (NUL or half of a "
                "surrogate pair); save the file again from its source."
            )
    filled = [not is_blank(text) for text in row.texts]
    first = first_answer(form.layout) if has_answers(form.layout) else len(filled)
    if not all(filled[:first]):
        name = form.names[filled.index(False)]
        raise InputError(
            f"{row.where}: {shorten(name, 40)} is empty, but text was expected; fill it in, or "
            "delete the example."
        )
    if has_answers(form.layout) and sum(filled[first:]) < 2:
        raise InputError(
            f"{row.where}: fewer than two answers have text; fill in another one, or delete the "
            "example."
        )


def _choice(form: _Form, *, named: bool) -> ChoiceIndex:
    """Return the target of choices, whose answers have the names of columns or are numbered."""
    numbers = map(str, range(len(form.answers)))
    return ChoiceIndex(names=form.answers if named else tuple(numbers))


def _target(metric: str | None, form: _Form, train: Sequence[Row], *, named: bool) -> Target:
    """Return what is predicted, as the labels of the training examples show it."""
    if has_answers(form.layout):
        return _choice(form, named=named)
    if metric == "pearson":
        grades = [_grade(form, row) for row in train]
        target: Target = Grades(min(grades), max(grades))
    else:
        target = Classes(tuple(sorted({row.label for row in train})))
    if len({row.label for row in train}) == 1 or (
        isinstance(target, Grades) and target.lowest == target.highest
    ):
        raise InputError(
            f"{train[0].where}: {form.label} is {_shown(train[0].label)} here and in all other "
            "training examples, but at least two labels were expected; add examples of another "
            "label, or name another column with --label_column."
        )
    return target


def _metrics(metric: str | None, positive: str | None, target: Target) -> tuple[Metric, ...]:
    """Return the metrics that ``--metric`` stands for."""
    if isinstance(target, Grades):
        return PEARSON, SPEARMAN
    if metric == "matthews":
        return MATTHEWS, ACCURACY
    if metric != "f1" or not isinstance(target, Classes):
        return (ACCURACY,)
    names = target.names
    some = ", ".join(shorten(name, 20) for name in names[:8]) + (", ..." if names[8:] else "")
    if positive is None and len(names) > 2:
        raise InputError(f"--positive: must be given with more than two labels; give one of {some}")
    if positive is not None and positive not in names:
        guess = did_you_mean(positive, names)
        raise InputError(
            f"--positive {shorten(positive)}: no training example has this label{guess}"
            f"{' Give' if guess else '; give'} one of {some}"
        )
    return f1(1 if positive is None else names.index(positive)), ACCURACY


def _label(form: _Form, target: Target, row: Row) -> float:
    """Return the label of a row as the target has it.

    Raises:
        InputError: the label is not one that the target knows.
    """
    if isinstance(target, Grades):
        return _grade(form, row)
    if isinstance(target, Classes):
        return _class(form, target, row)
    return _answer(form, row)


def _grade(form: _Form, row: Row) -> float:
    try:
        grade = float(row.label)
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        raise InputError(
            f"{row.where}: {form.label} is {_shown(row.label)}, but --metric pearson needs a "
            "number; correct it, or leave --metric out if the labels are classes."
        )
    return grade


def _class(form: _Form, target: Classes, row: Row) -> int:
    if not row.label.isprintable():
        raise InputError(
            f"{row.where}: {form.label} is {_shown(row.label)}, but a label is on one line and has "
            "no tabs; write it otherwise."
        )
    if row.label not in target.names:
        guess = did_you_mean(row.label, target.names)
        names = ", ".join(shorten(name, 20) for name in target.names[:8])
        raise InputError(
            f"{row.where}: {form.label} is {_shown(row.label)}, which no training example has"
            f"{guess}{' Expected' if guess else '; expected'} one of {names}"
            f"{', ...' if target.names[8:] else ''}."
        )
    return target.names.index(row.label)


def _answer(form: _Form, row: Row) -> int:
    """Return the index of the right answer, which the label names or numbers."""
    answers, last = form.answers, form.first + len(form.answers) - 1
    numbers = {str(number): number - form.first for number in range(form.first, last + 1)}
    index = answers.index(row.label) if row.label in answers else numbers.get(row.label)
    if index is None:
        named = f" or one of {', '.join(answers[:8])}" if form.first else ""
        raise InputError(
            f"{row.where}: {form.label} is {_shown(row.label)}, but a number from {form.first} to "
            f"{last}{named} was expected; write which answer is right."
        )
    if is_blank(row.texts[first_answer(form.layout) + index]):
        raise InputError(
            f"{row.where}: {form.label} is {_shown(row.label)}, but this answer is empty; fill it "
            "in, or correct the label."
        )
    return index


# Splits


def _splits(form: _Form, target: Target, rows: Mapping[str, list[Row]]) -> Splits:
    """Return the splits; without validation examples, a fifth of the training examples."""
    train = _examples(form, target, rows["train"])
    if "valid" in rows:
        valid = _examples(form, target, rows["valid"])
    else:
        train, valid = split_off(train, stratified=not isinstance(target, Grades))
    test = {OWN: _examples(form, target, rows["test"])} if "test" in rows else {}
    return Splits(train=train, valid=valid, predicted={**test, f"{OWN}.dev": valid})


def _examples(form: _Form, target: Target, rows: Sequence[Row]) -> list[Example]:
    return [
        Example(row.texts, _label(form, target, row) if row.label else None, row.where)
        for row in rows
    ]


def split_off(
    examples: Sequence[Example], *, stratified: bool
) -> tuple[list[Example], list[Example]]:
    """Split a fifth of the examples off for validation, with a seed of its own.

    Args:
        examples: the examples, with labels.
        stratified: whether each label has the same share of both parts. An example whose label no
            other one has then stays in the training part.

    Returns:
        The training and the validation part, both in the order of ``examples``.

    Raises:
        InputError: there are too few examples to split.
    """
    counts = Counter(example.label for example in examples)
    rows = [i for i, each in enumerate(examples) if not stratified or counts[each.label] > 1]
    labels = [examples[i].label for i in rows] if stratified else None
    if len(rows) < 2:
        raise InputError(
            f"{examples[0].source}: no two examples have the same label, so that none can be split "
            "off for validation; give --valid_file, or --metric pearson if the labels are numbers."
        )
    n_valid = max(round(len(rows) / 5), len(set(labels or [0])))
    _, held_out = train_test_split(
        rows, test_size=n_valid, random_state=SPLIT_SEED, stratify=labels
    )
    chosen = set(held_out)
    train = [each for i, each in enumerate(examples) if i not in chosen]
    return train, [examples[i] for i in sorted(chosen)]


# Prediction


class Unlabelled(NamedTuple):
    """The examples of a file to predict.

    Attributes:
        texts: the texts of each example.
        labels: the labels as the target of the model has them; None if the file has none.
        target: the target, with the names of the answers in this file.
    """

    texts: list[tuple[str, ...]]
    labels: list[float] | None
    target: Target


def read_to_predict(
    path: str | Path,
    record: TaskRecord,
    text_columns: str | None = None,
    label_column: str | None = None,
) -> Unlabelled:
    """Read a file of examples, with or without labels, for a model with this record.

    Args:
        path: the file; see :func:`gpt1.datasets.own_tables.read_table`.
        record: the record of the model.
        text_columns, label_column: as in :class:`gpt1.settings.groups.OwnSettings` [as in
            training].

    Raises:
        InputError: the file does not fit the model; the message names the line.
    """
    layout, target = record.layout, record.target
    if text_columns is not None:
        shape = next((name for name, each in SHAPES.items() if each == layout), "choice")
        problems = list(_wrong_columns(layout, shape, text_columns))
        if problems:
            raise InputError(join_problems(problems))
    table = read_table(path)
    columns = record.columns or _usual_columns(layout, table)
    form = _Form(
        layout=layout,
        names=columns if text_columns is None else _named_columns(text_columns),
        label=label_column or record.label_column,
    )
    rows = _rows_of(table, form, needs_labels=label_column is not None)
    for row in rows:
        _check_texts(form, row)
    if isinstance(target, ChoiceIndex):
        target = _choice(form, named=not isinstance(layout, StoryChoices))
    labels = [_label(form, target, row) for row in rows if row.label]
    return Unlabelled([row.texts for row in rows], labels or None, target)
