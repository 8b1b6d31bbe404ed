"""Scoring one's own stories: the choices are those of training, and bad files are named."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt1.batches.arrays import EncodedCloze, max_part_length, transform_roc
from gpt1.batches.packing import pack
from gpt1.commands import score, train
from gpt1.datasets.story_cloze import TEST_CSV, read_cloze
from gpt1.inference.pretrained import Pretrained, load_pretrained
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.errors import InputError
from gpt1.training.submissions import choices_of, read_probs

SIMPLE = "story,ending1,ending2,label\nAnna ran.,Anna won.,Anna cried.,1\nBen lost.,He won.,No.,2\n"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run on the tiny task."""

    task: tiny.Tiny
    directory: Path

    @property
    def params(self) -> Path:
        return self.directory / "save" / "rocstories" / "best_params.jl"

    @property
    def submission(self) -> str:
        return (self.directory / "submission" / "ROCStories.tsv").read_text()

    @property
    def test_csv(self) -> Path:
        return self.task.data_dir / TEST_CSV

    def score(self, stories: Path, *words: str) -> int:
        model = ["--model_dir", str(self.task.model_dir), "--params", str(self.params)]
        return score.main([str(stories), *model, "--device", "cpu", *words])

    def pretrained(self) -> Pretrained:
        return load_pretrained(self.task.model_dir, self.params)


def train_tiny(directory: Path, *words: str) -> Run:
    run = Run(tiny.write_tiny(directory / "task"), directory)
    kinds = ("log", "save", "submission")
    places = [word for kind in kinds for word in (f"--{kind}_dir", str(directory / kind))]
    flags = ["--submit", "--device", "cpu", "--n_batch", "2", "--n_iter", "2", "--lr", "0.01"]
    assert train.main([*run.task.flags, *places, *flags, *words]) == 0
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tmp_path_factory.mktemp("run"))


def submission_of(table: str) -> str:
    """The columns of a submission in a table of scores."""
    return "".join("\t".join(row.split("\t")[:2]) + "\n" for row in table.splitlines())


# The same choices as training


@pytest.mark.parametrize("words", [[], ["--n_batch", "1"], ["--n_batch", "7"]])
def test_test_set_gets_the_choices_of_the_submission(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run.score(run.test_csv, *words) == 0
    table = capsys.readouterr().out
    assert submission_of(table) == run.submission
    assert {row.split("\t")[1] for row in table.splitlines()[1:]} == {"0", "1"}


def test_test_set_gets_them_where_training_cut_parts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path, "--n_ctx", "16")
    capsys.readouterr()
    assert run.score(run.test_csv, "--n_ctx", "16") == 0
    captured = capsys.readouterr()
    assert submission_of(captured.out) == run.submission
    assert "24 of 24 stories are longer than the model was trained on" in captured.err
    assert run.score(run.test_csv) == 0
    assert capsys.readouterr().out != captured.out  # the flag matters


def test_probabilities_are_those_of_choices_one_by_one(run: Run) -> None:
    """Against the arrays of training, a batch a choice, nothing shared."""
    pretrained, test = run.pretrained(), read_cloze(run.test_csv)
    encoded = EncodedCloze(*(pretrained.encoder.encode(texts) for texts in test[:3]), labels=None)
    rows = pretrained.model.config.n_ctx
    arrays = transform_roc(encoded, pretrained.special, n_ctx=rows, max_len=max_part_length(512))
    logits = []
    with torch.no_grad():
        for i in range(arrays.n_stories):
            story = arrays.take(slice(i, i + 1))
            batch = pack(story, pretrained.special.classify, share_prefix=False)
            logits.append(pretrained.model.choice_logits(batch).numpy())
    found = score.score_stories(pretrained, *test[:3])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, choices_of(np.concatenate(logits)).probs, atol=1e-5)
    assert np.ptp(found[:, 0]) > 0.01


def test_order_of_the_endings_and_neighbours_do_not_matter(run: Run) -> None:
    pretrained, test = run.pretrained(), read_cloze(run.test_csv)
    found = score.score_stories(pretrained, *test[:3], n_batch=5)
    stories, one, two = (texts[::-1] for texts in test[:3])
    turned = score.score_stories(pretrained, stories, two, one, n_batch=5)
    np.testing.assert_allclose(turned[::-1, ::-1], found, atol=1e-5)


def test_no_stories_and_unequal_numbers(run: Run) -> None:
    pretrained = run.pretrained()
    assert score.score_stories(pretrained, [], [], []).shape == (0, 2)
    with pytest.raises(ValueError, match="zip"):
        score.score_stories(pretrained, ["anna ran."], ["anna won."], [])


def test_precision_is_used(run: Run) -> None:
    pretrained, test = run.pretrained(), read_cloze(run.test_csv)
    exact = score.score_stories(pretrained, *test[:3])
    rough = score.score_stories(pretrained, *test[:3], precision="bf16")
    assert 0 < np.abs(exact - rough).max() < 0.2
    with pytest.raises(InputError, match="tf32"):
        score.score_stories(pretrained, *test[:3], precision="tf32")


# Too long


def test_only_what_does_not_fit_is_cut(run: Run) -> None:
    pretrained = run.pretrained()
    rows = pretrained.model.config.n_ctx
    room = max_part_length(rows)
    texts = ["so " * (rows - 4), "so " * (rows - 3), "so " * 3]
    endings = ["big", "big", "ran " * rows]
    arrays, n_cut = score.encode_stories(pretrained, texts, ["won"] * 3, endings)
    lengths = arrays.M.sum(-1).astype(int).tolist()
    # Full to the last row; one more, cut to the room; a long ending, which cuts itself alone.
    assert lengths == [[rows, rows], [room + 4, room + 4], [7, 6 + room]]
    assert n_cut == 2
    assert arrays.X[..., 1].max() < pretrained.model.config.n_rows


def test_a_cut_story_scores_as_what_is_left_of_it(run: Run) -> None:
    pretrained = run.pretrained()
    room = max_part_length(pretrained.model.config.n_ctx)
    begin, rest = "anna had a kite. " + "so " * (room - 5), "ben lost. " * 20
    assert len(pretrained.encoder.encode([begin])[0]) == room
    found = score.score_stories(pretrained, [begin + rest, begin], ["won"] * 2, ["cried"] * 2)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    _, n_cut = score.encode_stories(pretrained, [begin + rest, begin], ["won"] * 2, ["cried"] * 2)
    assert n_cut == 1


def test_a_model_of_hardly_any_rows_is_named(run: Run) -> None:
    pretrained = run.pretrained()
    small = DoubleHeadsModel(dataclasses.replace(pretrained.model.config, n_ctx=5))
    small.init_parameters()
    short = dataclasses.replace(pretrained, model=small)
    assert score.score_stories(short, ["so"], ["won"], ["ran"]).shape == (1, 2)
    with pytest.raises(InputError, match=r"story 1 is too long: .* 5 position rows only"):
        score.score_stories(short, ["so", "so so"], ["won"] * 2, ["ran"] * 2)


# Reading


def test_cloze_and_simple_form_are_the_same_stories(tmp_path: Path, run: Run) -> None:
    test = read_cloze(run.test_csv)
    assert score.read_stories(run.test_csv) == score.Stories(*test)
    path = tmp_path / "simple.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "ending2", "ending1", "story"])  # the header decides
        rows.writerows([y + 1, two, one, story] for story, one, two, y in zip(*test, strict=True))
    assert score.read_stories(path) == score.Stories(*test)


@pytest.mark.parametrize("dropped", [{0}, {7}, {0, 7}])
def test_columns_of_the_cloze_form_that_may_be_missing(
    tmp_path: Path, run: Run, dropped: set[int]
) -> None:
    test, path = read_cloze(run.test_csv), tmp_path / "part.csv"
    with open(run.test_csv, newline="") as file, open(path, "w", newline="") as out:
        for cells in csv.reader(file):
            csv.writer(out).writerow([cell for i, cell in enumerate(cells) if i not in dropped])
    labels = None if 7 in dropped else test.labels
    assert score.read_stories(path) == score.Stories(*test[:3], labels)


@pytest.mark.parametrize("empty", ["", "  "])
def test_labels_may_be_empty_throughout(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(SIMPLE.replace(",1\n", f",{empty}\n").replace(",2\n", f",{empty}\n"))
    found = score.read_stories(path)
    assert found.labels is None
    assert found.stories == ["Anna ran.", "Ben lost."]
    path.write_text("\ufeff" + SIMPLE.replace("\n", "\r\n"))
    assert score.read_stories(path) == found._replace(labels=[0, 1])


def changed(old: str, new: str) -> str:
    assert old in SIMPLE
    return SIMPLE.replace(old, new)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: the file is empty or begins blank; make the first line story,ending1,ending"),
        ("\n" + SIMPLE, "line 1: the file is empty or begins blank"),
        ("story,ending1,ending2\n", "line 2: the file ends after its header"),
        ("Anna ran.,Anna won.,Anna cried.\n", "line 1: there is no header row; make the first"),
        (changed(",ending2", ""), "line 1: the header lacks ending2; make the first line"),
        (changed("ending2,label", "ending1,label"), "the column 'ending1' is there twice"),
        (changed("label", "lable"), "line 1: there is no column 'lable'; make the first line"),
        (changed("label", "AnswerRightEnding"), "line 1: there is no column 'AnswerRightEnding'"),
        (changed("story", "InputSentence1"), "line 1: the header lacks InputSentence2, Inp"),
        (changed("Anna cried.", ""), "line 2: ending2 is empty, but text was expected"),
        (changed("Anna won.", " "), "line 2: ending1 is empty"),
        (changed("Ben lost.", ""), "line 3: story is empty"),
        (changed(",He won.", ""), "line 3: the row has 3 cells, but 4 were expected"),
        (changed("He won.", "He, won."), "line 3: the row has 5 cells, but 4 were expected"),
        (changed("Ben", "\nBen"), "line 3: the line is blank"),
        (changed(",2\n", ",0\n"), "line 3: label is '0', but 1 or 2 was expected"),
        (changed(",2\n", ",\n"), "line 3: label is empty, but line 2 has an answer"),
        (changed(",1\n", ",\n"), "line 2: label is empty, but line 3 has an answer"),
        (changed("Ben", "Ben\0"), "line 3: there is a NUL character"),
        (changed("No.", '"No.'), "line 3: a quoted cell begins here and never ends"),
        (SIMPLE.encode() + b"\xff", "line 4: the CSV of stories must be UTF-8 text"),
    ],
)
def test_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, complaint: str
) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert score.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gpt1 score: error: {path}, line ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


@given(
    cut=st.tuples(st.integers(0, len(SIMPLE)), st.integers(0, 9), st.binary(max_size=6)),
    junk=st.none() | st.binary(max_size=60),
)
def test_any_bytes_are_stories_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[int, int, bytes], junk: bytes | None
) -> None:
    begin, n, new = cut
    near = SIMPLE.encode()[:begin] + new + SIMPLE.encode()[begin + n :]
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(near if junk is None else junk)
    found = stories_or_complaint(path)
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert all(text.strip() for texts in found[:3] for text in texts)
        assert found.labels is None or set(found.labels) <= {0, 1}


def stories_or_complaint(path: Path) -> score.Stories | str:
    try:
        return score.read_stories(path)
    except InputError as error:
        return str(error)


# Command line


def test_labels_give_the_accuracy_on_stderr(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.score(run.test_csv) == 0
    captured = capsys.readouterr()
    chosen = [int(row.split("\t")[1]) for row in captured.out.splitlines()[1:]]
    right = sum(c == y for c, y in zip(chosen, read_cloze(run.test_csv).labels, strict=True))
    share = f"{right} of 24 right, {right / 24 * 100:.2f} %; 95 % interval (Wilson) "
    assert captured.err.startswith(f"gpt1 score: accuracy: {share}")
    assert captured.err.count("\n") == 1


def test_out_has_what_stdout_has_and_reads_back(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "s.csv", tmp_path / "deep" / "scores.tsv"
    path.write_text("story,ending1,ending2\nAnna ran.,Anna won.,Anna cried.\n")
    assert run.score(path) == 0
    table, err = capsys.readouterr()
    assert err == ""  # no labels, nothing to say
    assert run.score(path, "--out", str(out)) == 0
    assert capsys.readouterr() == ("", "")
    assert out.read_text() == table
    expected = score.score_stories(run.pretrained(), ["Anna ran."], ["Anna won."], ["Anna cried."])
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
    assert run.score(run.test_csv, "--out", f"{path.parent}/../{path.parent.name}/{path.name}") == 2
    assert "would overwrite what is read; name another file" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_out_that_cannot_be_written_is_noticed_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")

    def not_reached(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(score, "from_arguments", not_reached)
    assert run.score(run.test_csv, "--out", str(tmp_path / "file" / "x.tsv")) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert run.score(run.test_csv, "--out", str(tmp_path)) == 2
    assert f"--out {tmp_path}: this is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--n_ctx", "5"], "--n_ctx: 5: must be a whole number at least 6"),
        (["--n_batch", "0"], "--n_batch: 0: must be a whole number at least 1"),
        (["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
        (["--param", "x"], "unrecognized arguments: --param x"),
        (["--params", "x.txt"], "x.txt: a parameter file ends in .jl or .safetensors"),
    ],
)
def test_mistakes_on_the_command_line(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert run.score(run.test_csv, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_missing_stories(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["nothing.csv"]) == 2
    assert "nothing.csv: the CSV of stories cannot be read" in capsys.readouterr().err
    assert score.main([]) == 2
    assert "the following arguments are required: STORIES.csv" in capsys.readouterr().err
