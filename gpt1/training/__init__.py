"""The training loop and what it keeps: steps, checkpoints, logs, results."""
