"""Write the demo's two cloze CSVs, or unlabelled stories for pretraining.

    python scripts/make_demo_stories.py
    python scripts/make_demo_stories.py --unlabelled 40000 --out out/demo

The stories come from ``demo_grammar.txt``, beside this file: topics that can end well or badly.
Cloze stories are made in pairs. The two stories of a pair have different topics, the same people
and the same two endings, each of which is right for one of the stories. So each ending is right
exactly as often as it is wrong in each split, and only the story tells which ending is right.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from gpt1.datasets.story_cloze import COLUMNS, TEST_CSV, VALIDATION_CSV, split_rows
from gpt1.runtime.errors import report_errors
from gpt1.runtime.files import atomic_write

GRAMMAR = Path(__file__).resolve().parent / "demo_grammar.txt"
SEED = 2018
STORIES_FILE = "stories.txt"
N_VALIDATION = 960
N_TEST = 400
SHARED_ENDINGS = 0.35  # share of unlabelled stories whose ending is one that fits every topic
AFTERTHOUGHTS = 0.5  # share of unlabelled stories that have a second ending
OUTCOMES = ("happy", "sad")
MIDDLE_OF = {"well": "happy", "badly": "sad"}

Item = TypeVar("Item")


@dataclass
class Topic:
    """One section of the grammar; ``middles`` and ``endings`` have a list for each outcome."""

    name: str
    slots: dict[str, list[str]] = field(default_factory=dict)
    openings: list[str] = field(default_factory=list)
    middles: dict[str, list[str]] = field(default_factory=lambda: {"happy": [], "sad": []})
    endings: dict[str, list[str]] = field(default_factory=lambda: {"happy": [], "sad": []})


class ClozeRow(NamedTuple):
    """A story of four sentences with two endings; ``templates`` are the endings in the grammar."""

    sentences: list[str]
    endings: tuple[str, str]
    label: int
    templates: tuple[str, str]


def read_grammar() -> tuple[Topic, list[Topic]]:
    """Return the shared section of the grammar (names, endings that always fit) and the topics."""
    sections: list[Topic] = []
    for line in GRAMMAR.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("== "):
            sections.append(Topic(line[3:]))
            continue
        kind, text = line.split(": ", 1)
        topic = sections[-1]
        if kind.startswith("$"):
            topic.slots[kind[1:]] = text.split("|")
        elif kind == "open":
            topic.openings.append(text)
        elif kind in MIDDLE_OF:
            topic.middles[MIDDLE_OF[kind]].append(text)
        else:
            topic.endings[kind].append(text)
    return sections[0], sections[1:]


class StoryTeller:
    """Makes random stories of the grammar; the same seed gives the same stories."""

    def __init__(self, seed: int) -> None:
        self.shared, self.topics = read_grammar()
        self._random = random.Random(seed)

    def pick(self, items: Sequence[Item]) -> Item:
        # Python promises the same numbers in later versions for random() only.
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        keys = [self._random.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]

    def cast(self, topic: Topic) -> dict[str, str]:
        """Draw values for all slots of a topic: objects, two names, pronouns of the first name."""
        girl = self.pick([True, False])
        name = self.pick(self.shared.slots["girls" if girl else "boys"])
        everyone = self.shared.slots["girls"] + self.shared.slots["boys"]
        values = {slot: self.pick(choices) for slot, choices in topic.slots.items()}
        values["N"] = name
        values["F"] = self.pick([friend for friend in everyone if friend != name])
        for he, she in (("he", "she"), ("his", "her"), ("him", "her"), ("himself", "herself")):
            values[he] = she if girl else he
        values["He"] = values["he"].capitalize()
        values["His"] = values["his"].capitalize()
        return values

    def fill(self, template: str, values: dict[str, str]) -> str:
        """Return a template's text: choices drawn, slots filled, the first letter a capital."""

        def slot(match: re.Match[str]) -> str:
            value = values[match[2]]
            if not match[1]:
                return value
            return f"{'an' if value[0] in 'aeiouAEIOU' else 'a'} {value}"

        chosen = re.sub(r"\[([^]]*)\]", lambda match: self.pick(match[1].split("|")), template)
        text = re.sub(r"\{(a:)?(\w+)\}", slot, chosen)
        return text[0].upper() + text[1:]

    def four_sentences(self, topic: Topic, outcome: str, values: dict[str, str]) -> list[str]:
        """Return four sentences: an opening and a middle that fits the outcome, two of each."""
        parts = (self.pick(topic.openings), self.pick(topic.middles[outcome]))
        return [self.fill(half, values) for part in parts for half in part.split(" / ")]

    def ending(self, topic: Topic, outcome: str) -> str:
        """Return the template of an ending that fits the outcome."""
        shared = self._random.random() < SHARED_ENDINGS
        return self.pick((self.shared if shared else topic).endings[outcome])

    def closing(self, topic: Topic, outcome: str) -> list[str]:
        """Return the templates of an unlabelled story's end: one ending, or two different ones."""
        ending = self.ending(topic, outcome)
        if self._random.random() >= AFTERTHOUGHTS:
            return [ending]
        others = [other for other in self.shared.endings[outcome] if other != ending]
        return [ending, self.pick(others)]

    def cloze_pair(self, topics: Sequence[Topic]) -> list[ClozeRow]:
        """Return one story of each of two topics; both stories have the same two endings."""
        people = self.cast(self.shared)
        stories, endings, templates = [], [], []
        for topic in topics:
            outcome, values = self.pick(OUTCOMES), {**self.cast(topic), **people}
            stories.append(self.four_sentences(topic, outcome, values))
            templates.append(self.pick(topic.endings[outcome]))
            endings.append(self.fill(templates[-1], values))
        rows = []
        for label, sentences in enumerate(stories):
            order = self.pick(((0, 1), (1, 0)))
            rows.append(
                ClozeRow(
                    sentences,
                    (endings[order[0]], endings[order[1]]),
                    order.index(label),
                    (templates[order[0]], templates[order[1]]),
                )
            )
        return rows


def cloze_files(
    n_validation: int = N_VALIDATION, n_test: int = N_TEST, seed: int = SEED
) -> tuple[list[ClozeRow], list[ClozeRow]]:
    """Return the rows of the validation file and the test file; all stories are different.

    The training and validation splits are made of the validation file. Both stories of a pair are
    in the same split.

    Args:
        n_validation: number of rows of the validation file, even like the sizes of its splits.
        n_test: number of rows of the test file, even.
        seed: seed of all random choices.
    """
    teller = StoryTeller(seed)
    used: set[str] = set()
    validation: dict[int, ClozeRow] = {}
    for places in split_rows(n_validation):
        validation |= zip(places, _cloze_rows(teller, len(places), used), strict=True)
    test = _cloze_rows(teller, n_test, used)
    return [validation[place] for place in range(n_validation)], test


def _cloze_rows(teller: StoryTeller, count: int, used: set[str]) -> list[ClozeRow]:
    """Return ``count`` rows, made in pairs and shuffled, and add their stories to ``used``.

    A story that is in ``used`` already is not returned.
    """
    rows: list[ClozeRow] = []
    while len(rows) < count:
        topic = teller.topics[len(rows) // 2 % len(teller.topics)]
        other = teller.pick([each for each in teller.topics if each is not topic])
        pair = teller.cloze_pair([topic, other])
        texts = {" ".join(row.sentences) for row in pair}
        if not texts & used and pair[0].endings[0] != pair[0].endings[1]:
            used |= texts
            rows += pair
    return teller.shuffled(rows)


def unlabelled_stories(n: int, seed: int) -> Iterator[str]:
    """Yield ``n`` whole stories for pretraining: four sentences and a right ending, as one text.

    Half of the stories have a second, shared ending of the same outcome. Without it no text would
    follow an ending, and a language model would not have to learn what an ending means.

    No story begins with the four sentences of a story in the demo's CSVs (those of :data:`SEED`).
    """
    forbidden = {" ".join(row.sentences) for rows in cloze_files() for row in rows}
    teller = StoryTeller(seed)
    made = 0
    while made < n:
        topic, outcome = teller.pick(teller.topics), teller.pick(OUTCOMES)
        values = teller.cast(topic)
        story = " ".join(teller.four_sentences(topic, outcome, values))
        if story not in forbidden:
            made += 1
            endings = teller.closing(topic, outcome)
            yield " ".join([story, *(teller.fill(ending, values) for ending in endings)])


def write_csv(path: Path, prefix: str, rows: Sequence[ClozeRow]) -> None:
    """Write rows in the format of the real cloze CSVs, with ids such as ``demo-v-0001``."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, row in enumerate(rows, start=1):
            story_id = f"{prefix}-{number:04}"
            writer.writerow([story_id, *row.sentences, *row.endings, row.label + 1])


def write_cloze(out: Path, seed: int) -> int:
    """Write both CSVs into a directory."""
    validation, test = cloze_files(seed=seed)
    write_csv(out / VALIDATION_CSV, "demo-v", validation)
    write_csv(out / TEST_CSV, "demo-t", test)
    print(f"{out}: {len(validation)} and {len(test)} stories")
    return 0


def write_unlabelled(out: Path, n: int, seed: int) -> int:
    """Write ``n`` unlabelled stories into a text file, one per line.

    The file is one document, in which a newline ends a story and another one begins.
    """
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / STORIES_FILE, "w") as file:
        file.writelines(f"{story}\n" for story in unlabelled_stories(n, seed))
    print(f"{out / STORIES_FILE}: {n} stories")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Write the demo's stories.")
    parser.add_argument("--out", default="data/demo", type=Path, help="directory to write into")
    parser.add_argument("--seed", default=SEED, type=int, help="what the stories are drawn from")
    parser.add_argument(
        "--unlabelled",
        type=int,
        metavar="N",
        help=f"write N unlabelled stories into {STORIES_FILE}, in place of the two CSVs",
    )
    args = parser.parse_args(argv)

    def body() -> int:
        if args.unlabelled is None:
            return write_cloze(args.out, args.seed)
        return write_unlabelled(args.out, args.unlabelled, args.seed)

    return report_errors("make_demo_stories", body)


if __name__ == "__main__":
    sys.exit(main())
