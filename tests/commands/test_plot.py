"""Runs from logs, attention, figures, TensorBoard's files, and the program that makes them."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from cloze import EncodedCloze, lay_out
from evaluations import log_line
from peers import SMALL, their_model

from gpt1.commands import plot, plot_attention
from gpt1.datasets.story_cloze import COLUMNS, TEST_CSV, VALIDATION_CSV, read_cloze
from gpt1.inference.attention import (
    PARTS,
    EncodedSentences,
    StorySentences,
    attention_maps,
    average_shares,
    encode_sentences,
    read_story_sentences,
    token_labels,
)
from gpt1.inference.opened import OpenedModel
from gpt1.reports import attention_figures, figures, learning_curves
from gpt1.reports.runs import align, are_repetitions, table
from gpt1.results.log_lines import Run, UpdateLine, read_run_log, read_runs, read_updates
from gpt1.results.tensorboard import TensorBoard, write_run
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.tasks.layouts import pair
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.special import SpecialTokens
from gpt1.training import prepare
from gpt1.training.logs import JsonLines
from gpt1.weights import jl, parameters

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
SPECIAL = SpecialTokens.after(SMALL.n_vocab)
START_OF_PICTURE = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


# ------------------------------------------------------------------------------- writing logs


def evaluation(n_updates: int, va_acc: float, **changes: Any) -> dict[str, Any]:
    figures = {"tr_cost": 0.5, "va_cost": 0.75, "tr_acc": 90.0, "va_acc": va_acc}
    return {"n_epochs": n_updates // 2, "n_updates": n_updates, **figures, "time": 9.0, **changes}


def update(n: int, **changes: Any) -> dict[str, Any]:
    costs = {"clf_cost": 1 / n, "lm_cost": 2 / n}
    line = {"n_updates": n, **costs, "lr": 0.5**n, "grad_norm": 3.0 * n, "time": 100.0 + n / 4}
    return {**line, **changes}


def write_lines(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in texts))
    return path


def write_log(
    directory: Path,
    name: str,
    evaluations: Sequence[dict[str, Any]],
    updates: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """Write both logs of a run; return the path of the log of evaluations."""
    if updates is not None:
        write_lines(directory / f"{name}.updates.jsonl", updates)
    return write_lines(directory / f"{name}.jsonl", [{"desc": name}, *evaluations])


def some_run(name: str = "a", n_updates: int = 8, **changes: Any) -> Run:
    return Run(
        name=name,
        evaluations=[log_line(evaluation(2 * n, 50.0 + n)) for n in range(1, 5)],
        updates=[UpdateLine(**update(n, **changes)) for n in range(1, n_updates + 1)],
    )


# ------------------------------------------------------------------------------- reading logs


@pytest.mark.parametrize("with_lm", [True, False])
def test_what_training_logs_is_read_back(tmp_path: Path, with_lm: bool) -> None:
    log = JsonLines(tmp_path / "run.jsonl")
    log.write(desc="run")
    log.write(**evaluation(2, 60.0))
    updates = JsonLines(tmp_path / "run.updates.jsonl")
    lm_cost = 1.5 if with_lm else None
    updates.write(**update(1, clf_cost=0.5, lm_cost=lm_cost, lr=0.25, grad_norm=2.5))
    updates.write(**update(2, clf_cost=math.nan, lm_cost=math.inf if with_lm else None))
    (run,) = read_runs([tmp_path / "run.jsonl"])
    assert run.name == "run"
    assert run.evaluations == [log_line(evaluation(2, 60.0))]
    first, second = run.updates
    assert replace(first, time=0) == UpdateLine(
        n_updates=1,
        clf_cost=0.5,
        lm_cost=lm_cost,
        lr=0.25,
        grad_norm=2.5,
        time=0,
    )
    assert math.isnan(second.clf_cost)
    assert second.n_updates == 2


def test_events_are_no_updates(tmp_path: Path) -> None:
    path = tmp_path / "run.updates.jsonl"
    log = JsonLines(path)
    log.write(**update(1))
    log.write(n_updates=1, event="diverging", message="too high")
    log.write(**update(2))
    log.close()
    assert '"event": "diverging"' in path.read_text()
    assert [line.n_updates for line in read_updates(path)] == [1, 2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "expected one JSON object, found ''; if a crash"),
        ('{"n_updates": 3, "clf', "expected one JSON object, found"),
        ("3", "expected one JSON object, found '3'"),
        ("[" * 100_000, "expected one JSON object, found"),
        (evaluation(3, 1.0), "expected clf_cost to be a number or null, found nothing; name"),
        (update(3, clf_cost="1"), "expected clf_cost to be a number or null, found '\"1\"'"),
        (update(3, lr="0.1"), "expected lr to be a number, found '\"0.1\"'"),
        (update(3, grad_norm=True), "expected grad_norm to be a number, found 'true'"),
        (update(3, lm_cost=[1]), "expected lm_cost to be a number or null, found '[1.0]'"),
        (update(3, n_updates=2.5), "expected n_updates to be a whole number from 1, found '2.5'"),
        (update(3, n_updates=0), "expected n_updates to be a whole number from 1, found '0.0'"),
        (update(3, n_updates=10**400), "n_updates to be a whole number from 1, found 'Infinity'"),
        (update(2), "expected an update after number 2, found number 2; delete the lines"),
    ],
)
def test_a_bad_line_of_updates_is_named(
    tmp_path: Path, bad: dict[str, Any] | str, message: str
) -> None:
    path = write_lines(tmp_path / "a.updates.jsonl", [update(1), update(2), bad, update(4)])
    with pytest.raises(InputError) as caught:
        read_updates(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)


def test_a_log_of_updates_may_be_empty_or_have_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.updates.jsonl"
    path.write_bytes(b"")
    assert read_updates(path) == []
    path.write_bytes(b"".join(json.dumps(update(n)).encode() + b"\r\n" for n in (1, 2)))
    assert read_updates(path) == [UpdateLine(**update(1)), UpdateLine(**update(2))]
    path.write_text(json.dumps(update(1)))
    assert read_updates(path) == [UpdateLine(**update(1))]
    with pytest.raises(InputError, match=r"b\.updates\.jsonl: the log of updates cannot be read"):
        read_updates(tmp_path / "b.updates.jsonl")


def test_all_logs_of_a_directory_are_its_runs(tmp_path: Path) -> None:
    for name in "ab":
        write_log(tmp_path, name, [evaluation(2, 60.0)], [update(1)])
    write_log(tmp_path, "c", [evaluation(2, 60.0)])
    paths = sorted(tmp_path.glob("*.jsonl"))
    assert len(paths) == 5
    runs = read_runs([*paths, paths[0]])
    assert [(run.name, len(run.updates)) for run in runs] == [("a", 1), ("b", 1), ("c", 0)]


def test_runs_of_one_name_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    paths = [write_log(tmp_path / part, "run", [evaluation(2, 1.0)]) for part in "ab"]
    paths.append(write_log(tmp_path / "a", "other", [evaluation(2, 1.0)]))
    names = [run.name for run in read_runs(paths)]
    assert names == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "other"]


def test_a_log_of_updates_alone_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, "a", [evaluation(2, 1.0)], [update(1)])
    with pytest.raises(InputError, match=r"a\.updates\.jsonl: a log of updates; name .*a\.jsonl"):
        read_runs([tmp_path / "a.updates.jsonl"])


# ------------------------------------------------------------------------------- pretraining


def of_pretraining(n_updates: int, va_cost: float) -> dict[str, Any]:
    costs = {"tr_cost": va_cost - 0.5, "va_cost": va_cost, "va_ppl": math.exp(va_cost)}
    figures = {**costs, "va_word_ppl": math.exp(1.25 * va_cost), "tokens_per_second": 1000.0}
    return {"n_epochs": 0, "n_updates": n_updates, **figures, "time": 9.0}


def pretraining_log(directory: Path, name: str = "words") -> Path:
    """Write the logs of a run whose second evaluation is the best."""
    lines = [of_pretraining(2 * n, cost) for n, cost in enumerate((4.0, 3.0, 3.5), 1)]
    updates = [update(n, clf_cost=None) for n in range(1, 7)]
    write_lines(directory / f"{name}.updates.jsonl", updates)
    return write_lines(directory / f"{name}.jsonl", [{"desc": name, "corpus": "x"}, *lines])


def test_a_run_of_pretraining_has_losses_and_perplexities(tmp_path: Path) -> None:
    (run,) = read_runs([pretraining_log(tmp_path)])
    assert (run.is_pretraining, run.best.n_updates) == (True, 4)
    figure = learning_curves.curves([run], smooth=1)
    axes = panels(figure)
    assert list(axes) == [
        "Language-model loss at evaluations",
        "Perplexity at evaluations",
        "Language-model loss of each update",
        "Learning rate",
        NORM,
    ]
    at, costs = [2, 4, 6], [4.0, 3.0, 3.5]
    train, valid, best = drawn(axes["Language-model loss at evaluations"])
    assert (train, valid) == ((at, [3.5, 2.5, 3.0]), (at, costs))
    assert best == ([4], [3.0])
    train, valid, best = drawn(axes["Perplexity at evaluations"])
    assert valid == (at, [math.exp(cost) for cost in costs])
    assert train == (at, [math.exp(cost - 0.5) for cost in costs])
    assert key(axes["Perplexity at evaluations"])[-1] == "best evaluation"
    title = f"Run words, best after update 4: held-out perplexity {math.exp(3):.2f} per token"
    assert figure.get_suptitle() == title


def test_runs_of_two_kinds_are_in_one_table_and_in_no_picture(tmp_path: Path) -> None:
    tuned = write_log(tmp_path, "tuned", [evaluation(2, 60.0)])
    runs = read_runs([tuned, pretraining_log(tmp_path)])
    heading, _, _, row = table(runs).split("\n")
    assert heading.split()[:4] == ["run", "valid", "acc", "%"]
    assert row.split() == ["words", "-", "0", "4", "-", "2.500", "3.000", "20.09", "4.00"]
    with pytest.raises(InputError, match="words: of pretraining, while the others are not"):
        learning_curves.curves(runs)


def test_a_log_of_pretraining_is_none_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"words\.jsonl: the log of a pretraining run; name a log"):
        read_run_log(pretraining_log(tmp_path))


@pytest.mark.parametrize("name", ["va_word_ppl", "tokens_per_second"])
def test_a_bad_line_of_pretraining_is_named(tmp_path: Path, name: str) -> None:
    lines = [of_pretraining(2, 4.0), {**of_pretraining(4, 3.0), name: "x"}]
    with pytest.raises(InputError, match=rf"a\.jsonl, line 3: expected {name} to be a number"):
        read_runs([write_log(tmp_path, "a", lines)])


# ------------------------------------------------------------------------------- the table


def test_the_best_epoch_is_the_one_whose_parameters_are_kept() -> None:
    accuracies = [50.0, 70.0, 60.0, 70.0]
    lines = [log_line(evaluation(2 * i, acc)) for i, acc in enumerate(accuracies, 1)]
    assert Run(name="a", evaluations=lines, updates=[]).best.n_updates == 4  # the first of equals


def test_speed_is_that_between_evaluations_and_pauses() -> None:
    run = some_run()
    assert run.updates_per_second == pytest.approx(4)
    last = run.updates[-1]
    paused = replace(run, updates=[*run.updates[:-1], replace(last, time=last.time + 3600)])
    assert paused.updates_per_second == pytest.approx(4)
    assert replace(run, updates=run.updates[:1]).updates_per_second is None
    at_once = [replace(line, time=1.0) for line in run.updates]
    assert replace(run, updates=at_once).updates_per_second is None


TABLE = """\
run      valid acc %  epoch  updates  train acc %  train cost  valid cost  updates/s
------------------------------------------------------------------------------------
first          70.25      2        4        90.00       0.500       0.750       4.00
second         60.00      1        2        90.00         nan       0.500          -
------------------------------------------------------------------------------------
median         65.12                        90.00         nan       0.625       4.00
lowest         60.00                        90.00         nan       0.500       4.00
highest        70.25                        90.00         nan       0.750       4.00"""
ONE_RUN = """\
run    valid acc %  epoch  updates  train acc %  train cost  valid cost  updates/s
----------------------------------------------------------------------------------
first        70.25      2        4        90.00       0.500       0.750       4.00"""


def test_the_table_of_repeated_runs_ends_in_median_and_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_log(tmp_path, "first", [evaluation(4, 70.25)], [update(1), update(2)])
    diverged = evaluation(2, 60.0, tr_cost=math.nan, va_cost=0.5)
    second = write_log(tmp_path, "second", [diverged])
    assert plot.main(["table", str(first), str(second)]) == 0
    assert capsys.readouterr() == (TABLE + "\n", "")
    assert table(read_runs([first])) == ONE_RUN


def test_the_table_of_unrelated_runs_has_no_median(tmp_path: Path) -> None:
    paths = []
    for name, lr in (("first", 0.5), ("second", 0.25)):
        settings = {"desc": name, "lr": lr}
        paths.append(write_lines(tmp_path / f"{name}.jsonl", [settings, evaluation(2, 60.0)]))
    text = table(read_runs(paths))
    assert [line.split()[0] for line in text.split("\n")[2:]] == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "repeated"),
    [
        ({"seed": 2, "desc": "b", "log_dir": "elsewhere/", "run_id": "b", "time": 2.0}, True),
        ({"device": "cuda", "n_processes": 2, "torch_version": "3.0"}, True),
        ({"n_iter": 4}, False),
        ({"n_layer": 1}, False),  # --n_layer is no part of what a resumed run must share
        ({"init_params": "a.jl"}, False),
        ({"model_dir": "other"}, False),
    ],
)
def test_repeated_runs_differ_in_seed_and_outputs_alone(
    changes: dict[str, Any], repeated: bool
) -> None:
    settings = {"seed": 1, "desc": "a", "n_iter": 3, "n_layer": None, "model_dir": "model"}
    first = replace(some_run(), settings=settings)
    assert are_repetitions([first, replace(first, settings=settings | changes)]) == repeated
    assert not are_repetitions([first])


def test_align_gives_every_column_its_widest_cell() -> None:
    rows = [["a", "bb", "c"], ["long", "1", "22"]]
    assert align(rows) == "a     bb   c\nlong   1  22"
    assert align(rows, rules=(0,)).split("\n")[1] == "-" * 12


# ------------------------------------------------------------------------------- attention


def random_ids(T: int) -> list[int]:
    generator = np.random.RandomState(T)
    return [*generator.randint(0, SMALL.clf_token, T - 1).tolist(), SMALL.clf_token]


@pytest.mark.parametrize("T", [1, 2, 9, 24])
def test_maps_are_those_of_transformers(T: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = reference.random_model(SMALL, std=0.5).float()
    theirs: Any = their_model(transformers.OpenAIGPTModel, model)
    theirs.set_attn_implementation("eager")
    ids = random_ids(T)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    maps = attention_maps(model, ids)
    assert maps.shape == (SMALL.n_layer, SMALL.n_head, T, T)
    torch.testing.assert_close(maps, torch.cat(expected), rtol=0, atol=1e-5)
    if T > 9:  # The weights are neither even nor the same in all heads.
        assert maps[:, :, -1].max() > 3 / T
        assert (maps[1, 0] - maps[1, 1]).abs().max() > 0.1


def test_rows_sum_to_one_and_nobody_looks_ahead() -> None:
    maps = attention_maps(reference.random_model(SMALL).float(), random_ids(20))
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 20), rtol=0, atol=1e-6)
    later = torch.ones(20, 20).triu(1).bool()
    assert (maps[:, :, later] == 0).all()
    assert (maps[:, :, ~later] > 0).all()


def test_later_tokens_change_nothing_before_them() -> None:
    model = reference.random_model(SMALL).float()
    long, short = attention_maps(model, random_ids(20)), attention_maps(model, random_ids(20)[:7])
    torch.testing.assert_close(long[:, :, :7, :7], short, rtol=0, atol=1e-6)


def test_maps_are_without_dropout_and_leave_the_model_as_it_was() -> None:
    config = replace(SMALL, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)
    model = reference.random_model(config).float().train()
    first, second = attention_maps(model, random_ids(9)), attention_maps(model, random_ids(9))
    assert torch.equal(first, second)
    assert model.training
    assert not first.requires_grad


@pytest.mark.parametrize("T", [0, 25])
def test_a_sequence_without_positions_is_refused(T: int) -> None:
    with pytest.raises(ValueError, match=f"^{T} tokens; the model takes from 1 to 24$"):
        attention_maps(reference.random_model(SMALL).float(), [1] * T)


def test_a_choice_is_laid_out_as_in_training() -> None:
    story, ending = [3, 1, 4, 1], [5, 2]
    ids = pair(story, ending, SPECIAL)
    split = EncodedCloze([story], [ending], [ending], None)
    arrays = lay_out(split, SPECIAL)
    assert ids == arrays.X[0, 0, :, 0].tolist()
    assert arrays.M.all()


# ------------------------------------------------------------------------- attention by parts


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    """The files of the tiny task, and ``best_params.jl``: its checkpoint with a classifier."""
    files = tiny.write_tiny(tmp_path_factory.mktemp("tiny"))
    settings, sources = files.settings(), files.sources()
    task = prepare.load_data(settings, sources, verbose=False)
    settings, config = prepare.resolve(settings, sources, task)
    model = prepare.build_model(settings, sources, config, np.random.RandomState(0))
    jl.write_jl(files.directory / "best_params.jl", parameters.to_list(model))
    return files


@pytest.fixture(scope="module")
def encoder(files: tiny.Tiny) -> TextEncoder:
    sources = files.sources()
    return TextEncoder(sources.encoder_path, sources.bpe_path)


def write_stories(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_sentences_and_right_endings_are_read_apart(tmp_path: Path) -> None:
    rows = [
        ["s0", "one, two", "a\nb", 'said "c"', "d", "first", "second", "2"],
        ["s1", "e", "f", "g", "h", "first", "second", "1"],
    ]
    path = write_stories(tmp_path / "a.csv", rows)
    stories = read_story_sentences(path)
    assert stories == [
        StorySentences(tuple(rows[0][1:5]), "second"),
        StorySentences(tuple("efgh"), "first"),
    ]
    assert [" ".join(story.sentences) for story in stories] == read_cloze(path).stories


def test_each_token_of_a_story_has_its_part() -> None:
    story = EncodedSentences([[0], [1, 2], [3, 4, 5], [6]], [5, 6])
    names = [PARTS[part] for part in story.parts()]
    sentences = [f"sentence {i}" for i in (1, 2, 2, 3, 3, 3, 4)]
    ends = ["_delimiter_", "ending", "ending", "_classify_"]
    assert names == ["_start_", *sentences, *ends]
    assert story.ids(SPECIAL) == [7, 0, 1, 2, 3, 4, 5, 6, 8, 5, 6, 9]


def test_sentences_are_encoded_as_the_joined_story(files: tiny.Tiny, encoder: TextEncoder) -> None:
    path = files.data_dir / TEST_CSV
    encoded = encode_sentences(read_story_sentences(path), encoder)
    cloze = read_cloze(path)
    assert len(encoded) == tiny.N_TEST
    for i, story in enumerate(encoded):
        assert story is not None
        assert list(chain(*story.sentences)) == encoder.encode([cloze.stories[i]])[0]
        endings = cloze.endings1[i], cloze.endings2[i]
        assert story.ending == encoder.encode([endings[cloze.labels[i]]])[0]


@pytest.mark.parametrize(
    ("sentences", "ending"),
    [
        # An entity is one only as long as there is no "<" in the text.
        (("a &lt; b", "anna < ben", "so", "so"), "won"),
        (("\ufeff", "anna ran", "so", "so"), "won"),  # what leaves no token
        (("anna ran", "it was", "so", "so"), "\ufeff"),
    ],
)
def test_a_story_whose_parts_cannot_be_told_apart_is_none(
    encoder: TextEncoder, sentences: tuple[str, ...], ending: str
) -> None:
    usable = StorySentences(("anna ran", "it was", "so", "so"), "won")
    found = encode_sentences([usable, StorySentences(sentences, ending), usable], encoder)
    assert [story is None for story in found] == [False, True, False]


@pytest.mark.parametrize(("name", "longest"), [(TEST_CSV, 75), (VALIDATION_CSV, 77)])
def test_every_real_story_can_be_told_apart(
    rocstories_dir: Path, released_dir: Path, name: str, longest: int
) -> None:
    encoder = TextEncoder(released_dir / "encoder_bpe_40000.json", released_dir / "vocab_40000.bpe")
    encoded = encode_sentences(read_story_sentences(rocstories_dir / name), encoder)
    assert len(encoded) == 1871
    assert None not in encoded
    assert max(len(story.parts()) for story in encoded if story) == longest


STORIES = [
    EncodedSentences([[0], [1, 2], [3, 4, 5], [6]], [5, 6]),
    EncodedSentences([[6, 5, 4], [3], [2], [1, 0]], [0, 1, 2]),
]


def test_the_average_is_that_of_the_maps() -> None:
    """The average agrees with a sum over the maps, token by token."""
    model = reference.random_model(SMALL, std=0.5).float()
    classify, ending = np.zeros((2, 3, 8)), np.zeros((2, 3, 8))
    even_classify, even_ending = np.zeros(8), np.zeros(8)
    for story in STORIES:
        parts = story.parts()
        maps = attention_maps(model, story.ids(SPECIAL)).numpy()
        in_ending = [t for t, part in enumerate(parts) if PARTS[part] == "ending"]
        for t in in_ending:
            for seen in range(t + 1):
                ending[:, :, parts[seen]] += maps[:, :, t, seen] / len(in_ending) / 2
                even_ending[parts[seen]] += 1 / (t + 1) / len(in_ending) / 2
        for seen, part in enumerate(parts):
            classify[:, :, part] += maps[:, :, -1, seen] / 2
            even_classify[part] += 1 / len(parts) / 2
    split = average_shares(model, iter(STORIES), SPECIAL)
    assert split.n_stories == 2
    for found, expected in (
        (split.classify, classify),
        (split.ending, ending),
        (split.even_classify, even_classify),
        (split.even_ending, even_ending),
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.sum(-1).numpy(), 1, rtol=0, atol=1e-6)
    assert (split.ending[..., -1] == 0).all()


def test_an_average_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no story"):
        average_shares(reference.random_model(SMALL).float(), [], SPECIAL)


def test_labels_of_tokens(encoder: TextEncoder) -> None:
    special = SpecialTokens.after(len(encoder.encoder))
    story = [encoder.encoder[piece] for piece in ("anna</w>", "an", "n", ".</w>")]
    labels = token_labels(pair(story, [0], special), encoder, special)
    unknown = encoder.decoder[0]
    assert labels == ["_start_", "anna", "an-", "n-", ".", "_delimiter_", unknown, "_classify_"]
    encoder.decoder[5] = "\n</w>"
    assert token_labels([5], encoder, special) == ["\\n"]


# ------------------------------------------------------------------------------- figures


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes}


LOSS_AT_EVALUATIONS = "Classification loss at evaluations"
ACCURACY = "Accuracy at evaluations"
LOSS = "Classification loss of each update"
NORM = "Gradient norm of each update"
CHANCE = {LOSS_AT_EVALUATIONS: math.log(2), ACCURACY: 50, LOSS: math.log(2)}


def drawn(axes: Any) -> list[tuple[list[float], list[float]]]:
    """The lines from point to point, without those across all of a panel."""
    lines = [line for line in axes.lines if line.get_transform() == axes.transData]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def levels(axes: Any) -> list[float]:
    """The heights of the lines across all of a panel."""
    lines = [line for line in axes.lines if line.get_transform() != axes.transData]
    assert all(line.get_ydata()[0] == line.get_ydata()[1] for line in lines)
    return [line.get_ydata()[0] for line in lines]


def key(axes: Any) -> list[str]:
    """The texts of the legend."""
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_curves_draw_what_the_logs_say() -> None:
    run = some_run()
    axes = panels(learning_curves.curves([run], smooth=3))
    for title, train, valid in (
        (LOSS_AT_EVALUATIONS, "tr_cost", "va_cost"),
        (ACCURACY, "tr_acc", "va_acc"),
    ):
        expected = [[line.figures[name] for line in run.evaluations] for name in (train, valid)]
        *curves, best = drawn(axes.pop(title))
        assert curves == [([2, 4, 6, 8], values) for values in expected]
        assert best == ([8], [run.best.figures[valid]])
    for title, field in (
        (LOSS, "clf_cost"),
        ("Language-model loss of each update", "lm_cost"),
        (NORM, "grad_norm"),
    ):
        values = [getattr(line, field) for line in run.updates]
        (at, raw), (_, smooth) = drawn(axes.pop(title))
        assert (at, raw) == (list(range(1, 9)), values)
        middle = [sum(values[i - 1 : i + 2]) / 3 for i in range(1, 7)]
        assert smooth == pytest.approx([sum(values[:2]) / 2, *middle, sum(values[-2:]) / 2])
    rates = [line.lr for line in run.updates]
    assert drawn(axes.pop("Learning rate")) == [(list(range(1, 9)), rates)]
    assert axes == {}


def test_axes_are_named_by_quantity_and_unit() -> None:
    figure = learning_curves.curves([some_run()])
    assert {title: axes.get_ylabel() for title, axes in panels(figure).items()} == {
        LOSS_AT_EVALUATIONS: "classification loss (nats per example)",
        ACCURACY: "accuracy (%)",
        LOSS: "classification loss (nats per example)",
        "Language-model loss of each update": "language-model loss (nats per token)",
        "Learning rate": "learning rate",
        NORM: "gradient norm before clipping",
    }
    assert {axes.get_xlabel() for axes in figure.axes} == {"update"}
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_training_and_validation_of_a_run_have_two_hues() -> None:
    axes = panels(learning_curves.curves([some_run()], smooth=3))
    for title in (LOSS_AT_EVALUATIONS, ACCURACY):
        train, valid, best, _ = axes[title].lines
        handles = axes[title].get_legend().legend_handles
        assert key(axes[title]) == ["training", "validation", "best epoch", "chance"]
        colours = [handle.get_color() for handle in handles]
        assert colours[:3] == [line.get_color() for line in (train, valid, best)]
        assert train.get_color() != valid.get_color() == best.get_color()
        assert (best.get_marker(), best.get_linestyle()) == ("*", "None")
    for title in (LOSS, NORM, "Learning rate"):  # what is measured on training stories
        assert axes[title].lines[0].get_color() == train.get_color()


def test_chance_is_a_line_where_there_is_one() -> None:
    for title, axes in panels(learning_curves.curves([some_run(), some_run("b")])).items():
        assert levels(axes) == ([CHANCE[title]] if title in CHANCE else [])
        assert ("chance" in key(axes)) == (title in CHANCE)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [([1.0], [1]), ([0.5, 2, 0.5], [0.5, 2]), ([0, -1], []), ([None], []), ([2.0, 0.0], [2])],
)
def test_the_norm_where_clipping_begins_is_a_line(
    norms: list[float | None], expected: list[float]
) -> None:
    runs = [
        replace(some_run(str(i)), settings={} if norm is None else {"max_grad_norm": norm})
        for i, norm in enumerate(norms)
    ]
    axes = panels(learning_curves.curves(runs))[NORM]
    assert levels(axes) == expected
    names = [f"clipped above {norm:g}" for norm in expected]
    assert [name for name in key(axes) if "clipped" in name] == names


def test_epochs_are_above_the_updates() -> None:
    figure = learning_curves.curves([some_run(), some_run("b")])
    for axes in figure.axes:
        (above,) = axes.child_axes
        assert above.get_xlabel() == "epoch"
        figure.draw_without_rendering()
        assert above.get_xlim() == pytest.approx([limit / 2 for limit in axes.get_xlim()])
    lines = [replace(line, n_epochs=line.n_updates) for line in some_run().evaluations]
    other = replace(some_run("c"), evaluations=lines)  # one update per epoch, not two
    assert not any(axes.child_axes for axes in learning_curves.curves([some_run(), other]).axes)


def test_the_mean_is_named_with_what_it_spans() -> None:
    def name(*runs: Run, smooth: int | None = None) -> list[str]:
        return key(panels(learning_curves.curves(runs, smooth=smooth))[NORM])

    assert name(some_run(), smooth=5) == ["each update", "mean of 5 updates"]
    assert name(some_run(n_updates=60)) == ["each update", "mean of 3 updates"]
    both = some_run("long", n_updates=60), some_run("longer", n_updates=100)
    assert name(*both) == ["each update", "mean of 3 to 5 updates"]
    assert name(some_run(), smooth=1) == []
    rates = panels(learning_curves.curves([some_run()]))["Learning rate"]
    assert len(rates.lines) == 1


def test_a_run_shorter_than_the_window_is_not_flattened() -> None:
    runs = [some_run("short"), some_run("long", n_updates=200)]
    for smooth in (None, 50):
        axes = panels(learning_curves.curves(runs, smooth=smooth))[NORM]
        _, thick = [line for line in axes.lines if line.get_linewidth() > 1]
        assert len(thick.get_ydata()) == 200
        short = [values for at, values in drawn(axes) if len(at) == 8][-1]
        # The norms rise from 3 to 24: a flat line would lose what the thick line is for.
        assert max(short) - min(short) > 10


def test_factors_of_axes_do_not_stand_where_the_epochs_are() -> None:
    figure = learning_curves.curves([some_run(lr=6.25e-5, grad_norm=250000.0)])
    figure.draw_without_rendering()
    assert {axes.yaxis.get_offset_text().get_text() for axes in figure.axes} == {""}


def test_moving_mean_keeps_a_nan_to_itself() -> None:
    values = [1.0, 2.0, 6.0, math.nan, 1.0, 1.0, 4.0]
    assert learning_curves.moving_mean(values, 1) == pytest.approx(
        [1.5, 3, math.nan, math.nan, math.nan, 2, 2.5], nan_ok=True
    )
    assert learning_curves.moving_mean(values, 0) == pytest.approx(values, nan_ok=True)
    assert learning_curves.moving_mean([1.0, 2.0], 9) == pytest.approx([1.5, 1.5])


def test_panels_without_figures_are_left_out() -> None:
    no_lm, no_updates = some_run(lm_cost=None), some_run(n_updates=0)
    assert len(panels(learning_curves.curves([no_lm]))) == 5
    assert list(panels(learning_curves.curves([no_updates]))) == [
        LOSS_AT_EVALUATIONS,
        ACCURACY,
    ]
    assert len(panels(learning_curves.curves([no_updates, some_run()]))) == 6
    costs = panels(learning_curves.curves([no_lm, some_run()], smooth=3))
    lines = drawn(costs["Language-model loss of each update"])
    assert [len(at) for at, _ in lines] == [0, 8, 8]


@pytest.mark.parametrize("n", [2, 7, 12])
def test_runs_have_colours_of_their_own_and_a_legend(n: int) -> None:
    runs = [some_run(f"_run${i}$") for i in range(n)]  # neither left out nor set as a formula
    figure = learning_curves.curves(runs)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [run.name for run in runs]
    assert not any(text.get_parse_math() for text in legend.get_texts())
    colours = [handle.get_color() for handle in legend.legend_handles]
    assert len({str(colour) for colour in colours}) == n
    lines = panels(figure)["Learning rate"].lines
    assert [line.get_color() for line in lines] == colours


def test_a_long_name_keeps_its_end() -> None:
    assert figures.shortened("a" * 60) == "a" * 60
    assert figures.shortened("a" * 60 + "b") == "..." + "a" * 56 + "b"


def test_a_diverged_run_and_one_of_one_update_can_be_drawn(tmp_path: Path) -> None:
    lost = some_run("lost", clf_cost=math.nan, grad_norm=math.inf)
    figures.save(learning_curves.curves([lost], smooth=3), tmp_path / "lost.png")
    one = learning_curves.curves([some_run(n_updates=1)])
    (line,) = panels(one)["Learning rate"].lines
    assert line.get_marker() == "."  # Otherwise the line would be invisible.


def some_maps(*shape: int) -> np.ndarray:
    maps = np.tril(np.random.RandomState(0).rand(*shape))
    return maps / maps.sum(-1, keepdims=True)


def test_the_grid_has_each_map_in_its_place() -> None:
    maps = some_maps(2, 3, 6, 6)
    figure = attention_figures.map_grid(maps, "Title", delimiter=4)
    grid = [axes for axes in figure.axes if axes.images]
    assert len(grid) == 6
    for axes, expected in zip(grid, maps.reshape(6, 6, 6), strict=True):
        image = axes.images[0].get_array()
        assert (image.mask == np.triu(np.ones((6, 6)), 1)).all()  # later tokens
        np.testing.assert_array_equal(image.data, expected)
        assert [list(line.get_xdata()) for line in axes.lines] == [[0, 1], [4, 4]]
    assert [axes.get_title() for axes in grid[:3]] == ["head 0", "head 1", "head 2"]
    assert [grid[0].get_ylabel(), grid[3].get_ylabel()] == ["layer 0", "layer 1"]


def test_large_maps_are_labelled_with_words(tmp_path: Path) -> None:
    tokens = ["_start_", "$5", "a$", "日本", "_classify_"]
    maps = some_maps(3, 5, 5)
    figure = attention_figures.layer_maps(maps, [0, 1, 4], tokens, "Title")
    grid = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in grid] == ["head 0", "head 1", "head 4"]
    for axes, expected in zip(grid, maps, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array().data, expected)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [text.get_text() for text in labels] == tokens
            assert not any(text.get_parse_math() for text in labels)
    figures.save(figure, tmp_path / "a.svg")  # A character without a glyph does no harm.


def test_titles_of_axes_are_where_no_neighbour_has_them() -> None:
    figure = attention_figures.layer_maps(some_maps(3, 5, 5), [0, 1, 2], list("abcde"), "Title")
    grid = [axes for axes in figure.axes if axes.images]
    looks, looked_at = "token that looks", "token looked at"
    assert [axes.get_ylabel() for axes in grid] == [looks, "", looks]
    assert [axes.get_xlabel() for axes in grid] == ["", looked_at, looked_at]


@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize("T", [9, 31])
def test_a_map_has_room_for_words_and_a_bar_of_its_height(n_heads: int, T: int) -> None:
    tokens = ["_delimiter_"] * T
    figure = attention_figures.layer_maps(some_maps(n_heads, T, T), range(n_heads), tokens, "T")
    figure.draw_without_rendering()
    grid = [axes for axes in figure.axes if axes.images]
    last_of_row = grid[0 if n_heads == 1 else 1]
    (bar,) = last_of_row.child_axes
    heights = [axes.get_window_extent().height for axes in (bar, last_of_row)]
    assert heights[0] == pytest.approx(heights[1], rel=0.01)
    # A line of text is about 1.2 times as high as its font.
    points = last_of_row.get_window_extent().height / figure.dpi * 72 / T
    font = last_of_row.get_yticklabels()[0].get_fontsize()
    assert points > 1.2 * font
    assert font >= 8
    box = figure.get_tightbbox()  # in inches: nothing is cut off at the edges
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


def test_many_tokens_are_labelled_as_far_as_there_is_room() -> None:
    figure = attention_figures.layer_maps(
        some_maps(1, 250, 250), [0], [str(t) for t in range(250)], "Title"
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        str(t) for t in range(0, 250, 3)
    ]
    assert figure.get_figwidth() < 20


def test_the_split_has_a_panel_for_each_part() -> None:
    split = average_shares(reference.random_model(SMALL).float(), STORIES, SPECIAL)
    figure = attention_figures.attention_split(split, PARTS, "Title")
    grid = [axes for axes in figure.axes if axes.images]
    assert len(grid) == 16
    shares = torch.cat([split.classify, split.ending], -1)
    even = torch.cat([split.even_classify, split.even_ending])
    expected = ((shares - even) * 100).numpy()
    for i, axes in enumerate(grid[:15]):
        assert axes.get_title().split("\n")[0] == PARTS[i % 8]
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), expected[:, :, i], rtol=0, atol=1e-9)
        assert (image.norm.vmin, image.norm.vmax) == (-50, 50)  # whatever the shares are
    share = split.even_classify[1] * 100
    assert grid[1].get_title() == f"sentence 1\neven: {share:.1f} %"
    assert grid[15].get_title() == "_classify_\n(comes later)"
    assert np.isnan(grid[15].images[0].get_array().filled(np.nan)).all()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_a_picture_is_the_same_bytes_every_time(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        figure = attention_figures.layer_maps(some_maps(1, 3, 3), [0], list("xyz"), "Title")
        figures.save(figure, tmp_path / f"{name}{suffix}")
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert first.startswith(START_OF_PICTURE[suffix.lower()])
    assert first == (tmp_path / f"b{suffix}").read_bytes()
    assert b"CreationDate" not in first
    assert b"<dc:date>" not in first
    assert len(list(tmp_path.iterdir())) == 2


# ------------------------------------------------------------------------------- TensorBoard


def scalars(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return what TensorBoard shows: step, value and time of each scalar, by name."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value, event.wall_time) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_scalars_of_the_logs(tmp_path: Path) -> None:
    run = some_run()
    write_run(run, tmp_path / "new" / "board")
    expected = {
        f"update/{name}": [(line.n_updates, getattr(line, name), line.time) for line in run.updates]
        for name in ("clf_cost", "lm_cost", "lr", "grad_norm")
    }
    expected |= {
        f"evaluation/{name}": [
            (line.n_updates, line.as_row()[name], line.time) for line in run.evaluations
        ]
        for name in ("n_epochs", "tr_cost", "va_cost", "tr_acc", "va_acc")
    }
    found = scalars(tmp_path / "new" / "board")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == [pytest.approx(value) for value in values], name


def test_a_cost_there_is_none_of_is_no_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    board.update(3, {"clf_cost": 0.5, "lm_cost": None})
    board.close()
    assert [(tag, step) for tag, ((step, *_),) in scalars(tmp_path).items()] == [
        ("update/clf_cost", 3)
    ]


def test_a_run_that_goes_on_shows_no_update_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed = TensorBoard(tmp_path)
    for n in range(1, 7):
        killed.update(n, {"clf_cost": float(n), "time": 1.0})
    killed.evaluation(6, {"va_acc": 50.0})
    killed.close()
    resumed = TensorBoard(tmp_path)
    for n in range(1, 5):  # the lines that the log keeps up to the checkpoint, then the others
        resumed.update(n, {"clf_cost": 10.0 * n, "time": 2.0})
    resumed.close()
    assert scalars(tmp_path) == {
        "update/clf_cost": [(n, 10.0 * n, 2.0) for n in range(1, 5)],
        "evaluation/va_acc": [],
    }


def test_the_mirror_of_resumed_logs_shows_what_they_hold(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board_dir = tmp_path / "board"
    for keep, updates, evaluations in ((None, range(1, 8), (3, 6)), (4, range(5, 10), (6, 9))):
        board = TensorBoard(board_dir)
        update_log = JsonLines(tmp_path / "a.updates.jsonl", keep, board.update_line)
        log = JsonLines(tmp_path / "a.jsonl", keep, board.evaluation_line)
        if log.is_new:
            log.write(desc="a", lr=0.5)
        for n in updates:
            update_log.write(**update(n, lm_cost=None))
            if n == 3:  # The resumed log keeps the line, which has no figures.
                update_log.write(n_updates=n, event="diverging", message="too high")
        for n in evaluations:
            log.write(**evaluation(n, 50.0 + n))
        board.close()
    shown = scalars(board_dir)
    write_run(read_runs([tmp_path / "a.jsonl"])[0], tmp_path / "again")
    assert shown == scalars(tmp_path / "again")
    assert [step for step, *_ in shown["update/lr"]] == list(range(1, 10))
    assert [step for step, *_ in shown["evaluation/va_acc"]] == [3, 6, 9]
    assert "update/lm_cost" not in shown
    assert "evaluation/lr" not in shown  # Settings are not figures.


def test_tensorboard_that_cannot_write_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(Gpt1Error, match="file: TensorBoard's files cannot be written: File exists"):
        TensorBoard(tmp_path / "file")
    board = TensorBoard(tmp_path / "full")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "add_scalar", full)
    with pytest.raises(Gpt1Error, match=r"full: TensorBoard's files .* No space left on device;"):
        board.update(1, {"lr": 0.5})


# ------------------------------------------------------------------------------- the program


@pytest.fixture
def log(tmp_path: Path) -> Path:
    evaluations = [evaluation(2 * n, 50.0 + n) for n in range(1, 5)]
    return write_log(tmp_path / "log", "a", evaluations, [update(n) for n in range(1, 9)])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_curves(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    out = tmp_path / "new" / f"curves{suffix}"
    assert plot.main(["curves", str(log), "--out", str(out), "--smooth", "3"]) == 0
    assert out.read_bytes().startswith(START_OF_PICTURE[suffix])
    assert capsys.readouterr() == ("", f"gpt1 plot: written: {out}\n")
    without = tmp_path / f"thin{suffix}"
    assert plot.main(["curves", str(log), "--out", str(without), "--smooth", "1"]) == 0
    assert without.read_bytes() != out.read_bytes()


def test_a_run_without_its_log_of_updates_is_said(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.with_name("a.updates.jsonl").unlink()
    out = tmp_path / "curves.svg"
    assert plot.main(["curves", str(log), "--out", str(out)]) == 0
    err = "gpt1 plot: no log of updates beside the log of a: evaluations only\n"
    assert capsys.readouterr() == ("", f"{err}gpt1 plot: written: {out}\n")


def test_tensorboard_from_a_log(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    arguments = ["tensorboard", str(log), "--out", str(tmp_path / "board")]
    assert [plot.main(arguments), plot.main(arguments)] == [0, 0]
    assert capsys.readouterr() == ("", f"gpt1 plot: written: {tmp_path / 'board'}\n" * 2)
    found = scalars(tmp_path / "board")
    assert len(found) == 9
    assert [step for step, *_ in found["update/lr"]] == list(range(1, 9))


def model_flags(files: tiny.Tiny) -> list[str]:
    params = str(files.directory / "best_params.jl")
    return ["--model_dir", str(files.model_dir), "--params", params, "--device", "cpu"]


def opened(arguments: Sequence[str]) -> OpenedModel:
    """Return the model that a command for attention opens."""
    command = {"attention": plot_attention.ATTENTION, "attention-average": plot_attention.AVERAGE}
    name, *words = arguments
    return plot_attention._open(command[name].parse(words))


def story_flags(story: str = "anna had a kite. anna won", ending: str = "anna smiled") -> list[str]:
    return ["--story", story, "--ending", ending]


@pytest.mark.parametrize(
    ("flags", "n_maps"), [([], 8), (["--layer", "1"], 4), (["--layer", "1", "--head", "3"], 1)]
)
def test_attention(
    tmp_path: Path,
    files: tiny.Tiny,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    n_maps: int,
) -> None:
    saved: list[Any] = []
    write = figures.save
    monkeypatch.setattr(figures, "save", lambda *args: (saved.append(args[0]), write(*args)))
    out = tmp_path / "maps.png"
    flags = ["attention", *story_flags(), *flags, "--out", str(out), *model_flags(files)]
    assert plot.main(flags) == 0
    hint = "" if "--layer" in flags else " (--layer N draws one layer large, with the words)"
    assert capsys.readouterr() == ("", f"gpt1 plot: written: {out}{hint}\n")
    assert out.read_bytes().startswith(START_OF_PICTURE[".png"])
    images = [axes.images[0].get_array().data for axes in saved[0].axes if axes.images]
    assert len(images) == n_maps
    model = opened(flags)
    ids = plot_attention._choice(*story_flags()[1::2], model)
    expected = attention_maps(model.module, ids).numpy()
    np.testing.assert_array_equal(images[-1], expected[1, 3])


AVERAGE = """\
Mean of 6 stories with their right endings, and of all heads.
sent 1 to sent 4: the sentences of a story.
even: the share of a part if all visible tokens had equal weights.

"""


def test_attention_average(
    tmp_path: Path, files: tiny.Tiny, encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split.svg"
    flags = ["attention-average", "--data_dir", str(files.data_dir), "--n_stories", "6"]
    assert plot.main([*flags, "--out", str(out), *model_flags(files)]) == 0
    text, err = capsys.readouterr()
    assert err == f"gpt1 plot: written: {out}\n"
    assert max(map(len, text.split("\n"))) < 80
    assert out.read_bytes().startswith(START_OF_PICTURE[".svg"])
    assert text.startswith(AVERAGE)
    blocks = text.removeprefix(AVERAGE).strip().split("\n\n")
    model = opened([*flags, *model_flags(files)])
    stories = encode_sentences(read_story_sentences(files.data_dir / TEST_CSV)[:6], encoder)
    split = average_shares(model.module, [s for s in stories if s], model.special)
    assert blocks[0] == "Attention of _classify_, in percent:"
    assert blocks[2] == "Attention of the ending's tokens, in percent:"
    for block, shares, even in (
        (blocks[1], split.classify, split.even_classify),
        (blocks[3], split.ending, split.even_ending),
    ):
        heading, _, *layers, _, average, last = block.split("\n")
        assert heading.split() == " ".join(["layer", *PARTS]).replace("sentence", "sent").split()
        for i, line in enumerate([*layers, average]):
            row = shares[i].mean(0) if i < 2 else shares.mean((0, 1))
            assert line.split()[1:] == [f"{share * 100:.1f}" for share in row.tolist()]
        assert last.split() == ["even", *(f"{share * 100:.1f}" for share in even.tolist())]
    assert plot.main([*flags, *model_flags(files)]) == 0  # No picture was requested.
    assert capsys.readouterr().out == text


def test_stories_that_cannot_be_used_are_counted(
    tmp_path: Path, files: tiny.Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(files.data_dir / TEST_CSV, encoding="utf-8", newline="") as file:
        good = list(csv.reader(file))[1:4]
    unsplit = [["u", "a &lt; b", "anna < ben", "so", "so", "won", "lost", "1"]]
    long = [["l", "so " * 100, "so", "so", "so", "won", "lost", "1"]] * 2
    path = write_stories(tmp_path / TEST_CSV, [*good, *unsplit, *long])
    flags = ["attention-average", "--data_dir", str(tmp_path), *model_flags(files)]
    assert plot.main(flags) == 0
    out, err = capsys.readouterr()
    assert "Mean of 3 stories" in out
    n_ctx = opened(flags).module.config.n_ctx
    assert err == (
        f"gpt1 plot: {path}: of 6 stories, left out 1 whose tokens cannot be assigned to "
        f"sentences and 2 longer than the model's {n_ctx} positions\n"
    )
    write_stories(path, unsplit)
    assert plot.main(flags) == 2
    assert "no story can be used: 1 whose tokens cannot be assigned" in capsys.readouterr().err


def test_a_model_that_was_never_fine_tuned_is_said(
    tmp_path: Path, files: tiny.Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["attention", *story_flags(), "--out", str(tmp_path / "maps.svg")]
    assert plot.main([*flags, "--model_dir", str(files.model_dir), "--device", "cpu"]) == 0
    assert "is not fine-tuned: the rows of its special tokens are random" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Return the message of a command that must fail because of a user's mistake."""
    assert plot.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt1 plot: error: ")
    first, *others = err.removeprefix("gpt1 plot: error: ").splitlines()
    assert len(others) == (int(first.split()[0]) if first.endswith(" problems:") else 0)
    return "\n".join([first, *others])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND: must be given; give one of curves, table, tensorboard, attention, "),
        (["curve"], "curve: there is no such command; did you mean curves? Give one of curves, "),
        (["curves"], "  LOGS: must be given; see --help\n  --out: must be given; see --help"),
        (["table"], "LOGS: must be given; see --help"),
        (["table", "no.jsonl"], "no.jsonl: the training log cannot be read: No such file"),
        (["curves", "a", "--out", "a.jpg"], "--out a.jpg: expected a name that ends in .png, .svg"),
        (["curves", "a", "--out", "png"], "--out png: expected a name that ends in .png, .svg"),
        (["curves", "a", "--out", "a.png", "--smooth", "0"], "--smooth 0: must be at least 1"),
        (["tensorboard", "a"], "--out: must be given; see --help"),
        (["attention", "--story", "a"], "  --ending: must be given; see --help\n  --out: must be"),
        (
            ["attention", *story_flags(), "--out", "a.png", "--head", "1"],
            "--head: needs a layer; give --layer N too",
        ),
        (["attention-average", "--n_stories", "0"], "--n_stories 0: must be at least 1"),
        (
            ["attention-average", "--data_dir", "no"],
            "name the test CSV's directory with --data_dir",
        ),
    ],
)
def test_mistakes_in_the_command_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*story_flags(), "--layer", "2"], "--layer 2: the model has 2 layers, 0 to 1"),
        (
            [*story_flags(), "--layer", "1", "--head", "4"],
            "--head 4: the model has 4 heads, 0 to 3",
        ),
        (story_flags(story=" "), "--story: expected a text with at least one word"),
        (story_flags(ending=""), "--ending: expected a text with at least one word"),
        (story_flags(story="so " * 90), "--story, --ending: 95 tokens with the three special ones"),
    ],
)
def test_mistakes_about_a_story(
    tmp_path: Path,
    files: tiny.Tiny,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    out = tmp_path / "maps.png"
    arguments = ["attention", *flags, "--out", str(out), *model_flags(files)]
    assert message in refused(capsys, arguments)
    assert not out.exists()


def test_a_bad_line_of_updates_leaves_the_picture_as_it_was(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "curves.png"
    out.write_text("old")
    with open(log.with_name("a.updates.jsonl"), "a") as file:
        file.write("{")
    message = refused(capsys, ["curves", str(log), "--out", str(out)])
    assert "a.updates.jsonl, line 9: expected one JSON object, found '{'" in message
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("matplotlib", ["curves", "a.png"], "matplotlib is missing: run pip install -e '.[plots]'"),
        (
            "torch.utils.tensorboard",
            ["tensorboard", "board"],
            "tensorboard is missing: run pip install -e '.[tensorboard]'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path,
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    command, out = arguments
    assert message in refused(capsys, [command, str(log), "--out", str(tmp_path / out)])
    assert not (tmp_path / out).exists()


HELP_THEN_IMPORTS = """
import sys
from gpt1.commands import plot, plot_attention
try:
    plot.main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "matplotlib", "tensorboard", "spacy", "sklearn", "transformers"}
    print("imported:", *sorted(heavy & set(sys.modules)))
    sys.exit(end.code)
"""


@pytest.mark.parametrize("command", [[], ["attention"]])
def test_help_shows_examples_and_imports_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_THEN_IMPORTS, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text, imported = done.stdout.rsplit("imported:", 1)
    assert imported.strip() == ""
    assert "gpt1 plot attention --params save/rocstories/best_params.jl" in text
