"""``python -m gpt1`` is ``gpt1``."""

import sys

from gpt1.cli import main

sys.exit(main())
