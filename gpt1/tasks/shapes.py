"""The shapes of a user's task by the words of ``--shape``, and what the texts are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpt1.tasks.layouts import (
    Choices,
    Classification,
    Entailment,
    Layout,
    Similarity,
    StoryChoices,
)

SHAPES: dict[str, Layout] = {
    "classification": Classification(),
    "entailment": Entailment(),
    "similarity": Similarity(),
    "choice": Choices(),
}

_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")  # ftfy removes these codes of terminals, too

_NAMES: dict[type, tuple[str, ...]] = {
    Classification: ("text",),
    Entailment: ("text1", "text2"),
    Similarity: ("text1", "text2"),
    StoryChoices: ("story", "ending1", "ending2"),
}


def has_answers(layout: Layout) -> bool:
    """Return whether an example has several answers, of which one is right."""
    return isinstance(layout, Choices | StoryChoices)


def text_names(layout: Layout, n_texts: int = 0) -> tuple[str, ...]:
    """Return what the texts of an example are called, in the order that the layout takes.

    Args:
        layout: the layout of the task.
        n_texts: the number of texts of an example; only :class:`Choices` allows more than the
            fewest, which have two answers.
    """
    if not isinstance(layout, Choices):
        return _NAMES[type(layout)]
    begin = ("context", "question") if layout.has_question else ("context",)
    n_answers = max(2, n_texts - len(begin))
    return (*begin, *(f"answer{number}" for number in range(1, n_answers + 1)))


def first_answer(layout: Layout) -> int:
    """Return which text of an example is the first answer, counted from 0."""
    return 2 if isinstance(layout, Choices) and layout.has_question else 1


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character, so that it has no tokens either."""
    return not any(c.isprintable() and not c.isspace() for c in _COLOUR.sub("", text))


def are_texts(layout: Layout, texts: object) -> bool:
    """Return whether a value is a sequence of as many texts as the layout takes."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        return False
    return len(texts) == len(text_names(layout, len(texts))) and all(
        isinstance(text, str) for text in texts
    )
