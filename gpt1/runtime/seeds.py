"""Seeds that follow from the seed of the run, so that a checkpoint needs no random state."""

from __future__ import annotations

import numpy as np


def tower_seed(seed: int, update: int, tower: int) -> int:
    """Return the seed of one tower's dropout masks in one update.

    The seed depends on nothing else. Therefore the masks are the same for any number of ranks, and
    a resumed run draws the same masks as an uninterrupted one.

    Args:
        seed: the seed of the run.
        update: the number of the update.
        tower: the number of the tower in the batch, from 0.

    Returns:
        A number from 0 to 2**64 - 1.
    """
    words = np.random.SeedSequence([seed, update, tower]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32
