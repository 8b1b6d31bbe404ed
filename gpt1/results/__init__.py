"""What a run leaves: the lines of its logs, its submissions, and where they lie."""
