"""RTE: does a sentence follow from a text? (Dagan et al. 2006 and later, in the form of GLUE)"""

from __future__ import annotations

from gpt1.datasets.glue import glue_task
from gpt1.tasks import ACCURACY, Classes, Entailment

RTE = glue_task(
    "rte",
    "RTE",
    texts=("sentence1", "sentence2"),
    label="label",
    layout=Entailment(),
    target=Classes(("entailment", "not_entailment")),
    metrics=(ACCURACY,),
)
