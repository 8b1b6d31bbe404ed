"""Token ids to the packed tensors that the model computes on, and to a corpus on the disk."""
