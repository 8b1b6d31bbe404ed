"""Learn how similar two texts are, on a scale from 1 to 3.

python examples/compare.py                                  # with the bundled small model
python examples/compare.py --model_dir model --n_iter 3     # with the released weights
"""

import argparse
from itertools import product

import gpt1

NAMES = ("Ada", "Ben", "Carla", "David")
THINGS = ("kite", "cake", "boat")
TRAIN = [
    (f"{a} had a {x}.", f"{b} had a {y}.", 1 + (a == b) + (x == y))
    for a, b, x, y in product(NAMES, NAMES, THINGS, THINGS)
]
NEW = [("Ada had a cake.", "Ada had a cake."), ("Ben had a kite.", "Carla had a boat.")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn how similar two texts are.")
    parser.add_argument("--model_dir", default="model/demo", help="pretrained model [the demo]")
    parser.add_argument("--n_iter", type=int, default=5, help="epochs [5]")
    given = parser.parse_args()

    result = gpt1.fine_tune(
        train=TRAIN,
        shape="similarity",
        metric="pearson",
        model_dir=given.model_dir,
        n_iter=given.n_iter,
        desc="compare",
    )
    print(result.metrics)
    for (one, two), grade in zip(NEW, result.model.predict(NEW), strict=True):
        print(f"{grade:.2f}: {one} / {two}")


if __name__ == "__main__":
    main()
