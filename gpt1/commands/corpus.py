"""Encode text for pretraining: ``gpt1 corpus TEXT... --out DIR``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING

from gpt1.commands.running import note, note_written, run_command
from gpt1.runtime.errors import InputError
from gpt1.runtime.stopping import StopRequests
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, fraction, setting
from gpt1.settings.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from gpt1.batches.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Texts, vocabulary and corpus."""

    texts: tuple[str, ...] = setting(
        MISSING,
        "text files, directories with .txt files, or .jsonl files with one document per line in "
        "the field text",
        metavar="FILE",
        argument=True,
    )
    out: str = setting(MISSING, "new directory for the corpus", metavar="DIR")
    vocabulary: str | None = setting(
        None, "directory of a model whose vocabulary to use [model/, or model/demo]", metavar="DIR"
    )
    n_merges: int | None = setting(
        None, "learn a vocabulary of so many merges from the texts", at_least(1)
    )
    holdout: float = setting(
        0.01,
        "share of the documents, at least one, to hold out for validation; of one document, its "
        "end",
        fraction,
    )

    def contradictions(self) -> Iterator[str]:
        """Find flags that exclude one another."""
        if self.vocabulary is not None and self.n_merges is not None:
            yield "--vocabulary, --n_merges: give one of them: use a vocabulary, or learn one"


COMMAND = Command(
    name="corpus",
    summary="Encode text into a corpus of token ids, to pretrain on.",
    groups=(CorpusSettings,),
    examples="""\
  # all .txt files of a directory, with the vocabulary in model/
  gpt1 corpus texts --out out/corpus

  # one document per line, with a vocabulary of its own
  gpt1 corpus stories.jsonl --out out/stories --n_merges 8000""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if a flag or a file is wrong."""
    return run_command(COMMAND, _make, argv)


def _make(values: Values) -> None:
    given = values[CorpusSettings]
    with StopRequests() as stop:
        stop.where = "the same command goes on from where it was"
        with stop.held():  # An interrupted import of NumPy fails.
            from pathlib import Path

            from gpt1.batches.corpus_making import make_corpus
            from gpt1.text_utils.documents import find_sources
        stop.check()
        corpus = make_corpus(
            find_sources(given.texts),
            Path(given.out),
            vocabulary=None if given.n_merges is not None else _vocabulary(given.vocabulary),
            n_merges=given.n_merges or 0,
            held_out=given.holdout,
        )
    note_written(COMMAND.program, given.out, _sizes(corpus))


def _vocabulary(model_dir: str | None) -> tuple[Path, Path]:
    """Return the files of the vocabulary in a directory, or in that of the default model."""
    from gpt1.weights import locate

    if model_dir is None:
        model_dir = str(locate.default_model_dir())
        if model_dir != "model":
            note(COMMAND.program, f"no model in model/, using the demo's in {model_dir}/")
    files = locate.vocabulary_files(model_dir)
    for path in files:
        if problem := locate.missing_vocabulary(path, "name its directory with --vocabulary DIR"):
            raise InputError(problem)
    return files


def _sizes(corpus: Corpus) -> str:
    """Describe a corpus in a few words."""
    sizes = corpus.header
    return (
        f"{counted(sizes.n_documents, 'document')}, {counted(sizes.n_words, 'word')}, "
        f"{counted(sizes.n_tokens, 'token')}, of which {sizes.n_held_out_tokens:,} are held out; "
        f"{counted(sizes.n_vocab, 'token')} in the vocabulary"
    )
