"""A corpus has the ids of its documents, also after a crash, and only whole ones are opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import tiny
from faults import short_files
from processes import SIGINT, SIGKILL, SIGTERM, Done, Running

from gpt1.batches import corpus_draft, corpus_making
from gpt1.batches.corpus import Corpus
from gpt1.batches.corpus_making import make_corpus
from gpt1.commands import corpus as command
from gpt1.runtime import workers
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.text_utils import pieces
from gpt1.text_utils.documents import Place, find_sources
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.vocabulary import RELEASED_NAMES

DRAFT = ".corpus.unfinished"
TEXTS = [
    "anna had a kite.\nit was so big.\n\nanna ran.",
    "  \n",
    "Ben &amp; Carl\r\nran <b> and &amp;\n",
    "so it was so \n" * 40,
    "dora won.",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("vocabulary")
    tiny.write_vocabulary(directory)
    return directory / RELEASED_NAMES[0], directory / RELEASED_NAMES[1]


@pytest.fixture(scope="module")
def encoder(vocabulary: tuple[Path, Path]) -> TextEncoder:
    return TextEncoder(*vocabulary)


@pytest.fixture
def make(
    vocabulary: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Corpus]:
    """Return a function that makes a corpus in ``corpus`` of small pieces."""
    monkeypatch.setattr(pieces, "PIECE", 50)
    # tqdm's thread, which an earlier test has started, holds no lock that matters here.
    monkeypatch.setattr(workers, "_start_method", lambda: "fork")

    def make(*names: Path, **changes: Any) -> Corpus:
        sources = find_sources([str(name) for name in names])
        settings = {"vocabulary": vocabulary, "held_out": 0.0, "n_processes": 1, **changes}
        return make_corpus(sources, tmp_path / "corpus", **settings)

    return make


def json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# ------------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("n_processes", [1, 2])
def test_ids_are_those_of_the_whole_documents(
    make: Callable[..., Corpus], encoder: TextEncoder, tmp_path: Path, n_processes: int
) -> None:
    corpus = make(json_lines(tmp_path / "x.jsonl", TEXTS), n_processes=n_processes)
    kept = [text for text in TEXTS if text.strip()]
    ids = encoder.encode(kept)
    assert corpus.tokens.tolist() == [i for document in ids for i in document]
    assert np.diff(corpus.documents[:, 0]).tolist() == [len(document) for document in ids]
    n_words = [len(text.replace("&amp;", "&").split()) for text in kept]
    assert np.diff(corpus.documents[:, 1]).tolist() == n_words
    header = corpus.header
    assert (header.n_documents, header.n_words) == (4, sum(n_words))
    assert header.n_characters == sum(map(len, TEXTS))
    assert corpus.train.size == header.n_tokens == corpus.tokens.size
    assert corpus.held_out.size == header.n_held_out_documents == 0
    assert corpus.tokens.dtype == np.dtype("<u2")
    assert isinstance(corpus.train, np.memmap)
    table = np.load(tmp_path / "corpus/documents.npy")  # NumPy reads what it did not write.
    assert table.tolist() == corpus.documents.tolist()
    assert sorted(content(tmp_path / "corpus")) == sorted(
        ["corpus.json", "tokens.bin", "documents.npy", *RELEASED_NAMES]
    )


def test_files_are_one_document_each_and_the_vocabulary_is_complete(
    make: Callable[..., Corpus], vocabulary: tuple[Path, Path], encoder: TextEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, newline="")
    corpus = make(folder)
    assert corpus.header.n_documents == 4
    assert corpus.tokens.tolist() == [i for ids in encoder.encode(TEXTS) for i in ids]
    for ours, given in zip(corpus.vocabulary, vocabulary, strict=True):
        assert ours.read_bytes() == given.read_bytes()


def test_a_large_vocabulary_takes_four_bytes_per_id(
    make: Callable[..., Corpus], vocabulary: tuple[Path, Path], tmp_path: Path
) -> None:
    names = sorted(json.loads(vocabulary[0].read_text()), key="a</w>".__eq__)  # this one last
    names[:0] = [f"_{number}_" for number in range(70_000)]
    tokens = {name: i for i, name in enumerate(names)}
    large = tmp_path / "large.json"
    large.write_text(json.dumps(tokens))
    (tmp_path / "a.txt").write_text("a kite")
    corpus = make(tmp_path / "a.txt", vocabulary=(large, vocabulary[1]))
    assert corpus.tokens.dtype == np.dtype("<u4")
    assert corpus.tokens.tolist() == [tokens["a</w>"], tokens["kite</w>"]]
    assert tokens["a</w>"] > 65535


@pytest.mark.parametrize(
    ("share", "n_held_out"), [(0.01, 1), (0.3, 3), (0.5, 5), (0.999, 9), (0.0, 0)]
)
def test_the_last_documents_are_held_out(
    make: Callable[..., Corpus], encoder: TextEncoder, tmp_path: Path, share: float, n_held_out: int
) -> None:
    texts = [f"anna had {'a big ' * number}kite" for number in range(10)]
    corpus = make(json_lines(tmp_path / "x.jsonl", texts), held_out=share)
    expected = encoder.encode(texts[10 - n_held_out :] if n_held_out else [])
    assert corpus.held_out.tolist() == [i for ids in expected for i in ids]
    assert corpus.train.size + corpus.held_out.size == corpus.header.n_tokens
    header = corpus.header
    assert header.n_held_out_documents == n_held_out
    held_out = texts[10 - n_held_out :]
    assert header.n_held_out_words == sum(len(text.split()) for text in held_out)
    assert header.n_held_out_characters == sum(map(len, held_out))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_of_a_single_document_the_end_is_held_out(
    make: Callable[..., Corpus], encoder: TextEncoder, tmp_path: Path, n_processes: int
) -> None:
    lines = [f"anna had {'a big ' * (number % 5)}kite.\n" for number in range(100)]
    path = tmp_path / "a.txt"
    path.write_text("".join(lines))
    corpus = make(path, held_out=0.1, n_processes=n_processes)
    held_out = corpus.header.n_held_out_characters
    text = "".join(lines)
    assert len(text) * 0.1 <= held_out < len(text) * 0.1 + 50
    (ids,) = encoder.encode([text[-held_out:]])
    assert corpus.held_out.tolist() == [*encoder.newline, *ids]
    assert corpus.header.n_held_out_words == len(text[-held_out:].split())
    assert corpus.tokens.tolist() == encoder.encode([text])[0]


def test_a_learned_vocabulary_has_no_unknown_token_in_its_text(
    make: Callable[..., Corpus], tmp_path: Path
) -> None:
    path = json_lines(tmp_path / "x.jsonl", [*TEXTS, "kite " * 30 + "ß"])
    corpora = []
    for n_processes in (1, 2):
        corpus = make(path, vocabulary=None, n_merges=12, n_processes=n_processes)
        assert corpus.header.n_vocab > 12
        assert 0 not in corpus.tokens
        encoder = TextEncoder(*corpus.vocabulary, check_merges=True)
        assert corpus.tokens[-2:].tolist() == encoder.encode(["kite ß"])[0]
        corpora.append(content(corpus.directory))
        shutil.rmtree(corpus.directory)
    assert corpora[0] == corpora[1]
    with pytest.raises(InputError, match=r"--n_merges 5000: the texts have \d+ merges of pairs"):
        make(path, vocabulary=None, n_merges=5000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl"]


@pytest.mark.slow
def test_processes_that_are_spawned_give_the_same(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json_lines(tmp_path / "x.jsonl", TEXTS)
    first = content(make(path).directory)
    shutil.rmtree(tmp_path / "corpus")
    monkeypatch.setattr(workers, "_start_method", lambda: "spawn")
    assert content(make(path, n_processes=2).directory) == first


# ------------------------------------------------------------------------------- crashes


def start(
    text: Path, vocabulary: tuple[Path, Path], place: Path, *changes: processes.Change
) -> Running:
    """Start the command in a process of its own, which works in small pieces on two cores."""
    words = [str(text), "--out", str(place / "corpus"), "--vocabulary", str(vocabulary[0].parent)]
    small = [
        partial(processes.set_constant, "gpt1.text_utils.pieces", "PIECE", 50),
        partial(processes.set_constant, "gpt1.batches.corpus_making", "SAVE_EVERY", 0.0),
        partial(processes.set_constant, "gpt1.batches.corpus_making", "_BYTES_PER_PROCESS", 1),
    ]
    return Running(partial(command.main, words), [*small, *changes], place / "printed")


def do(*args: Any) -> Done:
    return start(*args).wait()


def messages(done: Done) -> list[str]:
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("gpt1 corpus: ")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    return json_lines(path, [*TEXTS, "<\n" + "&amp; so it was\n" * 60, *TEXTS])


@pytest.fixture(scope="module")
def whole(
    fork_server: None,
    text: Path,
    vocabulary: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The files of a corpus that was made without interruption."""
    place = tmp_path_factory.mktemp("whole")
    done = do(text, vocabulary, place)
    assert done.status == 0
    assert messages(done) == [
        f"gpt1 corpus: written: {place}/corpus (9 documents, 599 words, 1,005 tokens, of which 3 "
        "are held out; 100 tokens in the vocabulary)"
    ]
    return content(place / "corpus")


SAVE = "gpt1.batches.corpus_draft:Draft.save"


MOMENTS = {
    "first save": (SAVE, 1),
    "second save": (SAVE, 2),
    "fifth save": (SAVE, 5),
    "twentieth save": (SAVE, 20),
    "fortieth save": (SAVE, 40),
    "end of a document": ("gpt1.batches.corpus_draft:Draft.end_document", 3),
    "table of documents": ("gpt1.batches.corpus_draft:Draft._write_documents", 1),
    "header": ("gpt1.batches.corpus:Header.write", 1),
    "rename": ("os:rename", 1),
}


@pytest.mark.parametrize(
    "moment", processes.slow_but(MOMENTS, "twentieth save", "end of a document", "rename")
)
def test_a_killed_run_goes_on_with_the_same_bytes(
    text: Path,
    vocabulary: tuple[Path, Path],
    whole: dict[str, bytes],
    tmp_path: Path,
    moment: str,
) -> None:
    target, call = MOMENTS[moment]
    kill = processes.before(target, processes.sends_itself(SIGKILL), call=call)
    assert do(text, vocabulary, tmp_path, kill).status == -SIGKILL
    assert not (tmp_path / "corpus").exists()
    assert (tmp_path / DRAFT).is_dir()
    for _ in range(2):  # Each goes on a little further.
        again = do(text, vocabulary, tmp_path, kill)
        if again.status == 0:
            break
    if again.status != 0:
        again = do(text, vocabulary, tmp_path)
    assert again.status == 0, again.stderr
    assert content(tmp_path / "corpus") == whole
    assert not (tmp_path / DRAFT).exists()


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_signal_ends_the_run_and_the_same_command_goes_on(
    text: Path,
    vocabulary: tuple[Path, Path],
    whole: dict[str, bytes],
    tmp_path: Path,
    number: int,
) -> None:
    change = processes.before(SAVE, processes.sends_itself(number), call=7)
    done = do(text, vocabulary, tmp_path, change)
    assert done.status == 128 + number
    assert messages(done) == [
        f"gpt1 corpus: stopped by {number.name}: the same command goes on from where it was"
    ]
    assert not (tmp_path / "corpus").exists()
    place = json.loads((tmp_path / DRAFT / "progress.json").read_text())["progress"]["place"]
    assert place["line"] + place["offset"] > 0
    assert do(text, vocabulary, tmp_path).status == 0
    assert content(tmp_path / "corpus") == whole


def test_a_process_that_the_system_ends_is_reported(
    text: Path, vocabulary: tuple[Path, Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    change = processes.before(
        "gpt1.batches.corpus_making:_parts_of_all", processes.sends_itself(SIGKILL), call=9
    )
    done = do(text, vocabulary, tmp_path, change)
    assert done.status == 1
    (message,) = messages(done)
    assert "a process that this program started was ended by the system" in message
    assert do(text, vocabulary, tmp_path).status == 0
    assert content(tmp_path / "corpus") == whole


@pytest.mark.parametrize("n_bytes", [0, 100, 1000])
def test_a_full_disk_is_one_message_and_loses_nothing(
    make: Callable[..., Corpus], text: Path, tmp_path: Path, n_bytes: int
) -> None:
    whole = content(make(text).directory)
    shutil.rmtree(tmp_path / "corpus")
    with (
        short_files(n_bytes),
        pytest.raises(Gpt1Error, match=r"File too large.*Free ") as full,
    ):
        make(text)
    assert str(full.value).startswith(f"{tmp_path / DRAFT}/")
    assert not (tmp_path / "corpus").exists()
    assert content(make(text).directory) == whole


def test_other_texts_or_settings_begin_anew(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json_lines(tmp_path / "x.jsonl", TEXTS)
    expected = content(make(path, held_out=0.5).directory)
    shutil.rmtree(tmp_path / "corpus")
    starts: list[Place] = []
    original = corpus_making.read_pieces

    def read(sources: Any, start: Place, **changes: Any) -> Any:
        starts.append(start)
        return original(sources, start, **changes)

    monkeypatch.setattr(corpus_making, "read_pieces", read)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_draft.Draft, "finish", lambda *_: 1 / 0)
        for share in (0.0, 0.5):
            with pytest.raises(ZeroDivisionError):
                make(path, held_out=share)
        (tmp_path / "y.jsonl").write_bytes(path.read_bytes())
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "y.jsonl", held_out=0.5)
        with pytest.raises(ZeroDivisionError):
            make(path, held_out=0.5)
    make(path, held_out=0.5)
    assert starts[:4] == [Place()] * 4
    assert starts[4].line > 0  # goes on
    assert content(tmp_path / "corpus") == expected


def test_blank_documents_at_the_ends_are_left_out(
    make: Callable[..., Corpus], tmp_path: Path
) -> None:
    plain = make(json_lines(tmp_path / "x.jsonl", TEXTS), held_out=0.3)
    expected = [plain.tokens.tolist(), plain.documents[-1, :2].tolist(), plain.held_out.tolist()]
    shutil.rmtree(tmp_path / "corpus")
    found = make(json_lines(tmp_path / "y.jsonl", [" ", *TEXTS, " ", "\n"]), held_out=0.3)
    found.check_tokens()
    assert [found.tokens.tolist(), found.documents[-1, :2].tolist(), found.held_out.tolist()] == (
        expected
    )


def test_a_draft_that_has_lost_ids_is_not_gone_on_with(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json_lines(tmp_path / "x.jsonl", TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_draft.Draft, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(path)
    (tokens,) = tmp_path.glob(".corpus.unfinished/tokens.bin")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(InputError):
        make(path)
    found = make(path)
    found.check_tokens()
    assert found.tokens.any()


def test_one_process_at_a_time_makes_a_corpus(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_draft, "_LOCK_PAUSE", 0)
    path = json_lines(tmp_path / "x.jsonl", TEXTS)
    with corpus_draft.Draft(tmp_path / "corpus", {}):
        with pytest.raises(InputError, match="another process is making a corpus there; wait"):
            make(path)
        assert (tmp_path / DRAFT).exists()
    make(path)


# ------------------------------------------------------------------------------- bad input


def test_texts_without_words_are_refused(make: Callable[..., Corpus], tmp_path: Path) -> None:
    blank = json_lines(tmp_path / "x.jsonl", ["", "\n", " \u200b\ufeff\n"][:2])
    empty = tmp_path / "a.txt"
    empty.touch()
    for names in ([blank], [empty], [empty, blank]):
        with pytest.raises(InputError, match="the texts hold no words; name other files"):
            make(*names)
    with pytest.raises(InputError, match="--n_merges 5: the texts have 0 merges"):
        make(blank, vocabulary=None, n_merges=5)
    (tmp_path / "line.txt").write_text("one line alone\n")
    with pytest.raises(InputError, match=r"--holdout 0\.1: the texts are one document, and no new"):
        make(tmp_path / "line.txt", held_out=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "line.txt", "x.jsonl"]


def test_a_vocabulary_that_does_not_fit_its_merges_is_refused(
    make: Callable[..., Corpus], vocabulary: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a kite")
    merges = tmp_path / "merges"
    merges.write_text(vocabulary[1].read_text() + "x x\n")
    with pytest.raises(InputError, match="makes 'xx', which the vocabulary lacks") as caught:
        make(tmp_path / "a.txt", vocabulary=(vocabulary[0], merges))
    assert str(caught.value).startswith(f"{merges}, line ")
    assert not (tmp_path / DRAFT).exists()


@pytest.fixture
def made(make: Callable[..., Corpus], tmp_path: Path) -> Path:
    return make(json_lines(tmp_path / "x.jsonl", TEXTS)).directory


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "corpus.json").unlink(), "there is no corpus in this directory, which"),
        (lambda d: edited(d / "corpus.json", version=2), "is not the header of a corpus of ver"),
        (lambda d: edited(d / "corpus.json", format="x"), "is not the header of a corpus of ve"),
        (lambda d: edited(d / "corpus.json", dtype="uint8"), "expected dtype to be uint16 or u"),
        (lambda d: edited(d / "corpus.json", dtype="uint32"), "uint32 is not the type of ids"),
        (lambda d: edited(d / "corpus.json", n_tokens=3), r"tokens.bin: has \d+ bytes, but 6 "),
        (lambda d: edited(d / "corpus.json", n_held_out_tokens=999), "n_held_out_tokens 999 is mo"),
        (lambda d: edited(d / "corpus.json", n_words=1), "is not the table of this corpus's doc"),
        (lambda d: edited(d / "corpus.json", n_documents=3), "is not the table of this corpus's"),
        (lambda d: (d / "corpus.json").write_text("["), "expected one JSON object, found '\\['"),
        (lambda d: (d / "tokens.bin").write_bytes(b"abc"), "has 3 bytes, but .* were expected"),
        (lambda d: (d / "tokens.bin").unlink(), "the token file cannot be read: No such file"),
        (lambda d: (d / "documents.npy").unlink(), "the table of documents cannot be read: No"),
        (lambda d: (d / "documents.npy").write_bytes(b"x"), "is not the table of this corpus's"),
        (lambda d: (d / RELEASED_NAMES[0]).unlink(), "the vocabulary cannot be read: No such"),
        (
            lambda d: edited(d / RELEASED_NAMES[0], **{"a": 1, "a</w>": 0}),
            "are not the vocabulary with which the corpus was made; put the right ones back",
        ),
        (lambda d: (d / RELEASED_NAMES[1]).write_text("#\n"), "are not the vocabulary with whic"),
    ],
)
def test_a_damaged_corpus_is_refused(
    made: Path, damage: Callable[[Path], object], message: str
) -> None:
    Corpus.open(made)
    damage(made)
    with pytest.raises(InputError, match=message) as caught:
        Corpus.open(made)
    assert str(caught.value).startswith(str(made))
