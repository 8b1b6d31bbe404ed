"""Write checkpoints in the released layout with random weights, at any size.

It does not use ``gpt1.weights``, whose reader is tested with it. As a program it writes the real
size, the paper's 116 million parameters, in one vector of 466 MB and little more memory:

    python tests/released.py DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np


def released_layout(n_embd: int, n_layer: int, n_ctx: int, n_vocab: int) -> list[list[int]]:
    """Return the table of ``params_shapes.json``: positions, tokens, twelve arrays per layer."""
    attention = [[1, n_embd, 3 * n_embd], [3 * n_embd], [1, n_embd, n_embd], [n_embd]]
    mlp = [[1, n_embd, 4 * n_embd], [4 * n_embd], [1, 4 * n_embd, n_embd], [n_embd]]
    norm = [[n_embd], [n_embd]]
    layers = (attention + norm + mlp + norm) * n_layer
    return [[n_ctx, n_embd], [n_vocab, n_embd], *layers]


def write_released(
    directory: Path,
    *,
    n_embd: int = 768,
    n_layer: int = 12,
    n_ctx: int = 512,
    n_vocab: int = 40478,
    n_head: int = 12,
    seed: int = 0,
    std: float = 0.02,
) -> np.ndarray:
    """Write a checkpoint and return its flat float32 vector, positions first.

    All values are drawn from N(0, std); layer-norm gains (the fifth and the eleventh array of a
    layer) have 1 added, so that hidden states stay of usual size.
    """
    layout = released_layout(n_embd, n_layer, n_ctx, n_vocab)
    flat = np.empty(sum(math.prod(shape) for shape in layout), np.float32)
    rng = np.random.default_rng(seed)
    start = 0
    for index, shape in enumerate(layout):
        piece = flat[start : start + math.prod(shape)]
        rng.standard_normal(dtype=np.float32, out=piece)
        piece *= np.float32(std)
        if index >= 2 and (index - 2) % 12 in (4, 10):
            piece += 1
        start += piece.size
    directory.mkdir(parents=True, exist_ok=True)
    for index, shard in enumerate(np.array_split(flat, 10)):
        np.save(directory / f"params_{index}.npy", shard)
    (directory / "params_shapes.json").write_text(json.dumps(layout))
    if n_head != 12:
        (directory / "gpt1_config.json").write_text(json.dumps({"n_head": n_head}))
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description="Write random weights in the released layout.")
    parser.add_argument("directory", type=Path)
    sizes = {"n_embd": 768, "n_layer": 12, "n_ctx": 512, "n_vocab": 40478, "n_head": 12, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    write_released(options.pop("directory"), **options)


if __name__ == "__main__":
    main()
