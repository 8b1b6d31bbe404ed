"""One settings mechanism for all commands: words, configuration files, Python, and ``--help``."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt1.runtime.errors import InputError
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, between, fraction, setting


@dataclass(frozen=True, kw_only=True)
class Cooking:
    """How to cook."""

    minutes: int = setting(10, "time", at_least(1))
    heat: float = setting(0.5, "share of full heat", fraction, may_change=True)
    lid: bool = setting(False, "cover it")
    fat: str = setting("oil", "what to fry in", choices=("oil", "butter"))
    note: str | None = setting(None, "what to remember [nothing]")
    salt: float | None = setting(None, "grams", between(0, 9))

    def contradictions(self) -> list[str]:
        """Nobody covers what is fried in butter."""
        return ["--lid: not with --fat butter"] if self.lid and self.fat == "butter" else []


@dataclass(frozen=True, kw_only=True)
class Dishes:
    """What to cook."""

    dish: tuple[str, ...] = setting(MISSING, "dishes", argument=True)
    spice: tuple[str, ...] = setting((), "may be given again")


PLAIN = Command(name="cook", summary="Cook.", groups=(Cooking,), examples="  gpt1 cook")
WITH_DISHES = Command(name="cook", summary="Cook.", groups=(Dishes, Cooking))


def cooking(*words: str) -> Cooking:
    return PLAIN.parse(words)[Cooking]


def problems(*words: str, command: Command = PLAIN) -> str:
    with pytest.raises(InputError) as caught:
        command.parse(words)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_defaults() -> None:
    assert cooking() == Cooking()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--minutes", "3"], "minutes", 3),
        (["--minutes=3"], "minutes", 3),
        (["--heat", "1e-1"], "heat", 0.1),
        (["--salt", "-0"], "salt", 0.0),
        (["--lid"], "lid", True),
        (["--fat", "butter"], "fat", "butter"),
        (["--note", "a b"], "note", "a b"),
        (["--minutes", "3", "--minutes", "4"], "minutes", 4),
    ],
)
def test_words_become_values(words: list[str], name: str, value: object) -> None:
    assert getattr(cooking(*words), name) == value
    assert PLAIN.parse(words).given == {name}


def test_a_negative_number_is_a_value_and_no_flag() -> None:
    assert problems("--heat", "-1e-3") == "--heat -0.001: must be at least 0 and less than 1"


def test_all_problems_come_in_one_message() -> None:
    text = problems("--minutes", "x", "--heat", "2", "--lid=yes", "--fat", "lard", "--note")
    assert text.splitlines() == [
        "5 problems:",
        "  --lid=yes: takes no value; give --lid",
        "  --note: a value is missing; give one after it",
        "  --minutes x: must be a whole number",
        "  --heat 2.0: must be at least 0 and less than 1",
        "  --fat lard: must be one of oil, butter",
    ]


def test_a_mistyped_flag_is_one_problem_with_a_guess() -> None:
    expected = "--minuts: there is no such flag or argument; did you mean minutes?; see --help"
    assert problems("--minuts", "3") == expected


def test_flags_are_never_abbreviated() -> None:
    assert "no such flag" in problems("--minute", "3")


def test_a_word_too_many() -> None:
    assert problems("soup") == "soup: there is no such flag or argument; see --help"


def test_contradictions_are_looked_for_when_each_value_is_right() -> None:
    assert problems("--lid", "--fat", "butter") == "--lid: not with --fat butter"


def test_arguments_and_repeated_flags() -> None:
    values = WITH_DISHES.parse(["soup", "--spice", "salt", "fish", "--spice=dill", "--lid"])
    assert values[Dishes].dish == ("soup", "fish")
    assert values[Dishes].spice == ("salt", "dill")
    assert values[Cooking].lid


def test_the_same_word_given_twice_is_kept_twice() -> None:
    assert WITH_DISHES.parse(["soup", "soup"])[Dishes].dish == ("soup", "soup")


def test_what_is_required_is_asked_for() -> None:
    assert problems("--lid", command=WITH_DISHES) == "DISH: must be given"


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 300])
def test_a_text_that_no_file_can_be_called(text: str) -> None:
    assert "--note" in problems("--note", text)


# ------------------------------------------------------------------------- configuration


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


TOML = 'minutes = 3\nheat = 0.25\nlid = true\nfat = "butter"\n'


@pytest.mark.parametrize("kind", ["toml", "json", "jsonl"])
def test_a_file_gives_the_same_fields(tmp_path: Path, kind: str) -> None:
    if kind == "toml" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no TOML reader")
    table: dict[str, Any] = {"minutes": 3, "heat": 0.25, "fat": "butter", "note": None}
    texts = {
        "toml": 'minutes = 3\nheat = 0.25\nfat = "butter"\n',
        "json": json.dumps(table),
        "jsonl": json.dumps({**table, "time": 1.5, "gpt1_version": "1"}) + '\n{"n_updates": 3}\n',
    }
    path = written(tmp_path / f"cook.{kind}", texts[kind])
    values = PLAIN.parse(["--config", path])
    assert values[Cooking] == Cooking(minutes=3, heat=0.25, fat="butter")
    assert values.given == {"minutes", "heat", "fat"}


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "cook.json", '{"minutes": 3, "heat": 0.25}')
    for words in (["--config", path, "--minutes", "7"], ["--minutes", "7", "--config", path]):
        assert PLAIN.parse(words)[Cooking] == Cooking(minutes=7, heat=0.25)


def test_whole_numbers_stand_for_fractions(tmp_path: Path) -> None:
    assert PLAIN.parse(["--config", written(tmp_path / "c.json", '{"heat": 0}')])[Cooking].heat == 0


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('{"minuts": 3}', "minuts: there is no such setting; did you mean minutes?"),
        ('{"minutes": "soon"}', 'minutes is "soon": must be a whole number'),
        ('{"minutes": true}', "minutes is true: must be of type int"),
        ('{"lid": 1}', "lid is 1: must be of type bool"),
        ('{"note": 3}', "note is 3: must be text, in quotes"),
        ('{"minutes": [1]}', "minutes is [1]: must be of type int"),
    ],
)
def test_a_mistake_in_a_file(tmp_path: Path, table: str, expected: str) -> None:
    path = written(tmp_path / "cook.json", table)
    assert problems("--config", path) == f"--config {path}: {expected}"


def test_a_value_of_a_file_is_checked_like_one_of_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path / "cook.json", '{"minutes": 0}')
    assert problems("--config", path) == "--minutes 0: must be at least 1"


@pytest.mark.parametrize(
    ("name", "text"), [("c.json", "{"), ("c.json", "[1]"), ("c.toml", "a b"), ("c.jsonl", "")]
)
def test_a_file_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path / name, text)
    assert problems("--config", path).startswith(f"--config {path}: ")


def test_a_missing_file(tmp_path: Path) -> None:
    assert str(tmp_path / "none.json") in problems("--config", str(tmp_path / "none.json"))


# -------------------------------------------------------------------------------- Python


def test_values_from_python() -> None:
    assert PLAIN.values({"minutes": 3, "heat": 0})[Cooking] == Cooking(minutes=3, heat=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"minuts": 3}, "minuts: there is no such argument; did you mean minutes?"),
        ({"minutes": 0}, "minutes=0: must be at least 1"),
        ({"minutes": "3"}, "minutes='3': must be of type int"),
        ({"minutes": True}, "minutes=True: must be of type int"),
        ({"lid": 1}, "lid=1: must be of type bool"),
        ({"fat": "lard"}, "fat='lard': must be one of oil, butter"),
    ],
)
def test_a_mistake_in_python_is_told_in_terms_of_arguments(
    given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        PLAIN.values(given)
    assert str(caught.value) == expected


def test_values_can_be_changed_and_flattened() -> None:
    values = WITH_DISHES.parse(["soup", "--lid"])
    changed = values.changed(minutes=1, spice=("dill",))
    assert isinstance(changed, Values)
    assert changed.given == values.given
    assert changed.flat() == {**values.flat(), "minutes": 1, "spice": ("dill",)}
    assert values[Cooking].minutes == 10


# ---------------------------------------------------------------------------------- help


def test_help_shows_groups_choices_defaults_and_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        PLAIN.parse(["--minutes", "x", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: gpt1 cook [--flag VALUE ...]\n\nCook.\n\nhow to cook:\n")
    for line in ("--fat {oil,butter}", "--minutes N", "--heat X", "time [10]", "  gpt1 cook"):
        assert line in text
    assert "what to remember [nothing]\n" in text
    assert "cover it\n" in text


def test_usage_names_the_arguments() -> None:
    assert WITH_DISHES.help().startswith("usage: gpt1 cook DISH ... [--flag VALUE ...]\n")
