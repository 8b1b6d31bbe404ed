"""Choose between two endings of each story in a CSV file with a fine-tuned model.

python examples/fine_tune.py
python examples/score.py data/demo/example.csv --model out/my_model
"""

import argparse
import csv

import gpt1


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose endings of stories.")
    parser.add_argument("stories", help="a CSV file with the columns story, ending1, ending2")
    parser.add_argument("--model", default="out/my_model", help="fine-tuned model [out/my_model]")
    given = parser.parse_args()

    with open(given.stories, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    examples = [(row["story"], row["ending1"], row["ending2"]) for row in rows]
    model = gpt1.load_pretrained(given.model)
    choices, probabilities = model.predict(examples, probabilities=True)
    for example, choice, p in zip(examples, choices, probabilities, strict=True):
        print(f"{p[choice]:.2f}  {example[1 + choice]}")


if __name__ == "__main__":
    main()
