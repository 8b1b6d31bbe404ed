"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

The command itself is :mod:`gpt1.commands.train`.
"""

import sys

from gpt1.commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
