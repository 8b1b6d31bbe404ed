"""A model with its text encoder, opened from files in any layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt
import torch

from gpt1.inference import generation, scoring
from gpt1.inference.likelihood import token_log_likelihoods
from gpt1.inference.opened import OpenedModel
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.runtime.device import choose_device
from gpt1.runtime.errors import InputError
from gpt1.settings.command import Spelling, as_keyword
from gpt1.settings.groups import SamplingSettings
from gpt1.settings.words import shorten
from gpt1.tasks.layouts import Choices, Layout
from gpt1.tasks.shapes import are_texts, first_answer, is_blank, text_names
from gpt1.tasks.targets import Classes
from gpt1.weights import locate
from gpt1.weights.conversion import check_no_foreign_files
from gpt1.weights.hub import write_hub
from gpt1.weights.parameters import Array, parameter_shapes, set_parameters, to_list
from gpt1.weights.stored import (
    find_model,
    open_vocabulary,
    resolve,
    special_rows,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Sampling(TypedDict, total=False):
    """The keyword arguments of :meth:`LanguageModel.generate`."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    num_beams: int
    seed: int


class LanguageModel(OpenedModel):
    """A model and its text encoder, opened by :func:`open_model` or made by fine-tuning.

    Where a method takes a text, it returns the result of that text; where it takes a list of texts,
    it returns a list of results. :meth:`encode` and :meth:`decode` turn texts into token ids and
    back; ``module`` is the :class:`torch.nn.Module`.
    """

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, text: str, **options: Unpack[_Sampling]
    ) -> str: ...

    @overload
    def generate(self, text: Sequence[str], **options: Unpack[_Sampling]) -> list[str]: ...

    def generate(
        self,
        text: str | Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        num_beams: int = 1,
        seed: int = 42,
    ) -> str | list[str]:
        """Continue a text, or each of several texts.

        Tokens are sampled if ``temperature``, ``top_k`` or ``top_p`` is given, and chosen by beam
        search if ``num_beams`` is at least 2. Otherwise each token is the likeliest one.

        Args:
            text: the text to continue, or several.
            max_new_tokens: tokens to write [40]. Text and continuation together have at most
                ``module.config.n_ctx`` tokens.
            temperature: sample; below 1 likely tokens more often, with 0 the likeliest always.
            top_k: sample from so many of the likeliest tokens.
            top_p: sample from the fewest tokens whose probabilities reach this sum.
            repetition_penalty: above 1, tokens that were used become less likely [1].
            num_beams: beginnings that beam search keeps [1].
            seed: seed of sampling [42].

        Returns:
            The continuation alone, or a list of continuations.

        Raises:
            InputError: an argument is wrong, or a text has no tokens or not enough room.
        """
        options = SamplingSettings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            num_beams=num_beams,
            seed=seed,
        )
        texts = [text] if isinstance(text, str) else text
        continuations = [each[0].text for each in generation.generate(self, texts, options)]
        return continuations[0] if isinstance(text, str) else continuations

    @overload
    def log_likelihood(  # type: ignore[overload-overlap]
        self, text: str, *, per_token: Literal[False] = False
    ) -> float: ...

    @overload
    def log_likelihood(  # type: ignore[overload-overlap]
        self, text: str, *, per_token: Literal[True]
    ) -> list[float]: ...

    @overload
    def log_likelihood(
        self, text: Sequence[str], *, per_token: Literal[False] = False
    ) -> list[float]: ...

    @overload
    def log_likelihood(
        self, text: Sequence[str], *, per_token: Literal[True]
    ) -> list[list[float]]: ...

    def log_likelihood(
        self, text: str | Sequence[str], *, per_token: bool = False
    ) -> float | list[float] | list[list[float]]:
        """Compute how likely the model finds a text, or each of several texts.

        Args:
            text: the text, or several.
            per_token: return the log-probability of each token after the first, not their sum.

        Returns:
            The natural logarithm (nats) of the probability of all tokens after the first, given the
            first. The softmax runs over the tokens of the vocabulary alone.

        Raises:
            InputError: a text has no tokens, or more than the model has positions.
        """
        texts = [text] if isinstance(text, str) else text
        tokens = token_log_likelihoods(self, texts)
        found = tokens if per_token else [math.fsum(each) for each in tokens]
        return found[0] if isinstance(text, str) else found

    @overload
    def predict(
        self,
        examples: Sequence[str | Sequence[str]],
        *,
        probabilities: Literal[False] = False,
        n_ctx: int | None = None,
    ) -> list[Any]: ...

    @overload
    def predict(
        self,
        examples: Sequence[str | Sequence[str]],
        *,
        probabilities: Literal[True],
        n_ctx: int | None = None,
    ) -> tuple[list[Any], npt.NDArray[np.float64]]: ...

    def predict(
        self,
        examples: Sequence[str | Sequence[str]],
        *,
        probabilities: bool = False,
        n_ctx: int | None = None,
    ) -> list[Any] | tuple[list[Any], npt.NDArray[np.float64]]:
        """Predict the labels of examples, as the task of the model has them.

        Args:
            examples: n tuples of texts in the order of the task: ``(text,)`` or the text alone for
                a classification, ``(text1, text2)`` for entailment and similarity, ``(context,
                answer1, answer2, ...)`` for a choice, ``(story, ending1, ending2)`` for stories.
            probabilities: return the probabilities of the outcomes, too.
            n_ctx: the ``n_ctx`` of the training of the model, by which long texts are cut [as the
                files of the model record it].

        Returns:
            For each example the name of its class, the index of the chosen answer from 0, or a
            grade. With ``probabilities`` also an array [n, C], whose rows sum to 1: classes in the
            order of ``task.target.names``, answers in that of the example, or the six whole grades.

        Raises:
            InputError: the model was never fine-tuned, or an example has another form.
        """
        task = scoring.task_of(self)
        texts = _checked(examples, task.layout)
        split, _ = scoring.encode_examples(self, texts, task=task, n_ctx=n_ctx)
        logits, target = scoring.logits_of(self, split, task=task), task.target
        found = target.decide(logits).tolist()
        if isinstance(target, Classes):
            found = [target.spell(index) for index in found]
        return (found, target.probabilities(logits)) if probabilities else found

    def save(self, directory: str | Path) -> None:
        """Write the model into a directory of the model hub's layout, with its vocabulary.

        ``gpt1.load_pretrained(directory)`` opens the same model again, with its task, and so does
        transformers, without the task. An
        earlier model in the directory is replaced. A choice head and the rows of the special tokens
        are left out where they are random, because the model was never trained with them.

        Args:
            directory: made if it is not there.

        Raises:
            InputError: the directory holds other files, or the vocabulary was removed since the
                model was opened.
            Gpt1Error: a file cannot be written.
        """
        directory = Path(directory)
        if directory.is_dir():
            check_no_foreign_files(directory, "hub")
        elif directory.exists():
            raise InputError(f"{directory}: is a file; name a directory")
        config = self.module.config
        params = dict(zip(parameter_shapes(config), to_list(self.module), strict=True))
        if not self.has_choice_head:
            del params["clf/w"], params["clf/b"]
            if not self.has_special_rows:
                params["we"] = np.delete(params["we"], dataclasses.astuple(self.special), axis=0)
                config = dataclasses.replace(config, n_special=0)
        task = self.task if self.has_choice_head else None
        write_hub(directory, params, self.text_encoder.files, config, task)


def _checked(examples: Sequence[str | Sequence[str]], layout: Layout) -> list[tuple[str, ...]]:
    """Return the texts of examples, with as many answers each.

    Raises:
        InputError: an example has not the texts that the layout takes.
    """
    if isinstance(examples, str):
        raise InputError("examples: must be a list of examples, but is one text; give [text]")
    found = []
    for number, example in enumerate(examples, start=1):
        texts = (example,) if isinstance(example, str) else example
        if not are_texts(layout, texts) or not _has_answer(layout, texts):
            names = text_names(layout)
            more = " or more" if isinstance(layout, Choices) else ""
            n = {1: "one text", 2: "two texts", 3: "three texts"}.get(len(names), "four texts")
            raise InputError(
                f"example {number}: must be {n}{more} ({', '.join(names)}), "
                f"but is {shorten(repr(example))}"
            )
        found.append(tuple(texts))
    n_texts = max(map(len, found), default=0)
    return [(*texts, *[""] * (n_texts - len(texts))) for texts in found]


def _has_answer(layout: Layout, texts: Sequence[str]) -> bool:
    """Return whether there is an answer to choose; those without text cannot be chosen."""
    return not isinstance(layout, Choices) or not all(map(is_blank, texts[first_answer(layout) :]))


def open_model(
    path: str | Path | None = None,
    *,
    vocabulary: str | Path | tuple[str | Path, str | Path] | None = None,
    n_head: int | None = None,
    afn: str | None = None,
    device: str | torch.device | None = None,
    spacy_rules: str = "2.0",
    spell: Spelling = as_keyword,
) -> LanguageModel:
    """Open a model: the released one, one of the model hub, or a fine-tuned one.

    The package offers this function as ``gpt1.load_pretrained``.

    Args:
        path: a directory in the released layout or the hub's; a full parameter list (``.jl`` or
            ``.safetensors``); or the directory of a run, ``save/<desc>/`` [``model/``, or the
            bundled demo while ``model/`` holds no model].
        vocabulary: the directory of the vocabulary, which a list needs if none lies beside it; or
            the files of vocabulary and merges.
        n_head: attention heads [what the files record, else 12].
        afn: activation, ``gelu``, ``relu`` or ``swish`` [what the files record, else gelu].
        device: where the model goes [CUDA if there is one, else the CPU].
        spacy_rules: see :class:`gpt1.text_utils.encoder.TextEncoder`.
        spell: how messages name arguments; commands give a spelling as flags.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    path = locate.default_model_dir() if path is None else path
    if isinstance(vocabulary, tuple):
        directory, files = _directory_of(path), (Path(vocabulary[0]), Path(vocabulary[1]))
    else:
        directory = Path(vocabulary or _directory_of(path))
        files = locate.vocabulary_files(directory)
    encoder = open_vocabulary(files, spell, spacy_rules)
    n_vocab = len(encoder.encoder)
    stored = find_model(path, directory)
    n_special, n_ctx = stored.rows(n_vocab, files[0])
    sizes, n_transfer = resolve(stored, {"n_head": n_head, "afn": afn}, spell=spell)
    config = ModelConfig(n_vocab=n_vocab, n_ctx=n_ctx, n_classes=stored.n_classes, **sizes)
    # Parameters that no file holds are drawn at random, with the same numbers every time.
    special = special_rows(np.random.RandomState(0), config.n_embd)
    params = stored.read(n_vocab, special, n_ctx=n_ctx, n_transfer=n_transfer, classifier=True)
    module = make_model(config, params, stored.path, seed=0)
    return LanguageModel(
        module=module.to(choose_device(None) if device is None else device).eval(),
        text_encoder=encoder,
        has_choice_head="clf/w" in params,
        source=str(path),
        has_special_rows=n_special > 0,
        task=stored.task,
    )


def _directory_of(path: str | Path) -> Path:
    """Return the directory of a model, which has the vocabulary unless another one is named."""
    file = locate.list_file(path)
    return Path(path) if file is None else file.parent


def make_model(
    config: ModelConfig, params: dict[str, Array], source: str | Path, *, seed: int
) -> DoubleHeadsModel:
    """Make a model of given parameters; missing parameters are drawn at random.

    Args:
        config: the sizes of the model.
        params: float32 arrays by the original's names, in file shapes.
        source: where they come from, for messages.
        seed: seed of the fresh parameters.

    Raises:
        InputError: an array does not fit the model, or a value is not finite.
    """
    model = DoubleHeadsModel(config)
    if "clf/w" not in params:  # a model with a classifier is complete
        model.init_parameters(torch.Generator().manual_seed(seed))
    set_parameters(model, params, source)
    return model
