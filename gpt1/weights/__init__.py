"""Parameters on disk: released shards, parameter lists, the model hub layout."""

from gpt1.weights.released import from_list, load_released, save_released, to_list

__all__ = ["from_list", "load_released", "save_released", "to_list"]
