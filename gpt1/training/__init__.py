"""The training loop, its jobs and listeners, and its checkpoints."""
