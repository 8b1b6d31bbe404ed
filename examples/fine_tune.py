"""Fine-tune on ROCStories, predict a story of one's own, and save the model.

python examples/fine_tune.py                # on the bundled demo
python examples/fine_tune.py --data_dir data --model_dir model --n_iter 3    # on the real data
"""

import argparse

import gpt1

EXAMPLE = (
    "Ada made a kite. She took it to the beach. The wind was strong. The kite flew very high.",
    "Ada was sad.",
    "Ada was happy.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on ROCStories and save the model.")
    parser.add_argument("--data_dir", help="directory of the two cloze CSVs [the bundled demo]")
    parser.add_argument("--model_dir", help="directory of the weights [the bundled demo]")
    parser.add_argument("--n_iter", type=int, default=3, help="epochs [3]")
    parser.add_argument("--out", default="out/my_model", help="where the model goes [out/my_model]")
    given = parser.parse_args()

    result = gpt1.fine_tune(
        "rocstories", data_dir=given.data_dir, model_dir=given.model_dir, n_iter=given.n_iter
    )
    for row in result.history:
        print(f"epoch {row['n_epochs']}: validation accuracy {row['va_acc']:.2f} %")
    print(result.metrics)
    (choice,) = result.model.predict([EXAMPLE])
    print(EXAMPLE[0], EXAMPLE[1 + choice])
    result.model.save(given.out)


if __name__ == "__main__":
    main()
