"""Data sets: one small file per data set, and the readers that they share."""

from gpt1.datasets.story_cloze import rocstories

__all__ = ["rocstories"]
