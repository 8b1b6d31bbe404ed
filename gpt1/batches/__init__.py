"""Token ids to the packed tensors that the model computes on."""
