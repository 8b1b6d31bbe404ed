"""The groups of settings. Flags that the original has keep their names and defaults.

A default of None means that the value is taken from the checkpoint, the data set or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpt1.settings.fields import (
    above,
    at_least,
    between,
    fraction,
    not_negative,
    plain_name,
    rate,
    seed_number,
    setting,
    warmup_share,
)

OWN = "own"
"""The value of ``--dataset`` for a user's own data."""
PAPER_DATASETS = (
    *("rocstories", "sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "snli", "qnli", "rte"),
    *("scitail", "race", "race-middle", "race-high"),
)
DATASETS = (*PAPER_DATASETS, OWN)
SHAPE_NAMES = ("classification", "entailment", "similarity", "choice")
METRIC_NAMES = ("accuracy", "f1", "matthews", "pearson")
PRECISIONS = ("fp32", "tf32", "bf16")
SPACY_RULES = ("2.0", "installed")
ACTIVATION_NAMES = ("gelu", "relu", "swish")
LEAST_N_CTX = 6
"""The smallest ``n_ctx``, which leaves one token of a story and one token of an ending."""
SCHEDULE_NAMES = ("warmup_linear", "warmup_cosine", "warmup_constant")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Data and pretrained model."""

    dataset: str = setting(
        "rocstories",
        f"what to train on: {', '.join(DATASETS)} [rocstories]",
        choices=DATASETS,
        metavar="NAME",
    )
    data_dir: str | None = setting(
        None, "where the data are [data/, or the demo]", metavar="DIR", may_change=True
    )
    model_dir: str | None = setting(
        None,
        "where weights and vocabulary are, as released or from the model hub [model/, or the demo]",
        metavar="DIR",
        may_change=True,
    )
    encoder_path: str | None = setting(
        None,
        "vocabulary [MODEL_DIR/encoder_bpe_40000.json, or vocab.json of a hub directory]",
        metavar="FILE",
        may_change=True,
    )
    bpe_path: str | None = setting(
        None,
        "merges [MODEL_DIR/vocab_40000.bpe, or merges.txt of a hub directory]",
        metavar="FILE",
        may_change=True,
    )
    init_params: str | None = setting(
        None,
        "start from this full parameter list (.jl or .safetensors), classifier included",
        metavar="FILE",
        may_change=True,
    )
    n_transfer: int | None = setting(
        None,
        "layers taken from the checkpoint; -1: nothing, embeddings neither "
        "[as many as checkpoint and model both have]",
        at_least(-1),
    )
    spacy_rules: str = setting(
        "2.0",
        "special cases of English words: 2.0, which the weights were trained with, or installed",
        choices=SPACY_RULES,
    )
    cache_dir: str | None = setting(
        None,
        "where encoded texts are kept for the next run; none: nowhere [~/.cache/gpt1]",
        metavar="DIR",
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """Your own data, with --dataset own."""

    shape: str | None = setting(None, "what an example is", choices=SHAPE_NAMES)
    train_file: str | None = setting(
        None,
        "examples to train on: .csv, .tsv (without quotes) or .jsonl",
        metavar="FILE",
        may_change=True,
    )
    valid_file: str | None = setting(
        None,
        "examples to choose the best epoch by [a fifth of the training file]",
        metavar="FILE",
        may_change=True,
    )
    test_file: str | None = setting(
        None, "examples to predict, with or without labels", metavar="FILE", may_change=True
    )
    text_columns: str | None = setting(
        None,
        "columns of the texts, with commas between them [text, or text1,text2, or "
        "context,answer1,answer2,...]",
        metavar="NAMES",
        may_change=True,
    )
    label_column: str | None = setting(
        None, "column of the label [label]", metavar="NAME", may_change=True
    )
    metric: str | None = setting(
        None,
        "score of the best epoch; pearson: labels are numbers [accuracy]",
        choices=METRIC_NAMES,
    )
    positive: str | None = setting(
        None, "label whose F1 is computed [the second of two]", metavar="LABEL"
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Model and dropout."""

    n_ctx: int = setting(
        512, "longest sequence, in tokens; longer parts are cut", at_least(LEAST_N_CTX)
    )
    n_embd: int | None = setting(
        None, "width [the checkpoint's, else 768]", at_least(1), may_change=True
    )
    n_head: int | None = setting(
        None, "attention heads [the checkpoint's, else 12]", at_least(1), may_change=True
    )
    n_layer: int | None = setting(
        None, "layers [the checkpoint's, else 12]", at_least(1), may_change=True
    )
    afn: str = setting("gelu", "activation", choices=ACTIVATION_NAMES)
    embd_pdrop: float = setting(0.1, "dropout on the embedding matrix", rate)
    attn_pdrop: float = setting(0.1, "dropout on attention weights", rate)
    resid_pdrop: float = setting(0.1, "dropout before residual sums", rate)
    clf_pdrop: float = setting(0.1, "dropout on the classifier's input", rate)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule."""

    opt: str = setting("adam", "optimizer", choices=("adam",))
    lr: float = setting(6.25e-5, "peak learning rate", at_least(0))
    lr_schedule: str = setting("warmup_linear", "learning-rate schedule", choices=SCHEDULE_NAMES)
    lr_warmup: float = setting(0.002, "share of all updates that warm up", warmup_share)
    max_grad_norm: float = setting(1.0, "global norm to clip gradients at; 0 or less: no clipping")
    b1: float = setting(0.9, "Adam's decay of the first moment", fraction)
    b2: float = setting(0.999, "Adam's decay of the second moment", fraction)
    e: float = setting(1e-8, "Adam's epsilon", above(0))
    l2: float = setting(0.01, "weight decay", not_negative)
    vector_l2: bool = setting(False, "decay biases and layer norms too")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Length and batches."""

    seed: int = setting(42, "seed of all random numbers", seed_number)
    n_iter: int = setting(3, "epochs; 0: no training", at_least(0))
    n_batch: int = setting(8, "examples per tower and update", at_least(1))
    n_gpu: int = setting(
        4, "towers; a batch is n_batch * n_gpu examples on any hardware", at_least(1)
    )
    lm_coef: float = setting(0.5, "weight of the language-model loss", not_negative)

    @property
    def batch_size(self) -> int:
        """Examples per update, over all towers."""
        return self.n_batch * self.n_gpu


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """Device and speed."""

    device: str | None = setting(
        None,
        "cpu, cuda, cuda:1, mps, ... [cuda if there is one, else cpu]",
        metavar="DEVICE",
        may_change=True,
    )
    precision: str = setting("fp32", "arithmetic; tf32 needs CUDA", choices=PRECISIONS)
    share_prefix: bool = setting(
        False,
        "compute a context once for all its answers in training too: they share a dropout mask",
    )
    recompute: bool | None = setting(
        None,
        "compute the layers again in the backward pass: a third more time, far less memory, the "
        "same numbers [if there would be too little memory]",
        may_change=True,
    )
    compile: bool = setting(False, "compile the layers with torch.compile; needs a C++ compiler")
    fast: bool = setting(
        False,
        "what is fastest on the device: bf16 where it has it, --share_prefix, --compile on CUDA",
        may_change=True,
    )
    deterministic: bool = setting(
        False,
        "the same bits in every run on a GPU too, which is slower; a CPU always does that",
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Results."""

    desc: str | None = setting(
        None, "name of the run, used in file names [the data set]", plain_name, may_change=True
    )
    log_dir: str = setting("log/", "where log files go", metavar="DIR", may_change=True)
    save_dir: str = setting(
        "save/", "where parameters and checkpoints go", metavar="DIR", may_change=True
    )
    submission_dir: str = setting(
        "submission/", "where the submission goes", metavar="DIR", may_change=True
    )
    submit: bool = setting(False, "keep the best parameters and predict the test set with them")
    analysis: bool = setting(False, "print accuracies at the end", may_change=True)
    probs: bool = setting(
        False, "with --submit: write the probability of each choice, too", may_change=True
    )
    tensorboard: str | None = setting(
        None,
        "write the figures of the logs for TensorBoard here, too",
        metavar="DIR",
        may_change=True,
    )
    quiet: bool = setting(
        False, "print the lines of the original alone, one per evaluation", may_change=True
    )
    resume: bool = setting(
        False, "go on from the last checkpoint of this run, if there is one", may_change=True
    )
    save_every: int = setting(
        0,
        "updates between checkpoints, besides the end of each epoch",
        at_least(0),
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class OpenSettings:
    """Model to use."""

    model_dir: str | None = setting(
        None, "vocabulary and weights [model/, or model/demo]", metavar="DIR"
    )
    params: str | None = setting(
        None,
        "a fine-tuned model: best_params.jl or .safetensors, or a model's directory",
        metavar="FILE",
    )
    n_head: int | None = setting(None, "attention heads [the checkpoint's, else 12]", at_least(1))
    afn: str | None = setting(
        None, "activation [the checkpoint's, else gelu]", choices=ACTIVATION_NAMES
    )
    spacy_rules: str = setting("2.0", "special cases of English words", choices=SPACY_RULES)
    device: str | None = setting(
        None, "cpu, cuda, mps, ... [cuda if there is one, else cpu]", metavar="DEVICE"
    )


GENERATION_BATCH_SIZE = 16
"""Number of texts or beams that generation computes at a time."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to choose tokens.

    Tokens are sampled if one of ``temperature``, ``top_k`` and ``top_p`` is given, and chosen by
    beam search if ``num_beams`` is at least 2. Otherwise each token is the likeliest one.
    """

    max_new_tokens: int = setting(40, "tokens to write", at_least(1))
    temperature: float | None = setting(
        None, "sample; below 1 likely tokens more often, 0: the likeliest always", at_least(0)
    )
    top_k: int | None = setting(None, "sample from the N likeliest tokens", at_least(1))
    top_p: float | None = setting(
        None, "sample from the fewest tokens whose probabilities reach X", between(0, 1)
    )
    repetition_penalty: float = setting(
        1.0,
        "above 1: tokens of the prompt and of what was written become less likely",
        between(0.01, 100),
    )
    num_beams: int = setting(
        1, "beam search that keeps the N likeliest beginnings", between(1, 100)
    )
    length_penalty: float = setting(
        1.0,
        "the score of a beam is log-probability / tokens ** X; as all beams are equally long, X "
        "changes the scores in --json, not the texts",
        between(-10, 10),
    )
    num_samples: int = setting(1, "continuations of each prompt", at_least(1))
    seed: int = setting(42, "seed of sampling", at_least(0))

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn at random."""
        given = (self.temperature, self.top_k, self.top_p) != (None, None, None)
        return given and self.temperature != 0

    def contradictions(self) -> Iterator[str]:
        """Find settings that exclude one another."""
        n, beams = self.num_samples, self.num_beams
        if beams > 1:
            for name in ("temperature", "top_k", "top_p"):
                if getattr(self, name) is not None:
                    yield f"--{name}: beam search does not sample; leave it or --num_beams out"
            if n > beams:
                yield f"--num_samples {n}: {beams} beams end in {beams} texts; raise --num_beams"
            return
        if self.length_penalty != 1:
            yield "--length_penalty: scores beams; leave it out or give --num_beams"
        if n > 1 and not self.sampled:
            yield f"--num_samples {n}: greedy texts are all the same; add --temperature 1"
