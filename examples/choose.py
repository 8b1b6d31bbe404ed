"""Learn to choose the right answer among two or three.

python examples/choose.py                                  # with the bundled small model
python examples/choose.py --model_dir model --n_iter 3     # with the released weights
"""

import argparse
import random

import gpt1

NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Frank")
THINGS = ("kite", "cake", "boat", "letter", "drum")
NEW = [
    ("Grace had a kite.", "It was a boat.", "It was a kite."),
    ("Henry had a drum.", "It was a cake.", "It was a letter.", "It was a drum."),
]


def example(rng: random.Random) -> tuple[object, ...]:
    """Return a context, two or three answers, and the index of the right one."""
    things = rng.sample(THINGS, rng.choice((2, 3)))
    right = rng.randrange(len(things))
    answers = [f"It was a {thing}." for thing in things]
    return f"{rng.choice(NAMES)} had a {things[right]}.", *answers, right


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to choose the right answer.")
    parser.add_argument("--model_dir", default="model/demo", help="pretrained model [the demo]")
    parser.add_argument("--n_iter", type=int, default=5, help="epochs [5]")
    given = parser.parse_args()

    rng = random.Random(1)
    result = gpt1.fine_tune(
        train=[example(rng) for _ in range(120)],
        shape="choice",
        model_dir=given.model_dir,
        n_iter=given.n_iter,
        desc="choose",
    )
    print(result.metrics)
    for texts, index in zip(NEW, result.model.predict(NEW), strict=True):
        context, *answers = texts
        print(f"{context} {answers[index]}")


if __name__ == "__main__":
    main()
