"""Learn the classes of texts, here moods, and name the class of new ones.

python examples/classify.py                                  # with the bundled small model
python examples/classify.py --model_dir model --n_iter 3     # with the released weights
"""

import argparse

import gpt1

NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry")
MOODS = {"good": ("happy", "glad", "proud"), "bad": ("sad", "angry", "afraid")}
TRAIN = [
    (f"{name} was {word} all day.", mood)
    for name in NAMES
    for mood, words in MOODS.items()
    for word in words
]
NEW = ["Irene was proud of her cake.", "Jack was afraid of the storm."]


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn the classes of texts.")
    parser.add_argument("--model_dir", default="model/demo", help="pretrained model [the demo]")
    parser.add_argument("--n_iter", type=int, default=5, help="epochs [5]")
    given = parser.parse_args()

    result = gpt1.fine_tune(
        train=TRAIN, model_dir=given.model_dir, n_iter=given.n_iter, desc="classify"
    )
    print(result.metrics)
    labels, probabilities = result.model.predict(NEW, probabilities=True)
    for text, label, p in zip(NEW, labels, probabilities, strict=True):
        print(f"{label} ({p.max():.2f}): {text}")


if __name__ == "__main__":
    main()
