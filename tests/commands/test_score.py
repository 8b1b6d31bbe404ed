"""``gpt1 score``: the choices of a submission, where the output goes, and mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from finished import Run, train_tiny

from gpt1.commands import convert, score
from gpt1.datasets.story_cloze import read_cloze
from gpt1.results.submissions import read_probs
from gpt1.weights.jl import read_jl, write_jl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tmp_path_factory.mktemp("run"))


def scored(run: Run, stories: Path, *words: str) -> int:
    """Return the exit status of the command on the model of a run."""
    model = ["--model_dir", str(run.task.model_dir), "--params", str(run.params)]
    return score.main([str(stories), *model, "--device", "cpu", *words])


def submission_of(table: str) -> str:
    """Return the columns of a submission from a table of scores."""
    return "".join("\t".join(row.split("\t")[:2]) + "\n" for row in table.splitlines())


# The same choices as training


@pytest.mark.parametrize("words", [[], ["--n_batch", "1"], ["--n_batch", "7"]])
def test_test_set_gets_the_choices_of_the_submission(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert scored(run, run.test_csv, *words) == 0
    table = capsys.readouterr().out
    assert submission_of(table) == run.submission
    assert {row.split("\t")[1] for row in table.splitlines()[1:]} == {"0", "1"}


def test_test_set_gets_them_where_training_cut_parts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path, "--n_ctx", "16")
    capsys.readouterr()
    assert scored(run, run.test_csv, "--n_ctx", "16") == 0
    captured = capsys.readouterr()
    assert submission_of(captured.out) == run.submission
    assert "24 of 24 stories are longer than the model was trained on" in captured.err
    assert scored(run, run.test_csv) == 0
    assert capsys.readouterr().out != captured.out  # The flag changes the result.
    log = str(run.directory / "log" / "rocstories.jsonl")
    words = [str(run.test_csv), "--params", str(run.params), "--config", log]
    assert score.main(words) == 0  # the first line of the log holds the settings of the run
    assert capsys.readouterr() == captured


# Command line


def test_labels_give_the_accuracy_on_stderr(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert scored(run, run.test_csv) == 0
    captured = capsys.readouterr()
    chosen = [int(row.split("\t")[1]) for row in captured.out.splitlines()[1:]]
    right = sum(c == y for c, y in zip(chosen, read_cloze(run.test_csv).labels, strict=True))
    share = f"{right} of 24 right, {right / 24 * 100:.2f} %; 95 % interval (Wilson) "
    assert captured.err.startswith(f"gpt1 score: accuracy: {share}")
    assert (
        "(prediction 0: the first ending, label 1 in the CSV; 1: the second, label 2)"
        in captured.err
    )
    assert captured.err.count("\n") == 1


def test_out_has_what_stdout_has_and_reads_back(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "s.csv", tmp_path / "deep" / "scores.tsv"
    path.write_text("story,ending1,ending2\nAnna ran.,Anna won.,Anna cried.\n")
    assert scored(run, path) == 0
    table, err = capsys.readouterr()
    assert err == ""  # There are no labels to compare with.
    assert scored(run, path, "--out", str(out)) == 0
    assert capsys.readouterr() == ("", "")
    assert out.read_text() == table
    story = ("Anna ran.", "Anna won.", "Anna cried.")
    _, expected = run.opened().predict([story], probabilities=True)
    assert read_probs(out).probs.tolist() == expected.tolist()


def test_a_model_that_was_not_fine_tuned_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_dir", str(run.task.model_dir), "--device", "cpu"]
    assert score.main([str(run.test_csv), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{run.task.model_dir} was never trained to choose" in captured.err
    assert "a fine-tuned model is needed: --params FILE" in captured.err


@pytest.mark.parametrize("which", ["stories", "params"])
def test_nothing_that_is_read_is_overwritten(
    run: Run, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    path = run.test_csv if which == "stories" else run.params
    before = path.read_bytes()
    assert (
        scored(run, run.test_csv, "--out", f"{path.parent}/../{path.parent.name}/{path.name}") == 2
    )
    assert "would overwrite a file that is read; name another file" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_out_that_cannot_be_written_is_noticed_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")

    def not_reached(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(score, "open_model", not_reached)
    assert scored(run, run.test_csv, "--out", str(tmp_path / "file" / "x.tsv")) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert scored(run, run.test_csv, "--out", str(tmp_path)) == 2
    assert f"--out {tmp_path}: this is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--n_ctx", "5"], "--n_ctx 5: must be at least 6"),
        (["--n_batch", "0"], "--n_batch 0: must be at least 1"),
        (["--precision", "fp8"], "--precision fp8: must be one of fp32, tf32, bf16"),
        (
            ["--param", "x"],
            "--param: there is no such flag or argument; did you mean --params? See",
        ),
        (["--params", "x.txt"], "x.txt: a parameter file ends in .jl or .safetensors"),
    ],
)
def test_mistakes_on_the_command_line(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert scored(run, run.test_csv, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_a_directory_as_params_is_opened(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory of a run, and one in the hub's layout, which has a vocabulary of its own."""
    assert scored(run, run.test_csv) == 0
    expected = capsys.readouterr().out
    hub = str(tmp_path / "hub")
    model_dir = str(run.task.model_dir)
    assert convert.main([str(run.params), hub, "--to", "hub", "--model_dir", model_dir]) == 0
    capsys.readouterr()
    words = [str(run.test_csv), "--device", "cpu", "--params"]
    assert score.main([*words, hub]) == 0  # the vocabulary of model/demo would not fit
    assert capsys.readouterr().out == expected
    assert score.main([*words, str(run.params.parent), "--model_dir", model_dir]) == 0
    assert capsys.readouterr().out == expected


def test_the_demos_vocabulary_is_not_taken_for_a_larger_models(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's is found in any directory; a model of a larger vocabulary would read nonsense."""
    arrays = read_jl(run.params)
    arrays[0] = np.zeros((40478 + 3 + 77, arrays[0].shape[1]), np.float32)
    path = tmp_path / "large.jl"
    write_jl(path, arrays)
    monkeypatch.chdir(tmp_path)
    assert score.main([str(run.test_csv), "--params", str(path), "--n_head", "4"]) == 2
    message = capsys.readouterr().err
    assert f"{path}: 40558 rows of we are too many for the 3592 tokens of " in message
    assert "name the directory of the vocabulary it was trained with" in message


def test_the_demo_is_named_only_where_its_model_is_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.task.model_dir, "model/demo")
    assert score.main([str(run.test_csv), "--params", str(run.params), "--device", "cpu"]) == 0
    assert "using the demo" not in capsys.readouterr().err
    assert score.main([str(run.test_csv), "--device", "cpu"]) == 2
    assert "no model in model/, using the demo's in model/demo/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "name", "complaint"),
    [
        ([], "", "there is no model in this directory; name the directory of a model"),
        (["checkpoint-00000008.safetensors"], "", "holds the state of a training run, but not bes"),
        (
            ["checkpoint-00000008.safetensors"],
            "checkpoint-00000008.safetensors",
            "is the state of a training run, from which --resume goes on, and not a list of "
            "parameters; train with --submit, which writes ",
        ),
        (
            ["checkpoint-00000008.safetensors", "best_params.jl"],
            "checkpoint-00000008.safetensors",
            "a list of parameters; name {directory}/best_params.jl instead\n",
        ),
        ([], "elsewhere", "there is no such file or directory"),
    ],
)
def test_params_that_are_no_parameters_say_what_to_name(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    name: str,
    complaint: str,
) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"")
    assert score.main([str(run.test_csv), "--params", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"gpt1 score: error: {tmp_path / name}: ")
    assert complaint.format(directory=tmp_path) in message
    assert message.count("\n") == 1


def test_a_bad_file_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.csv"
    path.write_text("story,ending1\nAnna ran.,Anna won.\n")
    assert score.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gpt1 score: error: {path}, line 1: the header lacks ending2; ")
    assert captured.err.count("\n") == 1


def test_missing_stories(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["nothing.csv"]) == 2
    assert "nothing.csv: the CSV of stories cannot be read" in capsys.readouterr().err
    assert score.main([]) == 2
    assert "STORIES: must be given; see --help" in capsys.readouterr().err
