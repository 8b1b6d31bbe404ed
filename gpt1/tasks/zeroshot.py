"""How a language model answers a task without fine-tuning (paper, section 5).

Each example becomes a context and one or more answers. The model's log-probability of an answer's
tokens, given the tokens of the context, is the score of the answer.

Axes: n examples, C answers.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt1.runtime.errors import InputError
from gpt1.settings.words import shorten
from gpt1.tasks.layouts import Ids, Layout
from gpt1.tasks.shapes import first_answer, has_answers, text_names
from gpt1.tasks.targets import Classes, Labels
from gpt1.tasks.task import Task
from gpt1.text_utils.special import SpecialTokens

MEAN, SUM = "mean", "sum"
LABEL = "label"
"""The field of a template in whose place the words for the classes stand."""

# The layouts: the first sequence is the context, and each other one an answer. They hold no special
# tokens, which a pretrained model has never seen.


@dataclass(frozen=True)
class Continuations(Layout):
    """A context, then its answers, each with sequences of their own.

    If context and longest answer have more than ``n_ctx`` tokens, only the last tokens of the
    context are kept, of which there is at least one. Answers are never cut.

    Attributes:
        n_before: number of texts before the answers, which make the context one after another.
    """

    n_before: int = 1

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Return the context and the answers of one example."""
        context = list(chain(*texts[: self.n_before]))
        answers = [list(answer) for answer in texts[self.n_before :]]
        room = max(1, n_ctx - max(map(len, answers)))
        return [context[-room:], *answers]


@dataclass(frozen=True)
class WholeText(Layout):
    """A text whose first token is the context, since nothing predicts it, and the rest of it."""

    def sequences(
        self, texts: Sequence[Ids], special: SpecialTokens, n_ctx: int
    ) -> list[list[int]]:
        """Return the first token of the text, and all other tokens."""
        (text,) = texts
        return [list(text[:1]), list(text[1:])]


# Templates

_Pieces = Sequence[tuple[str, str | None]]  # text, and the name of the field that follows it


@dataclass(frozen=True)
class Template:
    """A text with fields, such as ``{text} very {label}``.

    What stands before ``{label}`` is the context of an example. The word for a class, with what
    stands after it, is the answer.

    Attributes:
        before, after: the pieces of the two parts.
        fields: the names of the texts of an example.
        words: the word for each of the C classes.
    """

    before: _Pieces
    after: _Pieces
    fields: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, fields: tuple[str, ...], words: tuple[str, ...]) -> Template:
        """Read a template.

        Args:
            text: the template; ``{{`` and ``}}`` stand for braces.
            fields: the names of the texts of an example.
            words: the word for each class.

        Raises:
            InputError: braces do not match, a field is unknown, or a part is missing.
        """
        flag = f"--template {shorten(text)}"
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError:
            raise InputError(
                f"{flag}: its braces do not match; write {{{{ or }}}} for a brace of the text"
            ) from None
        allowed = [*fields, LABEL]
        names = [name for _, name, _, _ in parsed if name is not None]
        plain = [(literal, name) for literal, name, spec, kind in parsed if not (spec or kind)]
        unknown = [name for name in names if name not in allowed]
        if unknown or len(plain) < len(parsed):
            shown = ", ".join(f"{{{name}}}" for name in allowed)
            what = shorten(f"{{{unknown[0]}}}") if unknown else "a field with ':' or '!'"
            raise InputError(f"{flag}: has {what}, but the fields are {shown}; write one of these")
        if names.count(LABEL) != 1:
            raise InputError(f"{flag}: must have {{{LABEL}}} once; put it where the answer stands")
        if len(names) == 1:
            texts = " or ".join(f"{{{name}}}" for name in fields)
            raise InputError(f"{flag}: must have {texts}, the text of an example")
        place = [name for _, name in plain].index(LABEL)
        before = [*plain[:place], (plain[place][0], None)]
        if not any(name or literal.strip() for literal, name in before):
            raise InputError(
                f"{flag}: must have text before {{{LABEL}}}, from which its first token is "
                "predicted"
            )
        return cls(tuple(before), tuple(plain[place + 1 :]), fields, words)

    def fill(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the context of an example, and the answer of each class.

        Args:
            texts: the texts of the example, in the order of :attr:`fields`.
        """
        values = dict(zip(self.fields, texts, strict=True))
        before, after = (
            "".join(literal + (values[name] if name else "") for literal, name in pieces)
            for pieces in (self.before, self.after)
        )
        return (before, *(word + after for word in self.words))


# Methods


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the examples of a task are scored and answered.

    Attributes:
        layout: makes context and answers of the ids of an example's texts.
        score: ``mean`` for the mean log-probability of an answer's tokens, or ``sum``.
        rule: what is predicted, in words.
        template: makes the texts of context and answers; None if the example has them.
        has_threshold: whether the class is 1 if the score of the only answer reaches a threshold,
            which is chosen on the training split.
    """

    layout: Layout
    score: str
    rule: str
    template: Template | None = None
    has_threshold: bool = False

    def texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the texts that the layout takes, from those of an example."""
        return texts if self.template is None else self.template.fill(texts)

    def scores(
        self, sums: npt.NDArray[np.float64], lengths: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return the scores of answers, [n, C].

        Args:
            sums: [n, C], the log-probability of all tokens of each answer in nats; -infinity for an
                answer that is missing.
            lengths: [n, C], their numbers of tokens. An answer of no token keeps its -infinity.
        """
        return sums if self.score == SUM else sums / np.maximum(lengths, 1)


_USUAL = {"sst2": ("{text} very {label}", ("negative", "positive"))}
"""The paper's template of a data set, and the words for its classes."""
_BY_THRESHOLD = ("cola",)


def find_method(
    task: Task, template: str | None = None, labels: str | None = None, score: str | None = None
) -> Method:
    """Return how the paper answers a task without fine-tuning, or how a template says to do it.

    Args:
        task: the task.
        template: a text with fields for the texts of an example and for the label.
        labels: the words for the classes of the task, in their order, with commas between them.
        score: ``mean`` or ``sum`` [mean, but sum with a template].

    Raises:
        InputError: the task needs a template or cannot have one, or these do not fit the task.
    """
    if has_answers(task.layout):
        for name, value in (("template", template), ("labels", labels)):
            if value is not None:
                raise InputError(
                    f"--{name} {shorten(value)}: is for classes, but each example of {task.title} "
                    "has answers of its own; leave it out"
                )
        layout = Continuations(first_answer(task.layout))
        return _method(layout, score or MEAN, "the answer with the highest {}")
    if not isinstance(task.target, Classes):
        raise InputError(
            f"--dataset {task.name}: its labels are grades, for which no words stand; zero-shot "
            "prediction is for classes and for answers"
        )
    if task.name in _BY_THRESHOLD and template is None and labels is None:
        rule = "class 1 if the {} of the sentence reaches a threshold"
        return _method(WholeText(), score or MEAN, rule, has_threshold=True)
    usual_text, usual_words = _USUAL.get(task.name, (None, None))
    text = template or usual_text
    fields = text_names(task.layout)
    if text is None:
        example = "{text1} ? {label} , {text2}" if len(fields) > 1 else "{text} It was {label}"
        raise InputError(
            f"--template: must be given with --dataset {task.name}, for which the paper has none; "
            f"give a text with fields, such as '{example}', and a word for each class with --labels"
        )
    words = _words(task, labels) if labels or usual_words is None else usual_words
    parsed = Template.parse(text, fields, words)
    rule = f"the label with the highest {{}} in '{text}', of {', '.join(words)}"
    return _method(Continuations(), score or SUM, rule, template=parsed)


def _method(layout: Layout, score: str, rule: str, **others: Any) -> Method:
    what = "mean log-probability per token" if score == MEAN else "log-probability"
    return Method(layout=layout, score=score, rule=rule.replace("{}", what, 1), **others)


def _words(task: Task, labels: str | None) -> tuple[str, ...]:
    """Return the word for each class: those that the user gave, else the names of the classes."""
    names = task.target.columns
    shown = ", ".join(shorten(name, 20) for name in names)
    order = f"give a word for each of the classes {shown}, in this order"
    if labels is None:
        if any(name.isdigit() for name in names):
            raise InputError(f"--labels: must be given for {task.title}; {order}")
        return names
    words = tuple(word.strip() for word in labels.split(","))
    flag = f"--labels {shorten(labels)}"
    if len(words) != len(names):
        raise InputError(
            f"{flag}: has {len(words)} words, but {task.title} has {len(names)} classes; {order}"
        )
    if "" in words or len(set(words)) < len(words):
        raise InputError(f"{flag}: a word is empty or is there twice; {order}")
    return words


# Thresholds


def best_threshold(scores: npt.NDArray[np.float64], labels: Labels) -> float:
    """Return the threshold of scores by which class 1 and 0 have the highest Matthews correlation.

    A threshold lies in the middle between two neighbouring scores, or is minus infinity, with which
    every example has class 1. Of several best thresholds the lowest one is returned.

    Args:
        scores: [n]; an example has class 1 if its score is at least the threshold.
        labels: [n], 0 or 1.
    """
    order = np.argsort(scores, kind="stable")
    ordered, own = scores[order], labels[order].astype(np.float64)
    first = np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1]))  # of equal scores
    n, n_positive = len(own), own.sum()
    before = np.append(0.0, own.cumsum())[first]  # examples of class 1 that are predicted as 0
    n_negative_predictions = first.astype(np.float64)
    n_predicted = n - n_negative_predictions
    right = n_positive - before
    # Matthews' correlation of a table of two by two counts is n tp - (tp + fn) (tp + fp), divided
    # by the square root of the product of the four sums of its rows and columns.
    spread = n_positive * (n - n_positive) * n_predicted * n_negative_predictions
    above = n * right - n_positive * n_predicted
    correlation = np.divide(above, np.sqrt(spread), out=np.zeros(len(first)), where=spread > 0)
    best = int(first[correlation.argmax()])
    if best == 0:
        return -np.inf
    low, high = float(ordered[best - 1]), float(ordered[best])
    middle = (low + high) / 2
    return middle if middle > low else high  # no number may lie between two neighbours
