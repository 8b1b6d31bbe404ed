"""Continue texts with a model: by sampling, by beam search, or greedily.

GPT-1 has no token that ends a text: every continuation has ``max_new_tokens`` tokens. Prompt and
continuation together have at most ``n_ctx`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import NamedTuple

from gpt1.inference.decoding import Decoder
from gpt1.inference.opened import OpenedModel
from gpt1.inference.search import beam_search, draws, one_by_one
from gpt1.runtime.errors import InputError
from gpt1.settings.command import check_group, naming_arguments
from gpt1.settings.groups import GENERATION_BATCH_SIZE, SamplingSettings

_ARGUMENTS = frozenset(field.name for field in fields(SamplingSettings))


class Continuation(NamedTuple):
    """A text that a model generated after a prompt.

    Attributes:
        ids: the token ids of the continuation.
        text: the text of these tokens, without the prompt.
        score: for a beam, log-probability in nats / tokens ** length_penalty; otherwise None.
    """

    ids: list[int]
    text: str
    score: float | None


def generate(
    model: OpenedModel,
    prompts: Sequence[str],
    options: SamplingSettings | None = None,
    *,
    decoder: Decoder | None = None,
    batch_size: int = GENERATION_BATCH_SIZE,
    start_token: bool = False,
) -> list[list[Continuation]]:
    """Continue texts.

    The continuation of a prompt does not depend on the other prompts, nor on ``batch_size`` (except
    where two tokens are so nearly equally likely that rounding decides between them). A sampled
    continuation depends on the number of prompts before its own.

    Args:
        model: the model; see :func:`gpt1.inference.language_model.open_model`.
        prompts: the texts.
        options: how to choose tokens [greedy, 40 tokens].
        decoder: a decoder of the same model, to use it for many calls or in bfloat16 [a new one].
        batch_size: number of continuations or beams computed at a time; it bounds the memory.
        start_token: put ``_start_`` before each prompt, as fine-tuning does.

    Returns:
        ``num_samples`` continuations of each prompt; beams come best first.

    Raises:
        InputError: an option is wrong, or a prompt has no tokens or not enough room in ``n_ctx``;
            the message names the number of the prompt.
    """
    options = options or SamplingSettings()
    check_group(options)
    places = [f"prompt {i}" for i in range(1, len(prompts) + 1)]
    with naming_arguments(_ARGUMENTS):
        ids = encode_prompts(model, prompts, places, options, start_token=start_token)
    found = continuations(model, ids, options, decoder=decoder, batch_size=batch_size)
    return list(found)


def stream(
    model: OpenedModel,
    prompt: str,
    options: SamplingSettings | None = None,
    *,
    decoder: Decoder | None = None,
    start_token: bool = False,
) -> Iterator[str]:
    """Continue one text and yield the text that each new token adds to it.

    The yielded texts, joined, are the first continuation that :func:`generate` returns, except that
    the text of a token that begins a word begins with a space. So prompt and yielded texts, joined,
    are the whole text.

    Args:
        model, options, decoder, start_token: see :func:`generate`.
        prompt: the text.

    Raises:
        InputError: see :func:`generate`.
        ValueError: the options ask for beam search, which knows no text before its end.
    """
    options = options or SamplingSettings()
    check_group(options)
    if options.num_beams > 1:
        raise ValueError(f"{options.num_beams} beams: only one text can be streamed")
    with naming_arguments(_ARGUMENTS):
        (ids,) = encode_prompts(model, [prompt], ["the prompt"], options, start_token=start_token)
    return stream_ids(model, ids, options, decoder or Decoder(model.module))


def stream_ids(
    model: OpenedModel, prompt: Sequence[int], options: SamplingSettings, decoder: Decoder
) -> Iterator[str]:
    """Continue a prompt of token ids as :func:`stream` does."""
    ids = list(prompt)
    text = readable(model, ids)
    for tokens in _one_by_one(decoder, [prompt], options, first_prompt=0, samples=range(1)):
        ids += tokens
        longer = readable(model, ids)
        yield longer[len(text) :]
        text = longer


def encode_prompts(
    model: OpenedModel,
    texts: Sequence[str],
    places: Sequence[str],
    options: SamplingSettings,
    *,
    start_token: bool = False,
) -> list[list[int]]:
    """Encode prompts and check that the model has room for them and their continuations.

    Args:
        model: the model.
        texts: the prompts.
        places: the origin of each prompt, for messages.
        options: the options, of which ``max_new_tokens`` is used.
        start_token: put ``_start_`` before each prompt.

    Returns:
        The token ids of each prompt.

    Raises:
        InputError: a prompt has no tokens, or is too long.
    """
    start = [model.special.start] if start_token else []
    n_ctx, n_new = model.module.config.n_ctx, options.max_new_tokens
    prompts = [start + ids for ids in model.text_encoder.encode(texts)]
    for place, prompt in zip(places, prompts, strict=True):
        n = len(prompt)
        if not n:
            raise InputError(f"{place}: has no tokens; write a word at least")
        if n + n_new > n_ctx:
            remedy = f"give --max_new_tokens {n_ctx - n} or less, or " if n < n_ctx else ""
            raise InputError(
                f"{place}: its tokens ({n}) and the new ones ({n_new}) are more than the {n_ctx} "
                f"positions (n_ctx) of {model.source}; {remedy}shorten the prompt"
            )
    return prompts


def continuations(
    model: OpenedModel,
    prompts: Sequence[Sequence[int]],
    options: SamplingSettings,
    *,
    decoder: Decoder | None = None,
    batch_size: int = GENERATION_BATCH_SIZE,
) -> Iterator[list[Continuation]]:
    """Continue prompts of token ids; yield the continuations of a prompt when its batch is done.

    The arguments are those of :func:`generate`, but ``options`` are not checked.
    """
    decoder = decoder or Decoder(model.module)
    decode = model.text_encoder.decode
    n_texts = options.num_samples
    size = max(1, batch_size // max(n_texts, options.num_beams))  # prompts in a batch
    for begin in range(0, len(prompts), size):
        part = prompts[begin : begin + size]
        if options.num_beams > 1:
            for beams in _beams(decoder, part, options):
                yield [Continuation(ids, decode(ids), score) for ids, score in beams[:n_texts]]
        else:
            for texts in _lines(decoder, part, options, begin, batch_size):
                yield [Continuation(ids, decode(ids), None) for ids in texts]


def _beams(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: SamplingSettings
) -> Iterator[list[tuple[list[int], float]]]:
    """Yield the tokens and scores of all beams of each prompt, best beam first."""
    n_new = options.max_new_tokens
    penalty = options.repetition_penalty
    found = beam_search(
        decoder, prompts, n_new, num_beams=options.num_beams, repetition_penalty=penalty
    )
    scores = found.log_probs / n_new**options.length_penalty
    for tokens, score in zip(found.tokens.tolist(), scores.tolist(), strict=True):
        yield list(zip(tokens, score, strict=True))


def _lines(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: SamplingSettings,
    first_prompt: int,
    batch_size: int,
) -> list[list[list[int]]]:
    """Return the tokens of all samples of each prompt, computed in batches."""
    found: list[list[list[int]]] = [[] for _ in prompts]
    step = min(options.num_samples, batch_size)
    for first in range(0, options.num_samples, step):
        samples = range(first, min(first + step, options.num_samples))
        steps = _one_by_one(decoder, prompts, options, first_prompt=first_prompt, samples=samples)
        rows = [list(row) for row in zip(*steps, strict=True)]
        for i, lines in enumerate(found):
            lines += rows[i * len(samples) : (i + 1) * len(samples)]
    return found


def _one_by_one(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: SamplingSettings,
    *,
    first_prompt: int,
    samples: range,
) -> Iterator[list[int]]:
    """Yield the tokens of each step: one for each sample of each prompt."""
    n_new = options.max_new_tokens
    numbers = range(first_prompt, first_prompt + len(prompts))
    steps = one_by_one(
        decoder,
        prompts,
        n_new,
        u=draws(options.seed, numbers, samples, n_new) if options.sampled else None,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )
    return (tokens.tolist() for tokens in steps)


def readable(model: OpenedModel, ids: Sequence[int]) -> str:
    """Decode token ids and leave special tokens out."""
    n_vocab = model.module.config.n_vocab
    return model.text_encoder.decode(i for i in ids if i < n_vocab)
