"""``python -m gpt1`` is ``gpt1``."""

import sys

from gpt1.commands.cli import main

sys.exit(main())
