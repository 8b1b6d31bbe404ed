"""A loaded model at work: prediction, generation, attention maps."""
