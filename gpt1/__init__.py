"""GPT-1 fine-tuning, equal to OpenAI's finetune-transformer-lm step by step.

Importing the package loads nothing heavy; import the modules you need.
"""

__version__ = "0.1.0"
