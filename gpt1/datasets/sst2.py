"""SST-2: is a sentence of a film review positive (1) or negative (0)? (Socher et al. 2013, GLUE)"""

from __future__ import annotations

from gpt1.datasets.glue import glue_task
from gpt1.tasks import ACCURACY, Classes, Classification

SST2 = glue_task(
    "sst2",
    "SST-2",
    texts=("sentence",),
    label="label",
    layout=Classification(),
    target=Classes(("0", "1")),
    metrics=(ACCURACY,),
)
