"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

The command itself is :mod:`gpt1.commands.train`.
"""

from gpt1.commands.train import main
from gpt1.runtime.stopping import end_process

__all__ = ["main"]

if __name__ == "__main__":
    end_process(main())
