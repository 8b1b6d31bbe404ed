"""QNLI: does a sentence answer a question? (Rajpurkar et al. 2016, in the form of GLUE)"""

from __future__ import annotations

from gpt1.datasets.glue import glue_task
from gpt1.tasks import ACCURACY, Classes, Entailment

QNLI = glue_task(
    "qnli",
    "QNLI",
    texts=("question", "sentence"),
    label="label",
    layout=Entailment(),
    target=Classes(("entailment", "not_entailment")),
    metrics=(ACCURACY,),
)
