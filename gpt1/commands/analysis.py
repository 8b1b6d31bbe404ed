"""Say how good a submission is: ``gpt1 analysis SUBMISSION``."""

from gpt1.reports.analysis import main

__all__ = ["main"]
