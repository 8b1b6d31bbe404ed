#!/usr/bin/env python3
"""Report how good a ROCStories submission is: the same program as ``gpt1 analysis``."""

import sys

from gpt1.commands.analysis import main

if __name__ == "__main__":
    sys.exit(main())
