"""Text to token ids and back: standardisation, words, byte-pair encoding."""

from gpt1.text_utils.encoder import TextEncoder, text_standardize

__all__ = ["TextEncoder", "text_standardize"]
