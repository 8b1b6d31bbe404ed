"""Small data sets in the formats of the paper's data sets, with made-up rows.

They are in order, but have the peculiarities of the real files: bare quotes, a byte-order mark, no
final newline, a space after a sentence, other columns in other splits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def tsv(*rows: Sequence[object]) -> str:
    """Return tab-separated rows."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def passage(answers: str, article: str = 'He said "no".\nThen he left.') -> str:
    """Return a file of RACE with a question for each answer."""
    n = len(answers)
    options = [[f"{i} a", f"{i} b", f"{i} c", f"{i} d"] for i in range(n)]
    questions = [f"Question {i} is  _  ." for i in range(n)]
    values = {"answers": [*answers], "options": options, "questions": questions}
    return json.dumps({**values, "article": article, "id": "middle1.txt"})


def snli(label: str, number: int) -> dict[str, object]:
    """Return a pair of SNLI's JSON lines."""
    texts = {"sentence1": f'Premise "{number}".', "sentence2": f"Hypothesis {number}."}
    return {"annotator_labels": [label], "gold_label": label, "pairID": f"{number}r", **texts}


def snli_txt(*labels: str) -> str:
    """Return SNLI's tab-separated form."""
    parses = [f"sentence{i}_{kind}" for kind in ("binary_parse", "parse") for i in (1, 2)]
    names = ["gold_label", *parses, "sentence1", "sentence2", "captionID", "pairID"]
    votes = [f"label{i}" for i in range(1, 6)]
    rows = [
        [label, *"bbpp", f'Premise "{i}".', f"Hypothesis {i}.", "c", "p", label, *[""] * 4]
        for i, label in enumerate(labels)
    ]
    return tsv([*names, *votes], *rows)


_MNLI_PAIR = ("(b)", "(b)", "(p)", "(p)", 'A "premise', "A hypothesis")
_MNLI_NAMES = (
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
)


def mnli(*labels: str, votes: int = 1) -> str:
    """Return a file of MNLI: with 12 columns, or with more votes more; without labels a test."""
    start = (0, "7", "7e", "fiction", *_MNLI_PAIR)
    names = [f"label{i}" for i in range(1, votes + 1)]
    if not labels:
        return tsv(_MNLI_NAMES, start)
    rows = [(*start, *["neutral"] * votes, label) for label in labels]
    return tsv((*_MNLI_NAMES, *names, "gold_label"), *rows)


NLI = ("entailment", "neutral", "contradiction")
MRPC_NAMES = ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")
STSB_NAMES = (
    *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
    *("sentence1", "sentence2", "score"),
)
_STSB = (0, "captions", "MSRvid", "2012", "0001", "none", "none", "A plane \\ takes off.", "It is.")
_QQP_NAMES = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
_QQP = tsv(
    _QQP_NAMES, (7, 1, 2, 'What is ""it""?', "What is it?", 1), (8, 3, 4, "Who?", '"When?', 0)
)
_QNLI = tsv(
    ("index", "question", "sentence", "label"),
    (0, '"Who came?', "Ann came.", "entailment"),
    (1, "Who left?", '"Ann came.', "not_entailment"),
)
_RTE = tsv(
    ("index", "sentence1", "sentence2", "label"),
    (0, "Ann came home.", "Ann came.", "entailment"),
    (1, "Ann came home.", "Ann left.", "not_entailment"),
)
_MRPC_ROWS = (
    (1, 11, 12, '" I came , " he said .', '" He came .'),
    (0, 13, 14, "She left .", "She stayed ."),
)
_COLA = tsv(("gj04", 1, "", "The cat sat."), ("gj04", 0, "*", 'Sat "cat the.'))
_SCITAIL = tsv(("Water is wet.", "Water wets.", "entails"), ("It is.", 'A "b.', "neutral"))

FILES: dict[str, dict[str, str]] = {
    "sst2": {
        "train.tsv": tsv(("sentence", "label"), ("a fine film ", 1), ('"a dull film ', 0)),
        "dev.tsv": tsv(("sentence", "label"), ("good ", 1), ("bad ", 0)),
        "test.tsv": tsv(("index", "sentence"), (0, "so so"), (1, "well")),
    },
    "cola": {
        "train.tsv": _COLA,
        "dev.tsv": _COLA.removesuffix("\n"),
        "test.tsv": tsv(("index", "sentence"), (0, "A dog barked.")),
    },
    "mrpc": {
        "train.tsv": tsv(MRPC_NAMES, *_MRPC_ROWS),
        "dev.tsv": tsv(MRPC_NAMES, *_MRPC_ROWS),
        "test.tsv": tsv(("\ufeffindex", *MRPC_NAMES[1:]), (0, 15, 16, '" Go .', "Go .")),
    },
    "qqp": {
        "train.tsv": _QQP,
        "dev.tsv": _QQP,
        "test.tsv": tsv(("id", "question1", "question2"), (0, "Why?", "How?")),
    },
    "stsb": {
        "train.tsv": tsv(STSB_NAMES, (*_STSB, "5.000"), (*_STSB, "3.8")),
        "dev.tsv": tsv(STSB_NAMES, (*_STSB, "0"), (*_STSB, "2.75")),
        "test.tsv": tsv(STSB_NAMES[:-1], _STSB),
    },
    "mnli": {
        "train.tsv": mnli(*NLI),
        "dev_matched.tsv": mnli(*NLI, votes=5),
        "dev_mismatched.tsv": mnli("neutral", votes=5),
        "test_matched.tsv": mnli(),
        "test_mismatched.tsv": mnli(),
        "diagnostic.tsv": tsv(("index", "sentence1", "sentence2"), (0, "Some a.", "All a.")),
    },
    "snli": {
        "snli_1.0_train.jsonl": "".join(
            json.dumps(snli(label, number)) + "\n" for number, label in enumerate((*NLI, "-"))
        ),
        "snli_1.0_dev.txt": snli_txt(*NLI, "-"),
        "snli_1.0_test.txt": snli_txt("-", "neutral"),
    },
    "qnli": {
        "train.tsv": _QNLI,
        "dev.tsv": _QNLI,
        "test.tsv": tsv(("index", "question", "sentence"), (0, "Why?", '"So.')),
    },
    "rte": {
        "train.tsv": _RTE,
        "dev.tsv": _RTE,
        "test.tsv": tsv(("index", "sentence1", "sentence2"), (0, "Ann ran.", "Ann moved.")),
    },
    "scitail": {f"scitail_1.0_{split}.tsv": _SCITAIL for split in ("train", "dev", "test")},
    "race": {
        f"{split}/{level}/{number}.txt": passage(answers)
        for level in ("middle", "high")
        for split, number, answers in (("train", 9, "AD"), ("train", 10, "B"), ("dev", 1, "C"))
    }
    | {f"test/{level}/3.txt": passage("BA") for level in ("middle", "high")},
}
FILES["race-middle"] = {name: text for name, text in FILES["race"].items() if "middle" in name}
FILES["race-high"] = {name: text for name, text in FILES["race"].items() if "high" in name}


def write_task(
    folder: Path, name: str, changes: dict[str, str | bytes | None] | None = None
) -> Path:
    """Write the files of a data set into a folder.

    Args:
        folder: the folder, which is made.
        name: the value of ``--dataset``.
        changes: other contents for some files, or None for a file that is not written.
    """
    contents: dict[str, str | bytes | None] = {**FILES[name], **(changes or {})}
    for file, content in contents.items():
        if content is not None:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
