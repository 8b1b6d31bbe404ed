"""Zero-shot: log-probabilities of answers against plain computations, and whole tasks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peers import SMALL, their_model
from task_files import tsv, write_task
from tiny import Tiny

import gpt1
from gpt1.batches.encoded import EncodedSplit
from gpt1.datasets import TASKS
from gpt1.inference import zeroshot as module_under_test
from gpt1.inference.language_model import LanguageModel
from gpt1.inference.likelihood import answer_log_likelihoods, token_log_likelihoods
from gpt1.inference.opened import OpenedModel
from gpt1.inference.zeroshot import Job, ZeroshotResult
from gpt1.model.transformer import DoubleHeadsModel
from gpt1.runtime.errors import InputError
from gpt1.settings.zeroshot import ZeroshotSettings
from gpt1.tasks import Splits, Task
from gpt1.tasks.zeroshot import best_threshold, find_method
from gpt1.text_utils.special import SpecialTokens

SPECIAL = SpecialTokens.after(SMALL.n_vocab)
# Contexts of several lengths; answers that begin alike, of one token, missing, or up to n_ctx.
EXAMPLES = [
    [[1, 2, 3], [4, 5, 6, 0], [4, 5, 2], [3]],
    [[0], [1], [2], [0]],
    [[6, 5] * 9, [1, 2, 3, 4, 5, 6], [1], []],
    [[2, 2, 5, 1], [], [0, 0], [0, 0, 0]],
    [[4], [*range(7)] * 3, [1, 1, 1], [2]],
]


def make_model(dtype: torch.dtype = torch.float64) -> DoubleHeadsModel:
    """Return a model whose parameters are all drawn, with large rows for special tokens."""
    model = DoubleHeadsModel(SMALL)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
        model.we[SMALL.n_vocab : SMALL.first_position] *= 10
    return model.to(dtype).eval()


def split_of(examples: list[list[list[int]]]) -> EncodedSplit:
    return EncodedSplit.of(examples, SPECIAL)


@torch.no_grad()
def plainly(model: DoubleHeadsModel, context: list[int], answer: list[int]) -> float:
    """Compute the log-probability of an answer from context and answer as one sequence."""
    if not answer:
        return -math.inf
    whole = torch.tensor([context + answer])
    h = model.sequence_states(whole)[0]
    log_p = (h @ model.we[: SMALL.n_vocab].T).log_softmax(-1)
    own = log_p[len(context) - 1 : -1].gather(1, torch.tensor(answer)[:, None])
    assert len(own) == len(answer)
    return float(own.sum())


def expected(model: DoubleHeadsModel) -> np.ndarray[Any, Any]:
    return np.array([[plainly(model, c, a) for a in answers] for c, *answers in EXAMPLES])


# Log-probabilities


@pytest.mark.parametrize("n_batch", [1, 2, 5])
def test_a_shared_context_gives_what_whole_sequences_give(n_batch: int) -> None:
    """Also with padding, with answers that begin alike or are missing, and at n_ctx tokens."""
    model, done = make_model(), []
    assert max(len(c) + len(a) for c, *answers in EXAMPLES for a in answers) == SMALL.n_ctx
    found = answer_log_likelihoods(model, split_of(EXAMPLES), n_batch=n_batch, progress=done.append)
    np.testing.assert_allclose(found, expected(model), rtol=1e-12)
    assert sum(done) == len(EXAMPLES)
    assert np.isfinite(found).sum() == 13


def test_each_context_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_model(), []
    embed = model.embed

    def noting(we: Any, tokens: Any, positions: Any) -> Any:
        seen.extend(tokens.tolist())
        return embed(we, tokens, positions)

    monkeypatch.setattr(model, "embed", noting)
    answer_log_likelihoods(model, split_of(EXAMPLES[:1]))
    assert seen == [1, 2, 3, 4, 5, 6, 4, 5]  # The last token of an answer is not read.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_answers_have_the_log_probabilities_of_transformers(
    transformers: ModuleType, dtype: torch.dtype
) -> None:
    ours = make_model(dtype)
    theirs = their_model(transformers.OpenAIGPTLMHeadModel, ours).to(dtype)
    found = answer_log_likelihoods(ours, split_of(EXAMPLES))
    largest, longest = 0.0, 0
    for row, (context, *answers) in zip(found, EXAMPLES, strict=True):
        for value, answer in zip(row, answers, strict=True):
            if not answer:
                continue
            with torch.no_grad():
                logits = theirs(torch.tensor([context + answer])).logits[0, :, : SMALL.n_vocab]
            largest = max(largest, float(logits.abs().max()))
            longest = max(longest, len(answer))
            log_p = logits[len(context) - 1 : -1].log_softmax(-1)
            own = log_p.gather(1, torch.tensor(answer)[:, None]).double().sum()
            # Each logit passes about a hundred roundings: two layers of three matrix products, over
            # 12 to 48 terms, and two norms each, and the product with we.
            rounding = 100 * torch.finfo(dtype).eps * largest
            assert value == pytest.approx(float(own), abs=max(len(answer), 1) * rounding)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-2
    assert longest * rounding < tolerance


def test_likelihoods_of_texts_are_those_of_transformers_in_float64(
    task: Tiny, transformers: ModuleType
) -> None:
    opened = gpt1.load_pretrained(task.model_dir)
    module = opened.module.double()
    theirs = their_model(transformers.OpenAIGPTLMHeadModel, module).double()
    texts = ["anna had a kite . it was so big .", "ben ran ."]
    n_vocab = module.config.n_vocab
    for values, text in zip(token_log_likelihoods(opened, texts), texts, strict=True):
        ids = torch.tensor([opened.encode(text)])
        with torch.no_grad():
            log_p = theirs(ids).logits[0, :-1, :n_vocab].log_softmax(-1)
        np.testing.assert_allclose(values, log_p.gather(1, ids[0, 1:, None])[:, 0], rtol=1e-9)
        assert math.fsum(values) == opened.log_likelihood(text)


def test_many_targets_are_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr("gpt1.inference.likelihood._ROWS", 4)
    np.testing.assert_allclose(
        answer_log_likelihoods(model, split_of(EXAMPLES)), expected(model), rtol=1e-12
    )


@pytest.mark.parametrize("example", [[[], [1]], [[1] * 20, [1] * 5]])
def test_what_the_model_cannot_read_is_an_error(example: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="n_ctx is 24"):
        answer_log_likelihoods(make_model(), split_of([example]))


def test_no_example_gives_no_scores() -> None:
    assert answer_log_likelihoods(make_model(), split_of(EXAMPLES).take(slice(0))).shape == (0, 3)


# Tokens of templates


SENTENCES = ["a fine film ", "it 's so-so , mr. smith", "don't!", "dull ... and (long", "it is a"]


def test_context_and_answer_have_the_ids_of_the_whole_text(released_dir: Path) -> None:
    """So a label gets the ids that the model met in training, whatever stands before it."""
    from gpt1.text_utils.encoder import TextEncoder

    names = ("encoder_bpe_40000.json", "vocab_40000.bpe")
    encoder = TextEncoder(*(released_dir / name for name in names))
    texts = [find_method(TASKS["sst2"]).texts((sentence,)) for sentence in SENTENCES]
    for context, *answers in texts:
        before = encoder.encode([context], verbose=False)[0]
        for answer in answers:
            own, whole = encoder.encode([answer, context + answer], verbose=False)
            assert len(own) == 1  # "positive" and "negative" are one token each
            assert before + own == whole


# Whole tasks


def predicted(
    dataset: str, task: Tiny, folder: Path | None = None, **options: Any
) -> ZeroshotResult:
    place = task.data_dir if folder is None else folder
    return gpt1.zeroshot(
        dataset, model_dir=task.model_dir, data_dir=place, device="cpu", verbose=False, **options
    )


def test_stories_get_the_likelier_ending(task: Tiny) -> None:
    result = predicted("rocstories", task)
    model = gpt1.load_pretrained(task.model_dir, device="cpu")
    data = result.task.read(task.data_dir)
    assert list(result.predictions) == ["ROCStories", "ROCStories.dev"]
    for stem, split in result.splits.items():
        scores = []
        for example in data.predicted[stem]:
            story, *endings = example.texts
            n = len(model.encode(story))
            tokens = [model.log_likelihood(f"{story} {end}", per_token=True) for end in endings]
            scores.append([np.mean(values[n - 1 :]) for values in tokens])
        # Means of log-probabilities of size 4 in float32.
        np.testing.assert_allclose(split.scores, scores, atol=1e-5)
        assert split.predictions.tolist() == np.argmax(split.scores, 1).tolist()
    labels = [example.label for example in data.predicted["ROCStories"]]
    right = np.mean(result.predictions["ROCStories"] == np.array(labels)) * 100
    assert result.metrics["test_accuracy"] == right
    assert list(result.metrics) == ["valid_accuracy", "test_accuracy"]
    assert result.baselines == {"valid_accuracy": 50.0, "test_accuracy": 50.0}
    assert len(set(result.predictions["ROCStories"].tolist())) == 2
    by_sum = predicted("rocstories", task, score="sum")
    assert not np.allclose(by_sum.splits["ROCStories"].scores, result.splits["ROCStories"].scores)


def test_all_batches_give_the_same_numbers(task: Tiny) -> None:
    one, seven = (predicted("rocstories", task, n_batch=n).splits for n in (1, 7))
    for stem in one:
        np.testing.assert_allclose(one[stem].scores, seven[stem].scores, atol=1e-5)


COLA_TRAIN = [
    *[("anna had a kite.", 1), ("ben ran.", 1), ("it was so big.", 1), ("so it big was.", 0)],
    *[("carl lost had.", 0), ("dora won.", 1), ("a a a kite.", 0), ("was big ran.", 0)],
]
COLA_DEV = [("anna ran.", 0), ("ben had a drum.", 0), ("lost ran big.", 1), ("so so so.", 1)]


def cola(rows: list[tuple[str, int]]) -> str:
    return tsv(*(("s", label, "", text) for text, label in rows))


def test_the_threshold_of_cola_is_chosen_on_the_training_split(task: Tiny, tmp_path: Path) -> None:
    folder = write_task(
        tmp_path / "cola", "cola", {"train.tsv": cola(COLA_TRAIN), "dev.tsv": cola(COLA_DEV)}
    )
    result = predicted("cola", task, folder)
    model = gpt1.load_pretrained(task.model_dir, device="cpu")

    def scores(rows: list[tuple[str, int]]) -> np.ndarray[Any, Any]:
        texts = [text for text, _ in rows]
        return np.array([np.mean(each) for each in model.log_likelihood(texts, per_token=True)])

    train, dev = scores(COLA_TRAIN), scores(COLA_DEV)
    threshold = best_threshold(train, np.array([label for _, label in COLA_TRAIN]))
    assert result.threshold == pytest.approx(threshold, abs=1e-5)
    assert threshold != best_threshold(dev, np.array([label for _, label in COLA_DEV]))
    assert result.predictions["CoLA.dev"].tolist() == (dev >= threshold).tolist()
    assert result.splits["CoLA"].labels is None
    assert set(result.metrics) == {"valid_matthews", "valid_accuracy"}
    assert result.baselines == {"valid_matthews": 0.0, "valid_accuracy": 50.0}
    assert result.valid == "CoLA.dev"
    assert len(result.predictions["CoLA"]) == 1
    assert list(predicted("cola", task, folder, labelled_only=True).splits) == ["CoLA.dev"]


def test_a_template_gives_classes_in_their_order(task: Tiny, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "sst2", "sst2")
    options = {"template": "{text} it was {label}"}
    result = predicted("sst2", task, folder, labels="big,so big", **options)
    swapped = predicted("sst2", task, folder, labels="so big,big", **options)
    dev, other = result.splits["SST-2.dev"], swapped.splits["SST-2.dev"]
    np.testing.assert_allclose(dev.scores, other.scores[:, ::-1], atol=1e-5)
    model = gpt1.load_pretrained(task.model_dir, device="cpu")
    for text, row in zip(("good ", "bad "), dev.scores, strict=True):
        before = len(model.encode(f"{text} it was"))
        for word, score in zip(("big", "so big"), row, strict=True):
            whole = model.log_likelihood(f"{text} it was {word}", per_token=True)
            assert score == pytest.approx(sum(whole[before - 1 :]), abs=1e-5)


def test_answers_of_race_follow_article_and_question(task: Tiny, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "race", "race-middle")
    result = predicted("race-middle", task, folder)
    model = gpt1.load_pretrained(task.model_dir, device="cpu")
    example = result.task.read(folder).valid[0]
    article, question, *options = example.texts
    context = model.encode(article) + model.encode(question)
    n_ctx = model.module.config.n_ctx
    for option, score in zip(options, result.splits["RACE-middle.dev"].scores[0], strict=True):
        answer = model.encode(option)
        longest = max(map(len, model.encode(options)))
        kept = context[-(n_ctx - longest) :]
        log_p = torch.log_softmax(
            model.module.sequence_states(torch.tensor([kept + answer]))[0].detach()
            @ model.module.we[: model.module.config.n_vocab].detach().T,
            -1,
        )[len(kept) - 1 : -1]
        mean = float(log_p.gather(1, torch.tensor(answer)[:, None]).mean())
        assert score == pytest.approx(mean, abs=1e-5)
    assert result.baselines == {"valid_accuracy": 25.0, "test_accuracy": 25.0}


@pytest.mark.parametrize("options", [{}, {"valid_file": "b.csv"}, {"train_file": "b.csv"}])
def test_own_files_need_no_training_file(
    task: Tiny, tmp_path: Path, options: dict[str, str]
) -> None:
    for name in ("a.csv", "b.csv"):
        rows = "".join(f"ben {verb},{label}\n" for verb, label in [("won", "yes"), ("ran", "no")])
        (tmp_path / name).write_text(f"text,label\n{rows}{rows}")
    result = predicted(
        "own",
        task,
        tmp_path,
        shape="classification",
        test_file="a.csv",
        template="{text} {label}",
        **options,
    )
    assert list(result.splits) == ["own", "own.dev"] if options else ["own"]
    assert ("valid_accuracy" in result.metrics) == bool(options)
    assert result.baselines["test_accuracy"] == 50
    assert result.task.target.columns == ("no", "yes")


def test_own_choices_may_lack_answers(task: Tiny, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "context,answer1,answer2,answer3,label\nben ran,ben won,ben lost,,2\n"
        "dora,had,was,big,answer1\n"
    )
    result = predicted("own", task, tmp_path, shape="choice", test_file="a.csv")
    scores = result.splits["own"].scores
    assert np.isinf(scores).tolist() == [[False, False, True], [False] * 3]
    assert result.baselines["test_accuracy"] == pytest.approx((100 / 2 + 100 / 3) / 2)


def test_the_file_of_results(task: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    result = predicted("rocstories", task, json=str(file))
    found = json.loads(file.read_text())
    assert found["metrics"] == result.metrics
    assert found["baselines"] == result.baselines
    split = found["splits"]["ROCStories"]
    assert split["n"] == len(split["predictions"]) == 24
    assert split["predictions"] == [str(i) for i in result.predictions["ROCStories"]]
    assert split["scores"] == result.splits["ROCStories"].scores.tolist()


# Mistakes


def refused(dataset: str, task: Tiny, folder: Path | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        predicted(dataset, task, folder, **options)
    assert "--" not in str(caught.value)  # Python calls have arguments, not flags.
    return str(caught.value)


def test_mistakes_are_named_by_arguments(task: Tiny, tmp_path: Path) -> None:
    assert "data_dir" in refused("sst2", task, tmp_path)
    assert "template: must be given with" in refused("rte", task, tmp_path)
    assert "test_file: must be given" in refused("own", task, shape="choice")
    assert "score='max': must be one of mean, sum" in refused("sst2", task, score="max")
    assert f"json {tmp_path}: this is a directory" in refused("sst2", task, json=str(tmp_path))
    own = tmp_path / "a.csv"
    own.write_text("text,label\n")
    found = refused("own", task, test_file=str(own), json=str(own), shape="classification")
    assert "would overwrite a file that is read" in found


def test_an_example_without_room_or_text_is_named(task: Tiny, tmp_path: Path) -> None:
    long = cola([("big " * 65, 1), ("ben ran.", 0)])
    folder = write_task(tmp_path / "cola", "cola", {"dev.tsv": long})
    found = refused("cola", task, folder)
    assert f"{folder}/dev.tsv, line 1: 65 tokens must be read whole, but the model in" in found
    assert "has 64 positions; use a model with more of them" in found
    write_task(folder, "cola", {"dev.tsv": cola([("&nbsp;", 1), ("ben ran.", 0)])})
    assert "dev.tsv, line 1: there is no text that the model can read" in refused(
        "cola", task, folder
    )


# Real files


def first_rows(task: Task, folder: Path, n: int) -> Task:
    """Return a task with the first examples of each split."""
    data = task.read(folder)
    valid = data.valid[:n]
    predicted = {
        stem: valid if each is data.valid else each[:n] for stem, each in data.predicted.items()
    }
    splits = Splits(data.train[:n], valid, predicted)
    return replace(task, read=lambda _: splits)


@pytest.fixture(scope="module")
def demo_model() -> LanguageModel:
    root = Path(module_under_test.__file__).parents[2]
    return gpt1.load_pretrained(root / "model/demo", device="cpu")


def score_real(task: Task, folder: Path, model: OpenedModel, n: int) -> ZeroshotResult:
    given = ZeroshotSettings(dataset=task.name, n_batch=8)
    short = first_rows(task, folder, n)
    job = Job(given=given, task=short, method=find_method(task), has_valid=True)
    return job.run(model, folder, verbose=False)


def check_real(result: ZeroshotResult, n: int) -> None:
    for split in result.splits.values():
        assert len(split.predictions) == n
        assert np.isfinite(split.scores).all()
        assert len({tuple(row) for row in split.scores.tolist()}) > n // 2
        assert (split.scores < 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sst2", "cola", "race-middle"])
def test_real_files_are_predicted(name: str, tasks_dir: Path, demo_model: LanguageModel) -> None:
    task = TASKS[name]
    check_real(score_real(task, task.folder(tasks_dir), demo_model, 40), 40)


@pytest.mark.slow
def test_real_stories_are_predicted(rocstories_dir: Path, demo_model: LanguageModel) -> None:
    check_real(score_real(TASKS["rocstories"], rocstories_dir, demo_model, 40), 40)
