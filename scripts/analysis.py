#!/usr/bin/env python3
"""Say how good a ROCStories submission is: the command line of :mod:`gpt1.reports.analysis`."""

import sys

from gpt1.reports.analysis import main

if __name__ == "__main__":
    sys.exit(main())
