"""Training: the loop, its checkpoints, its logs and its results."""
