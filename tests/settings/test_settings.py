"""Flags: the original's names and defaults, refused values, and the rule for the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt1.datasets.sst2 import SST2
from gpt1.datasets.story_cloze import ROCSTORIES
from gpt1.runtime.errors import InputError
from gpt1.settings.groups import DATASETS
from gpt1.settings.training import DEMO_DEFAULTS, TRAIN, Settings, parse
from gpt1.training.sources import Sources, find_sources

# Every flag of the original that takes a value, with its default. The original has no default
# for desc and dataset; its paths into model/ and data/ are tested with the demo's rule below.
ORIGINAL: dict[str, Any] = {
    "log_dir": "log/",
    "save_dir": "save/",
    "submission_dir": "submission/",
    "submit": False,
    "analysis": False,
    "seed": 42,
    "n_iter": 3,
    "n_batch": 8,
    "max_grad_norm": 1.0,
    "lr": 6.25e-5,
    "lr_warmup": 0.002,
    "n_ctx": 512,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "clf_pdrop": 0.1,
    "l2": 0.01,
    "vector_l2": False,
    "n_gpu": 4,
    "opt": "adam",
    "afn": "gelu",
    "lr_schedule": "warmup_linear",
    "n_transfer": 12,
    "lm_coef": 0.5,
    "b1": 0.9,
    "b2": 0.999,
    "e": 1e-8,
}
BY_THE_CHECKPOINT = ("n_embd", "n_head", "n_layer", "n_transfer")
ORIGINAL_WITHOUT_DEFAULT = ("desc", "dataset", "data_dir", "encoder_path", "bpe_path")
OURS = (
    *("model_dir", "init_params", "device", "precision", "resume", "spacy_rules", "save_every"),
    "share_prefix",
    "compile",
    *("fast", "deterministic", "probs", "tensorboard", "quiet", "recompute", "cache_dir"),
    *("shape", "train_file", "valid_file", "test_file", "text_columns", "label_column"),
    *("metric", "positive"),
)
SWITCHES = (
    *("submit", "analysis", "vector_l2", "resume", "share_prefix", "compile", "fast"),
    *("deterministic", "probs", "quiet"),
)

FLAGS = tuple(Settings().as_flags())
ROOT = Path(__file__).parents[2]
CSVS = ("val.csv", "test.csv")
VOCABULARY = ("encoder_bpe_40000.json", "vocab_40000.bpe")


def parsed(*words: str) -> Settings:
    return parse(words)


def complaint(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        parsed(*words)
    return str(caught.value)


# ------------------------------------------------------------------------------- defaults


def test_defaults_are_the_originals() -> None:
    settings = parsed()
    for name, value in ORIGINAL.items():
        if name in BY_THE_CHECKPOINT:
            assert getattr(settings, name) is None, name
        else:
            assert getattr(settings, name) == value, name


def test_there_are_no_other_flags() -> None:
    expected = {*ORIGINAL, *ORIGINAL_WITHOUT_DEFAULT, *OURS}
    assert set(FLAGS) == expected


@pytest.mark.parametrize("model", ["released", "nothing"])
def test_what_the_checkpoint_decides_is_the_originals_default(model: str, tmp_path: Path) -> None:
    """Sizes that are not given are those of the checkpoint, or without one the released sizes."""
    import released

    from gpt1.batches.task_data import TaskData
    from gpt1.training.prepare import resolve

    if model == "released":
        table = released.released_layout(768, 12, 512, 40478)
        (tmp_path / "params_shapes.json").write_text(str(table))
    settings = parsed() if model == "released" else parsed("--n_transfer", "-1")
    sources = Sources(
        data_dir=tmp_path,
        model_dir=tmp_path,
        encoder_path=tmp_path / "encoder",
        bpe_path=tmp_path / "merges",
        demo=False,
    )
    nothing: Any = None  # The arrays are not used.
    data = TaskData(
        task=ROCSTORIES,
        train=nothing,
        valid=nothing,
        predicted={},
        labels={},
        n_vocab=40478,
        n_ctx=77,
    )
    settings, config = resolve(settings, sources, data)
    assert (config.n_embd, config.n_head, config.n_layer) == (768, 12, 12)
    assert (config.n_vocab, config.n_special, config.n_ctx) == (40478, 3, 77)


def test_desc_is_the_data_set_where_none_is_given() -> None:
    assert parsed().name == parsed().dataset == "rocstories"
    assert parsed("--desc", "mine").name == "mine"


def test_a_batch_is_that_of_all_towers() -> None:
    assert parsed().batch_size == 32
    assert parsed("--n_batch", "3", "--n_gpu", "5").batch_size == 15


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("desc", "run-1.2", "run-1.2"),
        ("seed", "0", 0),
        ("n_iter", "7", 7),
        ("n_iter", "0", 0),
        ("lr", "1e-3", 1e-3),
        ("lr", "0", 0.0),
        ("lr_warmup", "1", 1.0),
        ("n_ctx", "6", 6),
        ("l2", "0", 0.0),
        ("max_grad_norm", "-1", -1.0),
        ("n_transfer", "-1", -1),
        ("lr_schedule", "warmup_cosine", "warmup_cosine"),
        ("afn", "swish", "swish"),
        ("precision", "bf16", "bf16"),
        ("embd_pdrop", "0", 0.0),
        ("save_every", "10", 10),
        ("init_params", "some/where.jl", "some/where.jl"),
    ],
)
def test_a_value_is_taken_over(name: str, text: str, value: Any) -> None:
    settings = parsed(f"--{name}", text)
    found = getattr(settings, name)
    assert (found, type(found)) == (value, type(value))
    assert settings.given == {name}
    assert settings.as_flags() == {**parsed().as_flags(), name: value}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_off_until_given(name: str) -> None:
    assert getattr(parsed(), name) is False
    assert getattr(parsed(f"--{name}"), name) is True


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
        ("seed", str(2**32), "must be at least 0 and less than 2**32"),  # NumPy takes 32 bits
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
        ("dataset", "sst", f"must be one of {', '.join(DATASETS)}"),
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
def test_a_wrong_value_is_refused_by_name(name: str, text: str, message: str) -> None:
    found = complaint(f"--{name}", text)
    assert found.startswith(f"--{name} {text[:60]}")
    assert found.endswith(f": {message}")
    assert "\n" not in found


def test_all_wrong_flags_come_in_one_message() -> None:
    wrong = ["--n_iter", "none", "--lr", "-5", "--afn", "tanh", "--desc", "a/b", "--colour", "red"]
    found = complaint(*wrong, "--seed", "3")
    assert found.splitlines() == [
        "5 problems:",
        "  --colour: there is no such flag or argument; see --help",
        "  --n_iter none: must be a whole number",
        "  --lr -5.0: must be at least 0",
        "  --afn tanh: must be one of gelu, relu, swish",
        f"  --desc a/b: {PLAIN_NAME}",
    ]


@pytest.mark.parametrize("word", ["--n_itr", "--n_iters", "--n_it", "n_iter", "-n_iter"])
def test_a_mistyped_flag_is_refused(word: str) -> None:
    """A shortened flag is refused, too: a later version may have two flags that begin with it."""
    expected = "there is no such flag or argument; did you mean --n_iter? See --help"
    assert complaint(word, *(["2"] if word.startswith("-") else [])) == f"{word}: {expected}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr"], "--lr: a value is missing; give one after it"),
        (["--lr", "--submit"], "--lr: a value is missing; give one after it"),
        (["--submit=yes"], "--submit=yes: takes no value; give --submit alone"),
        (["--submit", "yes"], "yes: there is no such flag or argument; see --help"),
        (["--submit", "-1"], "-1: there is no such flag or argument; see --help"),  # not --b1
        (["-n"], "-n: there is no such flag or argument; see --help"),
        (
            ["--seed", "x", "--lr"],
            "2 problems:\n  --lr: a value is missing; give one after it\n"
            "  --seed x: must be a whole number",
        ),
    ],
)
def test_a_value_too_few_or_too_many_is_refused(words: list[str], message: str) -> None:
    assert complaint(*words) == message


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        parsed().seed = 1  # type: ignore[misc]


def test_the_demos_own_defaults_give_way_to_what_is_given() -> None:
    assert set(DEMO_DEFAULTS) == {"lr", "n_iter"}
    assert parsed("--seed", "5").for_demo().as_flags() == {
        **parsed("--seed", "5").as_flags(),
        **DEMO_DEFAULTS,
    }
    # Even a value that is the usual default.
    assert parsed("--lr", "6.25e-5").for_demo().lr == 6.25e-5
    assert parsed("--lr", "6.25e-5").for_demo().n_iter == DEMO_DEFAULTS["n_iter"]


# ------------------------------------------------------------------------------- the demo's rule


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory that holds the demo and no other files."""
    monkeypatch.chdir(tmp_path)
    put_data(Path("data/demo"))
    put_model(Path("model/demo"))
    return tmp_path


def put_data(directory: Path, names: tuple[str, ...] = CSVS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).touch()


def put_model(
    directory: Path, names: tuple[str, ...] = (*VOCABULARY, "params_shapes.json")
) -> None:
    put_data(directory, names)


def found(*words: str) -> Sources:
    return find_sources(parsed(*words), replace(ROCSTORIES, files=(CSVS,)))


def missing(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        found(*words)
    return str(caught.value)


def test_nothing_named_and_nothing_there_is_the_demo(root: Path) -> None:
    sources = found()
    assert sources.demo
    assert sources.data_dir == Path("data/demo")
    assert sources.model_dir == Path("model/demo")
    assert sources.encoder_path == Path("model/demo/encoder_bpe_40000.json")
    assert sources.bpe_path == Path("model/demo/vocab_40000.bpe")


def test_weights_alone_do_not_end_the_demo(root: Path) -> None:
    put_model(Path("model"))
    assert found().demo


def test_real_data_and_weights_are_used_unnamed(root: Path) -> None:
    put_data(Path("data"))
    put_model(Path("model"))
    sources = found()
    assert not sources.demo
    assert (sources.data_dir, sources.model_dir) == (Path("data"), Path("model"))
    assert sources.encoder_path == Path("model/encoder_bpe_40000.json")


def test_real_data_without_weights_is_an_error_and_no_demo(root: Path) -> None:
    put_data(Path("data"))
    assert missing() == (
        "model/ has no pretrained model: fetch the released model with 'gpt1 download', or name "
        "the directory of a model with --model_dir"
    )
    put_model(Path("model"), VOCABULARY)
    assert missing().startswith("model/ has no weights")
    message = missing("--model_dir", "my models/1")
    assert "with 'gpt1 download --model_dir 'my models/1''" in message
    assert "\n" not in message


def test_one_of_the_two_csvs_is_an_error_and_no_demo(root: Path) -> None:
    put_model(Path("model"))
    put_data(Path("data"), CSVS[:1])
    message = missing()
    assert "test.csv" in message
    assert "val.csv" not in message
    assert "--data_dir" in message


@pytest.mark.parametrize("words", [["--data_dir", "data"], ["--model_dir", "model"]])
def test_naming_either_directory_rules_out_the_demo(root: Path, words: list[str]) -> None:
    message = missing(*words)
    assert "data/ has no 'val.csv' and 'test.csv'" in message
    put_data(Path("data"))
    put_model(Path("model"))
    assert not found(*words).demo


@pytest.mark.parametrize(
    "words",
    [
        ["--data_dir", "data/demo/"],
        ["--model_dir", "./model/demo"],
        ["--data_dir", "data/demo", "--model_dir", "model/demo"],
    ],
)
@pytest.mark.parametrize("has_real", [False, True])
def test_naming_a_directory_of_the_demo_means_the_demo(
    root: Path, words: list[str], has_real: bool
) -> None:
    if has_real:
        put_data(Path("data"))
        put_model(Path("model"))
    sources = found(*words)
    assert sources.demo
    assert (sources.data_dir, sources.model_dir) == (Path("data/demo"), Path("model/demo"))


def test_one_directory_of_the_demo_beside_another_one_is_not_the_demo(root: Path) -> None:
    put_model(Path("mine"))
    sources = found("--data_dir", "data/demo", "--model_dir", "mine")
    assert not sources.demo
    assert sources.model_dir == Path("mine")


def test_elsewhere_the_demo_is_that_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = find_sources(parsed(), ROCSTORIES)
    assert sources.demo
    assert sources.data_dir == ROOT / "data/demo"
    assert sources.model_dir == ROOT / "model/demo"
    assert find_sources(parsed("--data_dir", str(ROOT / "data/demo")), ROCSTORIES) == sources


def test_the_demo_stands_in_for_no_data_set_that_it_lacks(root: Path) -> None:
    expected = "data/ has no 'train.tsv' and 'dev.tsv' and 'test.tsv': get SST-2 at "
    for words in ([], ["--model_dir", "model/demo"]):
        with pytest.raises(InputError, match=expected):
            find_sources(parsed("--dataset", "sst2", *words), SST2)
    put_data(Path("data/SST-2"), SST2.files[0])
    sources = find_sources(parsed("--dataset", "sst2", "--model_dir", "model/demo"), SST2)
    assert not sources.demo
    assert (sources.data_dir, sources.model_dir) == (Path("data/SST-2"), Path("model/demo"))


def test_real_data_in_a_folder_of_data_end_the_demo(root: Path) -> None:
    put_data(Path("data/ROCStories"))
    put_model(Path("model"))
    sources = found()
    assert not sources.demo
    assert sources.data_dir == Path("data/ROCStories")


def test_everything_missing_comes_in_one_message(root: Path) -> None:
    message = missing("--data_dir", "a", "--model_dir", "b")
    assert message.startswith("2 problems:\n  a/ has no 'val.csv' and 'test.csv': ")
    assert "\n  b/ has no pretrained model: " in message
    put_model(Path("b"), ("params_0.npy",))
    message = missing("--data_dir", "a", "--model_dir", "b")
    for part in ("a/ has no", "b/encoder_bpe_40000.json", "b/vocab_40000.bpe", "b/ has no weights"):
        assert part in message


@pytest.mark.parametrize(
    ("flag", "path"),
    [("--encoder_path", "my.json"), ("--bpe_path", "my.bpe"), ("--init_params", "my.jl")],
)
def test_a_file_that_is_named_must_be_there(root: Path, flag: str, path: str) -> None:
    assert path in missing(flag, path)
    assert flag in missing(flag, path)
    Path(path).touch()
    assert found(flag, path).demo


@pytest.mark.parametrize("words", [["--n_transfer", "-1"], ["--init_params", "my.jl"]])
def test_weights_are_not_asked_for_where_none_are_read(root: Path, words: list[str]) -> None:
    put_data(Path("data"))
    put_model(Path("model"), VOCABULARY)
    Path("my.jl").touch()
    assert found(*words).model_dir == Path("model")
    with pytest.raises(InputError, match="elsewhere/ has no vocabulary: fetch the released model"):
        found(*words, "--model_dir", "elsewhere")


# ------------------------------------------------------------------------------- --help


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


MAIN_THEN_IMPORTS = """
import sys
from gpt1.commands import train
try:
    status = train.main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {"torch", "spacy", "sklearn", "transformers", "joblib", "safetensors"} & set(sys.modules)
print("imported:", *sorted(heavy))
sys.exit(status)
"""


def test_help_names_every_flag_and_imports_nothing_heavy() -> None:
    done = run_python(MAIN_THEN_IMPORTS, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    text, imported = done.stdout.rsplit("imported:", 1)
    text = text.partition("examples:")[0]
    assert imported.strip() == ""
    for name in FLAGS:
        assert f"--{name} " in text, name
    for name, value in ORIGINAL.items():
        if name not in (*BY_THE_CHECKPOINT, *SWITCHES):
            assert f"[{value}]" in text.split(f"--{name} ")[-1].split(" --")[0], name


def test_the_help_shows_choices_places_and_groups() -> None:
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


@pytest.mark.parametrize(("columns", "shortest", "longest"), [(80, 60, 80), (200, 81, 200)])
def test_the_help_is_as_wide_as_the_terminal(
    columns: int, shortest: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert shortest <= max(map(len, TRAIN.help().splitlines())) <= longest


def test_a_mistake_is_answered_before_anything_heavy_is_imported() -> None:
    done = run_python(MAIN_THEN_IMPORTS, "--lr", "fast", "--n_iter", "-1")
    assert done.returncode == 2
    assert done.stdout.strip() == "imported:"
    assert done.stderr.startswith("gpt1 train: error: 2 problems:\n")
    assert "Traceback" not in done.stderr


def test_the_module_is_the_program() -> None:
    command = [sys.executable, "-m", "gpt1.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: gpt1 train")


# ------------------------------------------------------------------------------- --config


def test_a_file_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"lr": 0.5, "n_iter": 7, "submit": True, "data_dir": None}))
    found = parsed("--config", str(path), "--n_iter", "2")
    assert (found.lr, found.n_iter, found.submit, found.data_dir) == (0.5, 2, True, None)
    assert found.given == {"lr", "n_iter", "submit"}
    assert found.for_demo().lr == 0.5  # what a file gives counts as given


def test_the_log_of_a_run_gives_its_settings_again(tmp_path: Path) -> None:
    """A log's first line holds more than settings; the rest of the file is not read."""
    path = tmp_path / "run.jsonl"
    first = parsed("--lr", "0.5", "--submit", "--desc", "first", "--precision", "bf16")
    line = {**first.as_flags(), "run_id": "x", "demo": False, "torch_version": "2"}
    path.write_text(json.dumps(line) + "\nno JSON at all\n")
    again = parsed("--config", str(path))
    assert again.as_flags() == first.as_flags()
    assert parsed("--config", str(path), "--desc", "second").name == "second"


def test_problems_of_a_file_come_with_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"n_itr": 2, "lr": "fast", "n_head": 0}))
    with pytest.raises(InputError) as error:
        parsed("--config", str(path), "--sed", "3", "--n_batch", "0")
    message = str(error.value)
    assert message.startswith("5 problems:\n")
    for part in (
        "n_itr",
        "did you mean n_iter?",
        "lr",
        "n_head",
        "--sed",
        "--seed?",
        "--n_batch 0",
    ):
        assert part in message, part
    assert str(path) in message
