"""One settings mechanism for all commands: words, configuration files, Python, and ``--help``."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt1.runtime.errors import InputError
from gpt1.settings import groups
from gpt1.settings.command import (
    Command,
    Values,
    check_group,
    in_arguments,
    naming_arguments,
)
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
        """Find the combination of frying and a lid, which is not allowed."""
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
        (["--minutes", "x", "--minutes", "4"], "minutes", 4),
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
        "  --lid=yes: takes no value; give --lid alone",
        "  --note: a value is missing; give one after it",
        "  --minutes x: must be a whole number",
        "  --heat 2.0: must be at least 0 and less than 1",
        "  --fat lard: must be one of oil, butter",
    ]


def test_a_mistyped_flag_is_one_problem_with_a_guess() -> None:
    expected = "there is no such flag or argument; did you mean --minutes? See --help"
    assert problems("--minuts", "3") == f"--minuts: {expected}"
    assert problems("-minutes", "3") == f"-minutes: {expected}"
    assert problems("minutes=3") == f"minutes=3: {expected}"
    assert problems("--minuts=3", "--fatt", "oil", "--zzz", "-5").splitlines() == [
        "3 problems:",
        f"  --minuts=3: {expected}",
        "  --fatt: there is no such flag or argument; did you mean --fat? See --help",
        "  --zzz: there is no such flag or argument; see --help",
    ]


def test_a_mistyped_flag_may_be_the_one_that_must_be_given() -> None:
    assert problems("--lidd", "soup", command=WITH_DISHES) == (
        "--lidd: there is no such flag or argument; did you mean --lid? See --help"
    )


def test_flags_are_never_abbreviated() -> None:
    assert "no such flag" in problems("--minute", "3")


def test_words_too_many_are_a_problem_each() -> None:
    see = "there is no such flag or argument; see --help"
    assert problems("soup") == f"soup: {see}"
    assert problems("soup", "fish") == f"2 problems:\n  soup: {see}\n  fish: {see}"
    assert problems("x" * 70) == f"{'x' * 60}...: {see}"
    assert problems("a\tb") == f"'a\\tb': {see}"


def test_contradictions_are_looked_for_when_each_value_is_right() -> None:
    assert problems("--lid", "--fat", "butter") == "--lid: not with --fat butter"


def test_arguments_and_repeated_flags() -> None:
    values = WITH_DISHES.parse(["soup", "--spice", "salt", "fish", "--spice=dill", "--lid"])
    assert values[Dishes].dish == ("soup", "fish")
    assert values[Dishes].spice == ("salt", "dill")
    assert values[Cooking].lid


def test_the_same_word_given_twice_is_kept_twice() -> None:
    assert WITH_DISHES.parse(["soup", "soup"])[Dishes].dish == ("soup", "soup")


def test_a_flag_is_no_argument() -> None:
    expected = "-soup: there is no such flag or argument; see --help"
    assert problems("-soup", command=WITH_DISHES) == expected
    assert WITH_DISHES.parse(["-", "soup"])[Dishes].dish == ("-", "soup")
    assert "--dish: there is no such flag" in problems("--dish", "soup", command=WITH_DISHES)


def test_what_is_required_is_asked_for() -> None:
    assert problems("--lid", command=WITH_DISHES) == "DISH: must be given; see --help"
    assert problems("--minutes", "0", command=WITH_DISHES).splitlines() == [
        "2 problems:",
        "  DISH: must be given; see --help",
        "  --minutes 0: must be at least 1",
    ]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where the recipe is."""

    book: str = setting(MISSING, "recipes", argument=True, metavar="FILE")
    second_book: str | None = setting(None, "more of them", argument=True, metavar="FILE")
    shelf: str | None = setting(None, "where books stand", metavar="DIR")
    title: str | None = setting(None, "what to look for")


WITH_BOOK = Command(name="cook", summary="Cook.", groups=(Recipe, Cooking))


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 300, "a/" + "ü" * 128])
def test_a_text_that_no_file_can_be_called(text: str, tmp_path: Path) -> None:
    for name, words in (
        ("--shelf", ["b", "--shelf", text]),
        ("BOOK", [text]),
        ("--config", ["b", "--config", text]),
    ):
        assert problems(*words, command=WITH_BOOK).startswith(f"{name} ")
    path = written(tmp_path / "cook.json", json.dumps({"shelf": text, "book": "b"}))
    assert f"{path}: shelf is " in problems("--config", path, command=WITH_BOOK)


def test_other_texts_may_be_empty_or_long() -> None:
    for text in ("", "x" * 3000):
        assert WITH_BOOK.parse(["b", "--title", text])[Recipe].title == text


def test_an_argument_may_be_left_out_and_stand_after_flags() -> None:
    assert WITH_BOOK.parse(["a", "--lid", "b"])[Recipe] == Recipe(book="a", second_book="b")
    assert WITH_BOOK.parse(["a"])[Recipe].second_book is None
    assert problems("a", "b", "c", command=WITH_BOOK).startswith("c: there is no such flag")


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
    path = written(tmp_path / "cook.json", '{"minutes": 0, "spice": ["salt", 3]}')
    assert problems("soup", "--config", path, command=WITH_DISHES).splitlines() == [
        "2 problems:",
        f"  --config {path}: minutes is 0: must be at least 1",
        f'  --config {path}: spice is ["salt", 3]: must be text, in quotes',
    ]
    path = written(tmp_path / "cook.json", '{"spice": ["salt", "dill"], "dish": ["soup"]}')
    assert WITH_DISHES.parse(["--config", path])[Dishes] == Dishes(
        dish=("soup",), spice=("salt", "dill")
    )


@pytest.mark.parametrize(
    ("name", "text"), [("c.json", "{"), ("c.json", "[1]"), ("c.toml", "a b"), ("c.jsonl", "")]
)
def test_a_file_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path / name, text)
    assert problems("--config", path).startswith(f"--config {path}: ")


def test_a_missing_file_is_one_problem_among_others(tmp_path: Path) -> None:
    path = str(tmp_path / "none.json")
    assert path in problems("--config", path)
    found = problems("--config", path, "--minutes", "0")
    assert found.startswith("2 problems:\n")
    assert path in found


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


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite(number: float) -> None:
    with pytest.raises(InputError, match=r"salt=.*: must be a finite number"):
        PLAIN.values({"salt": number})
    assert problems("--salt", str(number)).endswith(": must be a finite number")


def test_an_argument_that_must_be_given() -> None:
    with pytest.raises(InputError, match=r"^dish: must be given$"):
        WITH_DISHES.values({})
    with pytest.raises(
        InputError, match=r"^dishes: there is no such argument; did you mean dish\?$"
    ):
        WITH_DISHES.values({"dishes": ("soup",)})


def test_a_group_that_python_makes_itself() -> None:
    check_group(Cooking(fat="butter"))
    with pytest.raises(InputError) as caught:
        check_group(Cooking(minutes=0, heat=2, lid=True, fat="butter"))
    assert str(caught.value).splitlines() == [
        "2 problems:",
        "  minutes=0: must be at least 1",
        "  heat=2: must be at least 0 and less than 1",
    ]
    with pytest.raises(InputError, match=r"^lid: not with fat butter$"):
        check_group(Cooking(lid=True, fat="butter"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--lr 0.1: too high", "lr=0.1: too high"),
        ("--lr 6.25e-05, or --n_iter -1.", "lr=6.25e-05, or n_iter=-1."),
        ("give --submit too", "give submit too"),
        ("--desc 7days: taken", "desc 7days: taken"),
        ("give --force, a file a--lr or gpt1 --help", "give --force, a file a--lr or gpt1 --help"),
    ],
)
def test_flags_in_a_message_become_arguments(message: str, expected: str) -> None:
    names = {"lr", "n_iter", "submit", "desc"}
    assert in_arguments(message, names) == expected
    with pytest.raises(InputError) as caught, naming_arguments(names):
        raise InputError(message)
    assert str(caught.value) == expected


def test_a_group_that_python_makes_of_wrong_types() -> None:
    with pytest.raises(InputError, match=r"^minutes='5': must be of type int$"):
        check_group(Cooking(minutes="5", fat="butter"))  # type: ignore[arg-type]


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
    assert WITH_BOOK.help().startswith("usage: gpt1 cook BOOK [SECOND_BOOK] [--flag VALUE ...]\n")
    for line in ("\n  BOOK  ", "\n  --shelf DIR  ", "\n  --title TEXT  ", "\n  --config FILE  "):
        assert line in WITH_BOOK.help()


# ---------------------------------------------------------------------- the flags of training


TRAIN = Command(
    name="train",
    summary="Fine-tune.",
    groups=(
        groups.SourceSettings,
        groups.ModelSettings,
        groups.OptimizerSettings,
        groups.LoopSettings,
        groups.DeviceSettings,
        groups.OutputSettings,
    ),
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("desc", "run-1.2", "run-1.2"),
        ("seed", "0", 0),
        ("n_iter", "0", 0),
        ("lr", "1e-3", 1e-3),
        ("lr", "0", 0.0),
        ("lr_warmup", "1", 1.0),
        ("n_ctx", "6", 6),
        ("l2", "0", 0.0),
        ("max_grad_norm", "-1", -1.0),
        ("n_transfer", "-1", -1),
        ("lr_schedule", "warmup_cosine", "warmup_cosine"),
        ("precision", "bf16", "bf16"),
        ("embd_pdrop", "0", 0.0),
        ("init_params", "some/where.jl", "some/where.jl"),
    ],
)
def test_a_setting_of_training_is_taken_over(name: str, text: str, value: Any) -> None:
    values = TRAIN.parse([f"--{name}", text])
    assert values.flat() == {**TRAIN.parse([]).flat(), name: value}
    assert type(values.flat()[name]) is type(value)
    assert values.given == {name}


WHOLE, NUMBER = "must be a whole number", "must be a number"
FINITE, RATE = "must be a finite number", "must be at least 0 and less than 1"
NO_SHARE = "must be from 0 to 1: it is a share of all updates, not a number of updates"
PLAIN_NAME = "must be a name without slashes, because log and save files are named after it"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seed", "x", WHOLE),
        ("seed", "1.5", WHOLE),
        ("seed", "-1", "must be at least 0 and less than 2**32"),
        ("seed", str(2**32), "must be at least 0 and less than 2**32"),
        ("n_iter", "-1", "must be at least 0"),
        ("n_iter", "1e3", WHOLE),
        ("n_batch", "0", "must be at least 1"),
        ("n_gpu", "0", "must be at least 1"),
        ("n_ctx", "5", "must be at least 6"),
        ("n_embd", "0", "must be at least 1"),
        ("n_head", "-3", "must be at least 1"),
        ("n_layer", "0", "must be at least 1"),
        ("n_transfer", "-2", "must be at least -1"),
        ("save_every", "-1", "must be at least 0"),
        ("lr", "-1", "must be at least 0"),
        ("lr", "nan", FINITE),
        ("lr", "inf", FINITE),
        ("lr", "fast", NUMBER),
        ("lr_warmup", "1.5", NO_SHARE),
        ("lr_warmup", "-0.1", NO_SHARE),
        ("lm_coef", "-0.5", "must be at least 0; the original treats a negative value as 0"),
        ("l2", "-1", "must be at least 0; the original treats a negative value as 0"),
        ("lm_coef", "nan", FINITE),
        ("max_grad_norm", "nan", FINITE),
        ("embd_pdrop", "1", RATE),
        ("attn_pdrop", "-0.1", "must be at least 0; the original treats a negative value as 0"),
        ("resid_pdrop", "nan", FINITE),
        ("clf_pdrop", "2", RATE),
        ("b1", "1", RATE),
        ("b2", "1", RATE),
        ("e", "0", "must be greater than 0"),
        ("opt", "sgd", "must be one of adam"),
        ("afn", "tanh", "must be one of gelu, relu, swish"),
        ("lr_schedule", "linear", "must be one of warmup_linear, warmup_cosine, warmup_constant"),
        ("dataset", "sst", "must be one of rocstories, own"),
        ("precision", "fp16", "must be one of fp32, tf32, bf16"),
        ("spacy_rules", "3", "must be one of 2.0, installed"),
        ("desc", "a/b", PLAIN_NAME),
        ("desc", "../up", PLAIN_NAME),
        ("desc", "a\\b", PLAIN_NAME),
        ("desc", "..", PLAIN_NAME),
        ("desc", "", PLAIN_NAME),
        (
            "desc",
            "x" * 101,
            "must be at most 100 characters, because log and save files are named after it",
        ),
        ("desc", "漢" * 90, "must be a name that a file can have"),
        ("log_dir", "", "must not be empty"),
    ],
)
def test_a_wrong_setting_of_training_is_refused_by_name(name: str, text: str, message: str) -> None:
    found = problems(f"--{name}", text, command=TRAIN)
    assert found.startswith(f"--{name} {text[:60]}")
    assert found.endswith(f": {message}")
    assert "\n" not in found


def test_what_is_wrong_about_training_comes_in_one_message() -> None:
    wrong = ["--n_iter", "none", "--lr", "-5", "--afn", "tanh", "--desc", "a/b", "--colour", "red"]
    found = problems(*wrong, "--seed", "3", command=TRAIN)
    assert found.splitlines() == [
        "5 problems:",
        "  --colour: there is no such flag or argument; see --help",
        "  --n_iter none: must be a whole number",
        "  --lr -5.0: must be at least 0",
        "  --afn tanh: must be one of gelu, relu, swish",
        f"  --desc a/b: {PLAIN_NAME}",
    ]


@pytest.mark.parametrize("word", ["--n_itr", "--n_it", "n_iter", "-n_iter"])
def test_a_mistyped_flag_of_training(word: str) -> None:
    """A shortened flag is refused, too: a later version may have two flags that begin with it."""
    expected = "there is no such flag or argument; did you mean --n_iter? See --help"
    assert problems(word, *(["2"] if word.startswith("-") else []), command=TRAIN) == (
        f"{word}: {expected}"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr"], "--lr: a value is missing; give one after it"),
        (["--lr", "--submit"], "--lr: a value is missing; give one after it"),
        (["--submit=yes"], "--submit=yes: takes no value; give --submit alone"),
        (["--submit", "yes"], "yes: there is no such flag or argument; see --help"),
        (["--submit", "-1"], "-1: there is no such flag or argument; see --help"),  # not --b1
    ],
)
def test_a_value_of_training_too_few_or_too_many(words: list[str], message: str) -> None:
    assert problems(*words, command=TRAIN) == message


def test_the_help_of_training_shows_choices_places_and_groups() -> None:
    text = TRAIN.help()
    for line in (
        "\ndata and pretrained model:\n",
        "\noptimizer and learning-rate schedule:\n",
        "\nresults:\n",
        "--precision {fp32,tf32,bf16}",
        "--save_dir DIR",
        "--init_params FILE",
        "--lr X ",
        "[6.25e-05]",
    ):
        assert line in text
    assert text.partition("\n\n")[0].count("\n") < 5


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_help_of_training_fits_80_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    longest = max(map(len, TRAIN.help().splitlines()))
    assert longest <= 80 if columns == "80" else 80 < longest <= 200
