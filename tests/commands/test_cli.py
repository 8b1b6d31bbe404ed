"""The command ``gpt1`` with all its commands, and its installation."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from every_command import every_command

import gpt1
from gpt1.commands import cli
from gpt1.runtime.device import has_bf16
from gpt1.settings.command import Command

ROOT = Path(__file__).parents[2]


def status_of(argv: list[str]) -> int:
    """Return the exit status of the command, also if --help ends it by SystemExit."""
    try:
        return cli.main(argv)
    except SystemExit as end:
        return int(end.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in shown
    assert "examples:" in shown


def test_without_a_command_it_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: gpt1 COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"gpt1 {gpt1.__version__}\n"


def test_every_program_is_a_command() -> None:
    """Each command has a module, and each module a command."""
    modules = (ROOT / "gpt1" / "commands").glob("[a-z]*.py")
    programs = {path.stem for path in modules if "\ndef main(" in path.read_text()}
    assert programs - {"cli"} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_the_same_as_its_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = importlib.import_module(f"gpt1.commands.{name}")
    monkeypatch.setattr(module, "main", lambda argv: seen.append(list(argv)) or 7)
    assert cli.main([name, "--flag", "value"]) == 7
    assert seen == [["--flag", "value"]]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"gpt1 {name}" in shown
    assert "examples:" in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_wrong_flag_is_one_message_with_status_2(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([name, "--no_such_flag"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"gpt1 {name}: error: ")
    assert "Traceback" not in message
    assert message.count("\n") == 1


ALL = ", ".join(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], f"trian: there is no such command; did you mean train? Give one of {ALL}, "),
        (["--train"], f"--train: there is no such command; did you mean train? Give one of {ALL}"),
        (["xyz", "--help"], f"xyz: there is no such command; give one of {ALL}, see gpt1 --help\n"),
        (
            ["plot", "tabel"],
            "tabel: there is no such command; did you mean table? Give one of curve",
        ),
        (["plot"], "COMMAND: must be given; give one of curves, table, tensorboard, attention, "),
    ],
)
def test_a_wrong_command_is_one_message_with_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    program = "gpt1 plot" if words[0] == "plot" else "gpt1"
    assert err.startswith(f"{program}: error: {message}")
    assert err.count("\n") == 1


COMMANDS = pytest.mark.parametrize("command", every_command(), ids=lambda command: command.name)


def test_there_are_commands_with_declared_settings() -> None:
    names = {command.name for command in every_command()}
    assert {"analysis", "download", "generate", "score", "plot curves", "plot attention"} <= names


@COMMANDS
def test_help_of_a_command_fits_80_columns(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of([*command.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    usage, summary = text.split("\n\n")[:2]
    assert usage.startswith(f"usage: gpt1 {command.name} ")
    assert usage.count("\n") < 5
    assert " ".join(summary.split()) == command.summary
    for item in command.settings:
        place = "" if item.argument or item.kind is bool else f" {item.place}"
        assert f"\n  {item.shown}{place}" in text


@pytest.mark.parametrize("words", [[], ["plot"]])
def test_lists_of_commands_fit_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []


@COMMANDS
def test_every_example_of_the_help_is_a_command(command: Command) -> None:
    lines = command.examples.replace("\\\n", "").splitlines()
    examples = [shlex.split(line) for line in lines if line.strip() and line.strip()[0] != "#"]
    assert examples
    programs = [command.program.split(), ["python", "-m", *command.program.split()]]
    programs += [["python", "-m", "gpt1.train"]] if command.name == "train" else []
    for words in examples:
        (n,) = {len(program) for program in programs if words[: len(program)] == program}
        command.parse(words[n:])


@COMMANDS
def test_a_mistyped_flag_of_a_command_is_one_problem(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in (item for item in command.settings if not item.argument and len(item.name) > 3):
        wrong = f"--{item.name[0]}{item.name[2:]}"
        assert status_of([*command.name.split(), wrong, "2"]) == 2
        program = f"gpt1 {command.name.split()[0]}"
        assert capsys.readouterr().err == (
            f"{program}: error: {wrong}: there is no such flag or argument; did you mean "
            f"{item.shown}? See --help\n"
        )


def test_env_shows_versions_and_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["gpt1"] == gpt1.__version__
    assert facts["Python"] == platform.python_version()
    for name in ("torch", "numpy", "spacy", "ftfy", "scikit-learn", "safetensors"):
        assert facts[name] == importlib.metadata.version(name)
    assert facts["device"] == "cpu"
    assert "cpu" in facts["devices"].split(", ")
    assert facts["bf16"] == ("yes" if has_bf16(torch.device("cpu")) else "no")
    assert facts["threads"] == str(torch.get_num_threads())
    assert facts["processor"]
    # The values stand below one another, after the longest name and two spaces.
    assert all(line[15:17] == "  " and line[17] != " " for line in out.splitlines())


def test_env_leaves_out_what_need_not_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name in ("transformers", "ftfy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["env", "--device", "cpu"]) == 0
    names = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert "transformers" not in names
    assert (names["ftfy"], names["tensorboard"]) == ("missing", "1.2.3")


def test_env_of_a_device_that_is_not_there_is_one_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["env", "--device", "cuda:99"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt1 env: error: --device cuda:99: cannot be used on this machine: ")
    assert err.count("\n") == 1


def test_help_does_not_wait_for_torch() -> None:
    """The help of a command imports no large library."""
    names = [*cli.COMMANDS, *(command.name for command in every_command())]
    code = (
        "import sys, contextlib, io\n"
        "from gpt1.commands import cli\n"
        f"for name in {names}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main([*name.split(), '--help'])\n"
        "heavy = ('torch', 'spacy', 'sklearn', 'scipy', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_module_and_the_installed_name_are_the_same_program() -> None:
    for command in ([sys.executable, "-m", "gpt1"], [str(Path(sys.executable).parent / "gpt1")]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"gpt1 {gpt1.__version__}\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository: setuptools leaves files where it builds."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"
    for name in ("gpt1", "data/demo", "model/demo"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    command += ["--no-build-isolation", str(source)]  # pip would download setuptools
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("gpt1-*.whl")
    return found


def test_the_wheel_has_all_modules_types_and_tables(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"gpt1 = gpt1.commands.cli:main" in archive.read(points)
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        required = archive.read(metadata).decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gpt1").rglob("*.py")}
    assert modules | {"gpt1/py.typed", "gpt1/text_utils/spacy_vintage.json"} <= names
    assert not any(name.startswith(("tests/", "scripts/", "data/", "model/")) for name in names)
    core = {
        line.split()[1]
        for line in required.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    bare = {
        "".join(c for c in word if c.isalnum() or c == "-").rstrip("0123456789") for word in core
    }
    allowed = {"torch", "numpy", "ftfy", "spacy", "scikit-learn", "tqdm", "joblib", "safetensors"}
    allowed |= {"filelock", "scipy"}  # dependencies of torch and scikit-learn
    assert bare <= allowed


def test_the_wheel_carries_the_demo_and_runs_it_in_any_directory(
    wheel: Path, tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for kind in ("data", "model"):
        carried = {path.name: path.read_bytes() for path in (site / "gpt1/demo" / kind).iterdir()}
        own = {path.name: path.read_bytes() for path in (ROOT / kind / "demo").iterdir()}
        assert carried == own
    done = subprocess.run(
        [sys.executable, "-m", "gpt1", "train", "--n_iter", "0", "--device", "cpu"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "This is the bundled demo" in done.stderr
    settings = json.loads((elsewhere / "log/rocstories.jsonl").read_text().splitlines()[0])
    assert settings["demo"] is True
    assert settings["data_dir"] == str(site / "gpt1/demo/data")
    assert settings["model_dir"] == str(site / "gpt1/demo/model")
