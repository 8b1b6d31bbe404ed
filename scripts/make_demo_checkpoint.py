"""Pretrain the demo's small GPT-1 in ``model/demo`` on unlabelled stories, from a fixed seed.

This follows the paper on a small scale: it learns byte pairs from a corpus, trains a language model
on the corpus with gpt1's model and optimizer, and saves it in the released layout. The stories come
from the same grammar as the demo's cloze stories. No cloze story is among them, and they do not
show which endings are wrong.

    python scripts/make_demo_checkpoint.py --out model/demo
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from make_demo_stories import unlabelled_stories

from gpt1.batches.encoded import EncodedSplit
from gpt1.batches.packing import pack
from gpt1.model.transformer import DoubleHeadsModel, ModelConfig
from gpt1.opt.adam import OpenAIAdam
from gpt1.runtime.errors import report_errors
from gpt1.text_utils.encoder import TextEncoder
from gpt1.text_utils.learning import count_words, learn_merges, tokens_of, write_vocabulary
from gpt1.text_utils.special import SpecialTokens
from gpt1.text_utils.words import EnglishWords
from gpt1.weights.parameters import parameter_shapes, to_list
from gpt1.weights.released import save_released

SEED = 2018
N_STORIES = 40_000
N_CTX = 128
N_EMBD, N_HEAD, N_LAYER = 128, 4, 4
N_BATCH = 32
LR = 1e-3
MIN_COUNT = 3  # pairs seen less often are not merged


def learn_vocabulary(out: Path, texts: Sequence[str]) -> TextEncoder:
    """Learn byte pairs from the texts' words and write both vocabulary files."""
    words = EnglishWords("2.0")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(count_words(text, words))
    merges = learn_merges(counts, min_count=MIN_COUNT)
    files = out / "encoder_bpe_40000.json", out / "vocab_40000.bpe"
    write_vocabulary(*files, tokens_of(counts, merges), merges)
    return TextEncoder(*files)


def split_of(stories: Sequence[Sequence[int]], config: ModelConfig) -> EncodedSplit:
    """Return stories with one choice each, so that the choice loss is 0 and the LM loss remains."""
    special = SpecialTokens.after(config.n_vocab)
    return EncodedSplit.of(([story] for story in stories), special, [0] * len(stories))


def batches_of(
    stories: Sequence[list[int]], generator: np.random.RandomState
) -> Iterator[list[list[int]]]:
    """Yield the stories in random order, N_BATCH at a time."""
    order = generator.permutation(len(stories))
    for begin in range(0, len(stories) - N_BATCH + 1, N_BATCH):
        yield [stories[i] for i in order[begin : begin + N_BATCH]]


def pretrain(stories: Sequence[list[int]], config: ModelConfig, seed: int) -> DoubleHeadsModel:
    """Train a language model on each story once, and print the loss during training."""
    model = DoubleHeadsModel(config)
    model.init_parameters(torch.Generator().manual_seed(seed))
    n_updates = len(stories) // N_BATCH
    optimizer = OpenAIAdam(
        model.parameters(),
        lr=LR,
        schedule="warmup_linear",
        warmup=0.05,
        t_total=n_updates,
        l2=0.01,
        max_grad_norm=1,
    )
    torch.manual_seed(seed)
    began = time.time()
    for update, batch in enumerate(batches_of(stories, np.random.RandomState(seed)), start=1):
        packed = pack(split_of(batch, config), config.clf_token, share_prefix=False)
        losses = model.losses(packed, lm_coef=1.0)
        torch.autograd.backward(losses.total)
        optimizer.step()
        optimizer.zero_grad()
        if update % 100 == 0 or update == n_updates:
            assert losses.lm is not None
            loss, seconds = losses.lm.mean().item(), time.time() - began
            print(
                f"update {update} of {n_updates}: {loss:.3f} nats per token, {seconds:.0f} s",
                flush=True,
            )
    return model


def make(out: Path, n_stories: int, seed: int) -> int:
    """Make the stories, learn the vocabulary, pretrain the model, and write the files."""
    texts = list(unlabelled_stories(n_stories, seed))
    encoder = learn_vocabulary(out, texts)
    stories = [ids[:N_CTX] for ids in encoder.encode(texts)]
    config = ModelConfig(
        n_vocab=len(encoder.encoder),
        n_ctx=N_CTX,
        n_embd=N_EMBD,
        n_head=N_HEAD,
        n_layer=N_LAYER,
        embd_pdrop=0,
        attn_pdrop=0,
        resid_pdrop=0,
    )
    tokens = sum(map(len, stories))
    print(f"{n_stories} stories of {tokens} tokens, a vocabulary of {config.n_vocab} tokens")
    model = pretrain(stories, config, seed)
    params = dict(zip(parameter_shapes(config), to_list(model), strict=True))
    save_released(out, params, n_vocab=config.n_vocab, n_head=config.n_head)
    print(f"written to {out}/")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's model.")
    parser.add_argument("--out", default="model/demo", type=Path, help="directory to write into")
    parser.add_argument("--n_stories", default=N_STORIES, type=int, help="stories to train on")
    parser.add_argument("--seed", default=SEED, type=int, help="what everything is drawn from")
    args = parser.parse_args(argv)
    return report_errors("make_demo_checkpoint", lambda: make(args.out, args.n_stories, args.seed))


if __name__ == "__main__":
    sys.exit(main())
