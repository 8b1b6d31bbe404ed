"""``gpt1 corpus``: what it writes and says, and mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny

from gpt1.batches.corpus import Corpus
from gpt1.commands import corpus
from gpt1.text_utils.encoder import TextEncoder
from gpt1.weights import locate


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a vocabulary in ``vocabulary/`` and two texts in ``texts/``."""
    monkeypatch.chdir(tmp_path)
    tiny.write_vocabulary(tmp_path / "vocabulary")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("anna had a kite.\nit was so big.\n")
    (tmp_path / "texts/b.txt").write_text("ben ran and ran and ran and ran.\n")
    return tmp_path


def test_a_corpus_of_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["texts", "--out", "made/corpus", "--vocabulary", "vocabulary"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "gpt1 corpus: written: made/corpus (2 documents, 16 words, 23 tokens, of "
        "which 12 are held out; 100 tokens in the vocabulary)\n"
    )
    made = Corpus.open("made/corpus")
    encoder = TextEncoder(*made.vocabulary)
    texts = [path.read_text() for path in sorted((place / "texts").iterdir())]
    assert [made.train.tolist(), made.held_out.tolist()] == encoder.encode(texts)
    assert sorted(path.name for path in (place / "made").iterdir()) == ["corpus"]


def test_a_learned_vocabulary(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["texts", "--out", "new", "--n_merges", "3", "--holdout", "0"]) == 0
    assert "(2 documents, 16 words, " in capsys.readouterr().err
    merges = (place / "new" / locate.BPE_FILE).read_text()
    assert merges == "#version: 0.2\na n\na n</w>\nr an</w>\n"


@pytest.mark.parametrize("has_model", [False, True])
def test_the_default_vocabulary_is_that_of_other_commands(
    place: Path, capsys: pytest.CaptureFixture[str], has_model: bool
) -> None:
    if has_model:
        (place / "vocabulary").rename(place / "model")
    assert corpus.main(["texts/a.txt", "texts/b.txt", "--out", "new"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert any("using the demo's in " in line for line in notes) != has_model
    expected = locate.vocabulary_files(locate.default_model_dir())[0].read_bytes()
    assert Corpus.open("new").vocabulary[0].read_bytes() == expected


def test_what_out_holds_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty").mkdir()
    words = ["texts", "--vocabulary", "vocabulary", "--out"]
    assert corpus.main([*words, "empty"]) == 0  # An empty directory holds nothing to keep.
    before = (place / "empty/corpus.json").read_bytes()
    capsys.readouterr()
    for out, kind in [
        ("empty", "holds a finished corpus already; name a new directory"),
        ("texts", "holds other files already; name a new directory"),
        ("texts/a.txt", "this is a file; name a new directory"),
    ]:
        assert corpus.main([*words, out]) == 2
        assert capsys.readouterr().err == f"gpt1 corpus: error: --out {out}: {kind}\n"
    assert (place / "empty/corpus.json").read_bytes() == before
    assert sorted(os.listdir("texts")) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "new"], "TEXTS: must be given; see --help"),
        (["texts"], "--out: must be given; see --help"),
        (["x", "--out", "new"], "x: the text cannot be read: No such file or directory; name "),
        (["vocabulary", "--out", "new"], "vocabulary: no file in this directory ends in .txt; "),
        (["binary.txt", "--out", "new"], "binary.txt, line 1: expected text in UTF-8, found a NU"),
        (["latin.txt", "--out", "new"], "latin.txt, line 2: expected text in UTF-8, found byte "),
        (["empty.txt", "--out", "new"], "the texts hold no words; name other files"),
        (["none.jsonl", "--out", "new"], "the texts hold no words; name other files"),
        (["bad.jsonl", "--out", "new"], "bad.jsonl, line 1: expected a JSON object with a "),
        (["texts", "--out", "new", "--n_merges", "999"], "--n_merges 999: the texts have 4 merg"),
        (["texts", "--out", "new", "--n_merges", "0"], "--n_merges 0: must be at least 1"),
        (["texts", "--out", "new", "--holdout", "1"], "--holdout 1.0: must be at least 0 and le"),
        (["one.txt", "--out", "new"], "--holdout 0.01: the texts are one document, and no newli"),
        (
            ["texts", "--out", "new", "--n_merges", "9", "--vocabulary", "vocabulary"],
            "--vocabulary, --n_merges: give one of them: use a vocabulary, or learn one",
        ),
        (
            ["texts", "--out", "new", "--vocabulary", "texts"],
            "texts/encoder_bpe_40000.json is missing: name its directory with --vocabulary DIR",
        ),
        (["texts", "--out", "new", "--vocabulary", "torn"], "torn/vocab_40000.bpe: no merge makes"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("binary.txt").write_bytes(b"\x7fELF\0\0\0")
    Path("latin.txt").write_bytes(b"one\ncaf\xe9\n")
    Path("empty.txt").touch()
    Path("none.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n')
    Path("bad.jsonl").write_text(json.dumps({"story": "x"}))
    Path("one.txt").write_text("one line")
    tiny.write_vocabulary(place / "torn")
    merges = place / "torn" / locate.BPE_FILE
    merges.write_text("".join(merges.read_text().splitlines(keepends=True)[:9]))
    before = sorted(place.rglob("*"))
    if "--vocabulary" not in words and "--n_merges" not in words:
        words = [*words, "--vocabulary", "vocabulary"]
    assert corpus.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"gpt1 corpus: error: {message}"), captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(place.rglob("*")) == before
