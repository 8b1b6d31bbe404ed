"""Learn whether a second text follows from the first one, by the F1 of the label "yes".

python examples/entail.py                                  # with the bundled small model
python examples/entail.py --model_dir model --n_iter 3     # with the released weights
"""

import argparse

import gpt1

NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry")
THINGS = ("a kite", "a cake", "a boat", "a letter", "a drum")
TRAIN = [
    (f"{name} had {thing}.", f"{name} {verb}.", label)
    for name in NAMES
    for thing in THINGS
    for verb, label in (("had something", "yes"), ("had nothing", "no"))
]
NEW = [("Irene had a kite.", "Irene had something."), ("Jack had a cake.", "Jack had nothing.")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn what follows from a text.")
    parser.add_argument("--model_dir", default="model/demo", help="pretrained model [the demo]")
    parser.add_argument("--n_iter", type=int, default=5, help="epochs [5]")
    given = parser.parse_args()

    result = gpt1.fine_tune(
        train=TRAIN,
        shape="entailment",
        metric="f1",
        positive="yes",
        model_dir=given.model_dir,
        n_iter=given.n_iter,
        desc="entail",
    )
    print(result.metrics)
    for (one, two), label in zip(NEW, result.model.predict(NEW), strict=True):
        print(f"{label}: {one} -> {two}")


if __name__ == "__main__":
    main()
