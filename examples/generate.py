"""Continue texts in three ways, and say how likely the model finds each continuation.

python examples/generate.py "Ada made a kite" "Ben was afraid"
"""

import argparse

import gpt1


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue texts.")
    parser.add_argument("prompt", nargs="*", default=["Ada made a kite"], help="texts to continue")
    parser.add_argument("--model", help="directory of a model [model/, or the bundled demo]")
    parser.add_argument("--max_new_tokens", type=int, default=20, help="tokens to write [20]")
    given = parser.parse_args()

    model = gpt1.load_pretrained(given.model)
    n = given.max_new_tokens
    ways = {
        "likeliest": model.generate(given.prompt, max_new_tokens=n),
        "sampled": model.generate(given.prompt, max_new_tokens=n, top_p=0.9, seed=1),
        "beam search": model.generate(given.prompt, max_new_tokens=n, num_beams=4),
    }
    for way, continuations in ways.items():
        texts = [f"{a} {b}" for a, b in zip(given.prompt, continuations, strict=True)]
        for text, nats in zip(texts, model.log_likelihood(texts), strict=True):
            print(f"{way} ({nats:.1f} nats): {text}")


if __name__ == "__main__":
    main()
