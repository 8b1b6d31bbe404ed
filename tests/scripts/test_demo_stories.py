"""The demo's stories are reproducible and correct English; endings alone give nothing away."""

from __future__ import annotations

import csv
import importlib.util
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gpt1.datasets.story_cloze import (
    COLUMNS,
    TEST_CSV,
    VALIDATION_CSV,
    Cloze,
    read_cloze,
    rocstories,
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "data" / "demo"


def sentences(text: str) -> list[str]:
    """Split a text after each full stop, which may be inside or outside of closing quotes."""
    return re.split(r"""(?:(?<=[.!?])|(?<=[.!?]")) (?=["A-Z])""", text)


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The script as a module, since scripts/ is not a package."""
    path = ROOT / "scripts" / "make_demo_stories.py"
    spec = importlib.util.spec_from_file_location("make_demo_stories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses need the module in sys.modules
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits() -> tuple[Cloze, Cloze, Cloze]:
    return rocstories(DEMO)


def test_regenerating_gives_the_same_bytes(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.main(["--out", str(tmp_path)]) == 0
    for name in (VALIDATION_CSV, TEST_CSV):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_unlabelled_stories_are_the_lines_of_a_text(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.main(["--out", str(tmp_path / "new"), "--unlabelled", "20", "--seed", "3"]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == demo.STORIES_FILE
    assert path.read_text() == "".join(f"{line}\n" for line in demo.unlabelled_stories(20, 3))


def test_another_seed_gives_other_stories(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.main(["--out", str(tmp_path), "--seed", "1"]) == 0
    ours, theirs = read_cloze(DEMO / TEST_CSV), read_cloze(tmp_path / TEST_CSV)
    assert len(set(ours.stories) & set(theirs.stories)) < 0.05 * len(ours.stories)


@pytest.mark.parametrize(
    ("name", "prefix", "count"), [(VALIDATION_CSV, "demo-v", 960), (TEST_CSV, "demo-t", 400)]
)
def test_files_have_the_real_format(name: str, prefix: str, count: int) -> None:
    assert (DEMO / name).stat().st_size < 1_000_000
    with (DEMO / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, strict=True))
    assert tuple(rows[0]) == COLUMNS
    assert [row[0] for row in rows[1:]] == [f"{prefix}-{i:04}" for i in range(1, count + 1)]
    labels = Counter(row[-1] for row in rows[1:])
    assert set(labels) == {"1", "2"}
    assert 0.4 < labels["1"] / count < 0.6


def test_split_sizes(splits: tuple[Cloze, Cloze, Cloze]) -> None:
    assert [len(split.labels) for split in splits] == [768, 192, 400]


def test_stories_are_sentences_of_fitting_length(splits: tuple[Cloze, Cloze, Cloze]) -> None:
    stories = [
        f"{story} {(ending1, ending2)[label]}"
        for split in splits
        for story, ending1, ending2, label in zip(*split, strict=True)
    ]
    assert 35 <= statistics.mean(len(story.split()) for story in stories) <= 60
    for story in stories:
        assert len(sentences(story)) in (5, 6), story  # quoted speech of two sentences
        assert story[-1] in '."!?', story
        assert not re.search(r"[\[\]{}|/]|  |\ba [aeio]|\ban (?!hour)[^aeiou]", story), story


def test_no_story_is_told_twice(splits: tuple[Cloze, Cloze, Cloze]) -> None:
    stories = [story for split in splits for story in split.stories]
    assert len(set(stories)) == len(stories)


def test_each_ending_is_right_as_often_as_wrong_in_each_split(
    splits: tuple[Cloze, Cloze, Cloze],
) -> None:
    for split in splits:
        pairs = list(zip(split.endings1, split.endings2, strict=True))
        right = Counter(pair[label] for pair, label in zip(pairs, split.labels, strict=True))
        wrong = Counter(pair[1 - label] for pair, label in zip(pairs, split.labels, strict=True))
        assert right == wrong


def test_right_ending_belongs_to_the_storys_topic_and_the_wrong_one_does_not(
    demo: ModuleType,
) -> None:
    """This holds for both labels, and both stories have the same people."""
    _, topics = demo.read_grammar()
    teller = demo.StoryTeller(3)
    seen = Counter()
    for topic, other in zip(topics, topics[1:] + topics[:1], strict=True):
        for row, own in zip(teller.cloze_pair([topic, other]), (topic, other), strict=True):
            templates = own.endings["happy"] + own.endings["sad"]
            assert row.templates[row.label] in templates
            assert row.templates[1 - row.label] not in templates
            seen[row.label] += 1
    assert min(seen.values()) > 20


def test_grammar_is_rich_and_its_outcomes_are_apart(demo: ModuleType) -> None:
    shared, topics = demo.read_grammar()
    assert len(topics) >= 30
    for topic in topics:
        assert len(topic.openings) >= 2, topic.name
        for parts in (topic.middles, topic.endings):
            assert min(len(parts["happy"]), len(parts["sad"])) >= 3, topic.name
            assert not set(parts["happy"]) & set(parts["sad"]), topic.name
        halves = [
            text.count(" / ")
            for text in [*topic.openings, *topic.middles["happy"], *topic.middles["sad"]]
        ]
        assert set(halves) == {1}, topic.name
    assert not set(shared.endings["happy"]) & set(shared.endings["sad"])


def test_endings_alone_are_at_chance(splits: tuple[Cloze, Cloze, Cloze]) -> None:
    """A bag-of-words classifier trained on endings without stories is right by chance only."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, _, test = splits
    words = CountVectorizer(ngram_range=(1, 2)).fit(train.endings1 + train.endings2)

    def difference(cloze: Cloze):  # type: ignore[no-untyped-def]
        return words.transform(cloze.endings1) - words.transform(cloze.endings2)

    classifier = LogisticRegression(max_iter=1000).fit(difference(train), train.labels)
    accuracy = classifier.score(difference(test), test.labels)
    assert accuracy < 0.58
    flipped = [1 - label for label in test.labels]
    assert classifier.score(difference(test), flipped) < 0.58


def test_story_tells_the_ending(demo: ModuleType, splits: tuple[Cloze, Cloze, Cloze]) -> None:
    """Co-occurrence of words in unlabelled stories suffices to choose well above chance."""
    from sklearn.feature_extraction.text import CountVectorizer

    told = [sentences(story) for story in demo.unlabelled_stories(6000, seed=1)]
    in_story = CountVectorizer(binary=True, min_df=5)
    in_ending = CountVectorizer(binary=True, min_df=5)
    x = in_story.fit_transform([" ".join(parts[:-1]) for parts in told])
    y = in_ending.fit_transform([parts[-1] for parts in told])
    together = (x.T @ y).toarray() + 0.1
    expected = np.outer(x.sum(axis=0), y.sum(axis=0)) / len(told) + 0.1
    association = np.log(together / expected)

    def score(stories: list[str], endings: list[str]) -> np.ndarray:
        words = in_story.transform(stories) @ association
        return (in_ending.transform(endings).multiply(words)).sum(axis=1).A1

    test = splits[2]
    second = score(test.stories, test.endings2) > score(test.stories, test.endings1)
    assert np.mean(second == np.array(test.labels)) > 0.65


def test_unlabelled_stories_are_reproducible_and_new(
    demo: ModuleType, splits: tuple[Cloze, Cloze, Cloze]
) -> None:
    stories = list(demo.unlabelled_stories(3000, seed=5))
    assert stories == list(demo.unlabelled_stories(3000, seed=5))
    assert stories != list(demo.unlabelled_stories(3000, seed=6))
    assert len(stories) == 3000
    assert len(set(stories)) > 2950
    told = tuple(story + " " for split in splits for story in split.stories)
    assert not any(story.startswith(told) for story in stories)


def test_half_of_the_unlabelled_stories_go_on_in_the_same_mood(demo: ModuleType) -> None:
    """The text after an ending makes a language model learn what the ending means."""
    teller = demo.StoryTeller(8)
    closings = [
        (outcome, teller.closing(topic, outcome))
        for topic in teller.topics
        for outcome in demo.OUTCOMES * 10
    ]
    longer = [(outcome, endings) for outcome, endings in closings if len(endings) == 2]
    assert 0.4 < len(longer) / len(closings) < 0.6
    for outcome, (first, second) in longer:
        assert second in teller.shared.endings[outcome]
        assert second != first


def test_unlabelled_stories_leave_out_a_cloze_story(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above could pass by luck; here the first story made is a forbidden one."""
    teller = demo.StoryTeller(5)
    topic, outcome = teller.pick(teller.topics), teller.pick(demo.OUTCOMES)
    told = teller.four_sentences(topic, outcome, teller.cast(topic))
    assert next(demo.unlabelled_stories(1, seed=5)).startswith(" ".join(told))
    row = demo.ClozeRow(told, ("", ""), 0, ("", ""))
    monkeypatch.setattr(demo, "cloze_files", lambda: ([row], []))
    assert not next(demo.unlabelled_stories(1, seed=5)).startswith(" ".join(told))
