"""``gpt1 generate``: where prompts come from, how texts are shown, and mistakes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from gpt1.commands import generate
from gpt1.inference import generation
from gpt1.inference.language_model import open_model
from gpt1.settings.groups import SamplingSettings


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_tiny(tmp_path_factory.mktemp("tiny")).model_dir)


@pytest.fixture
def run(model_dir: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the program on the tiny model; return its exit status, stdout and stderr."""

    def run(*flags: str) -> tuple[int, str, str]:
        status = generate.main(["--model_dir", model_dir, *flags])
        return (status, *capsys.readouterr())

    return run


Run = Callable[..., tuple[int, str, str]]


def test_one_prompt(run: Run, model_dir: str) -> None:
    status, out, err = run("--prompt", "Anna had a kite.", "--max_new_tokens", "6")
    text = generation.generate(
        open_model(model_dir), ["Anna had a kite."], SamplingSettings(max_new_tokens=6)
    )[0][0].text
    assert (status, err) == (0, "")
    assert out == f"Anna had a kite. {text}\n"  # the prompt as it was written
    assert len(text) >= 6


def test_streaming_prints_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--prompt", "Ben ran.", "--temperature", "1", "--max_new_tokens", "20")
    plain = run(*flags)
    assert run(*flags, "--stream") == plain
    pieces = []
    monkeypatch.setattr(generation, "stream_ids", lambda *_: pieces.append("asked") or iter(["!"]))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(*flags)[1].endswith("!\n")
    run(*flags, "--prompt", "Carl won.")
    run(*flags, "--json")
    run(*flags, "--num_samples", "2")
    run("--prompt", "Ben ran.", "--num_beams", "2")
    assert pieces == ["asked"]  # on a terminal, and one text alone


def test_several_texts_have_empty_lines_between_them(run: Run) -> None:
    flags = ("--temperature", "1", "--num_samples", "2", "--max_new_tokens", "5")
    _, out, _ = run("--prompt", "Ben ran.", "--prompt", "Carl won.", *flags)
    texts = out.removesuffix("\n").split("\n\n")
    assert [text.startswith("Ben ran. ") for text in texts] == [True, True, False, False]
    assert all(text.startswith("Carl won. ") for text in texts[2:])
    assert len(set(texts)) == 4


@pytest.mark.parametrize("place", ["file", "-"])
def test_prompts_from_a_file_as_json(
    run: Run, place: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Ben ran.\r\nCarl won the boat.\nDora"
    if place == "file":
        place = str(tmp_path / "prompts.txt")
        (tmp_path / "prompts.txt").write_bytes(lines.encode())
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    flags = ("--num_beams", "3", "--num_samples", "2", "--max_new_tokens", "4", "--json")
    status, out, err = run("--prompt_file", place, *flags)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [row["prompt"] for row in rows[::2]] == ["Ben ran.", "Carl won the boat.", "Dora"]
    assert [row["sample"] for row in rows] == [0, 1] * 3
    for best, second in zip(rows[::2], rows[1::2], strict=True):
        assert len(best["ids"]) == len(second["ids"]) == 4
        assert second["score"] < best["score"] < 0
        assert isinstance(best["text"], str)


def test_precision_and_start_token_reach_the_model(run: Run) -> None:
    flags = ("--prompt", "Ben ran.", "--num_beams", "2", "--json")
    scores = [json.loads(run(*flags, *extra)[1])["score"] for extra in (
        (), ("--precision", "bf16"), ("--start_token",), ("--length_penalty", "0")
    )]  # fmt: skip
    assert len(set(scores)) == 4
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
    assert scores[3] == pytest.approx(scores[0] * 40)


def test_a_configuration_file_has_the_same_flags(run: Run, tmp_path: Path) -> None:
    table = {"prompt": ["Ben ran.", "Carl won."], "num_beams": 3, "json": True, "max_new_tokens": 5}
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(table))
    prompts = ["--prompt", "Ben ran.", "--prompt", "Carl won."]
    by_flags = run(*prompts, "--num_beams", "3", "--json", "--max_new_tokens", "5")
    assert by_flags[0] == 0
    assert run("--config", str(path)) == by_flags
    wins = run("--config", str(path), "--max_new_tokens", "6", "--prompt", "Ben ran.")
    assert [len(json.loads(line)["ids"]) for line in wins[1].splitlines()] == [6]


def test_all_mistakes_of_flags_and_file_come_in_one_message(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text('{"promt": "Ben", "top_p": 2, "seed": "one"}')
    status, out, err = run("--config", str(path), "--num_bems", "2", "--top_k", "0")
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "gpt1 generate: error: 5 problems:",
        "  --num_bems: there is no such flag or argument; did you mean --num_beams? See --help",
        f"  --config {path}: promt: there is no such setting; did you mean prompt?",
        f"  --config {path}: top_p is 2: must be from 0 to 1",
        f'  --config {path}: seed is "one": must be a whole number',
        "  --top_k 0: must be at least 1",
    ]


def test_the_flags_of_the_model_reach_it(run: Run) -> None:
    flags = ("--prompt", "Ben ran.", "--num_beams", "2", "--json", "--max_new_tokens", "8")
    scores = [
        json.loads(run(*flags, *extra)[1])["score"]
        for extra in ((), ("--n_head", "1"), ("--afn", "relu"))
    ]
    assert len(set(scores)) == 3
    status, out, err = run(*flags, "--device", "meta")
    assert (status, out) == (2, "")
    assert "--device meta: tensors on this device have no numbers" in err
    assert run(*flags, "--params", "no.jl")[0] == 2


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        ([], ["--prompt: give the text"]),
        (["--prompt", "a", "--prompt_file", "f"], ["not both"]),
        (["--prompt", " \n"], ["--prompt ' \\n': has no tokens"]),
        (["--prompt", "Ben", "--prompt", ""], ["--prompt '': has no tokens"]),
        (["--prompt", "Ben", "--max_new_tokens", "64"], ["(1)", "(64)", "64 positions", "63 or"]),
        (["--prompt", "so " * 64], ["(64)", "(40)", "shorten the prompt"]),
        (["--prompt", "so " * 300], ["(300)", "shorten the prompt"]),  # too long for a file name
        (["--prompt", "Ben", "--top_k", "many"], ["--top_k many: must be a whole number"]),
        (["--prompt", "Ben", "--num_samples", "3"], ["greedy texts are all the same"]),
        (["--prompt", "Ben", "--stream", "--json"], ["--stream", "--json"]),
        (["--prompt", "Ben", "--batch_size", "0"], ["--batch_size"]),
        (["--prompt", "Ben", "--precision", "fp8"], ["--precision"]),
        (["--prompt", "\udcff"], ["not UTF-8"]),
        (["--prompt_file", "no such file"], ["no such file: the file of prompts cannot be read"]),
        (["--prompt", "Ben", "--model_dir", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes_are_one_message(run: Run, flags: list[str], messages: list[str]) -> None:
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert err.startswith("gpt1 generate: error: ")
    assert err.count("\n") == 1
    for message in messages:
        assert message in err


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_white_space_at_the_end_of_a_prompt_stays(run: Run, flags: list[str]) -> None:
    plain = run("--prompt", "Ben ran.")[1]
    status, out, _ = run("--prompt", "Ben ran. ", *flags)
    assert (status, out) == (0, plain)
    assert run("--prompt", "Ben ran.\n", *flags)[1].startswith("Ben ran.\n")


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--json"]])
def test_characters_that_the_vocabulary_lacks_are_counted(run: Run, flags: list[str]) -> None:
    prompt = "Émile ran: 日本 日"
    status, out, err = run("--prompt", prompt, *flags)
    assert status == 0
    assert err == (
        f"gpt1 generate: --prompt {prompt!r}: the model's vocabulary lacks 5 characters, which it "
        "reads as <unk>: é : 日 本\n"
    )
    written = json.loads(out)["prompt"] if "--json" in flags else out
    assert written.startswith(prompt)
    assert run("--prompt", "Ben ran.", *flags)[2] == ""


def test_blank_lines_of_a_file_are_left_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\nBen ran.\n \t\n\nCarl won: it.\n\n")
    status, out, err = run("--prompt_file", str(path), "--json")
    assert status == 0
    prompts = [json.loads(line)["prompt"] for line in out.splitlines()]
    assert prompts == ["Ben ran.", "Carl won: it."]
    assert err.startswith(f"gpt1 generate: {path}, line 5: ")  # lines are counted with the blank
    assert err.count("\n") == 1
    path.write_text("\n \n")
    status, out, err = run("--prompt_file", str(path))
    assert (status, out) == (2, "")
    assert err == f"gpt1 generate: error: {path}: has no prompts; write one on each line\n"


def test_a_mistake_in_a_file_names_its_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Ben ran.\n\n" + "so " * 64 + "\n")
    status, out, err = run("--prompt_file", str(path))
    assert (status, out) == (2, "")
    assert f"{path}, line 3: its tokens (64)" in err
    path.write_bytes(b"Ben ran.\n\xff\n")
    assert f"{path}, line 2" in run("--prompt_file", str(path))[2]
