"""What a loaded model computes: predictions, generated text, attention maps."""
