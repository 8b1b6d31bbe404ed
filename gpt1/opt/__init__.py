"""Learning-rate schedules and the Adam optimizer of the original."""

from gpt1.opt.adam import SCHEDULES, OpenAIAdam, warmup_constant, warmup_cosine, warmup_linear

__all__ = ["SCHEDULES", "OpenAIAdam", "warmup_constant", "warmup_cosine", "warmup_linear"]
