"""GPT-1 fine-tuning, equal to OpenAI's finetune-transformer-lm step by step.

    import gpt1

    model = gpt1.load_pretrained("model/demo")
    model.generate("Ada made a kite", max_new_tokens=20)
    result = gpt1.fine_tune("rocstories")
    result.model.save("my_model")

Importing the package loads nothing heavy: the functions and classes named here import NumPy and
torch when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt1.inference.language_model import LanguageModel
    from gpt1.inference.language_model import open_model as load_pretrained
    from gpt1.inference.zeroshot import ZeroshotResult, zeroshot
    from gpt1.training.pretraining_runs import PretrainingResult, pretrain
    from gpt1.training.runs import Result, fine_tune

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "PretrainingResult",
    "Result",
    "ZeroshotResult",
    "__version__",
    "fine_tune",
    "load_pretrained",
    "pretrain",
    "zeroshot",
]

_FOUND_IN = {
    "LanguageModel": "gpt1.inference.language_model:LanguageModel",
    "PretrainingResult": "gpt1.training.pretraining_runs:PretrainingResult",
    "Result": "gpt1.training.runs:Result",
    "ZeroshotResult": "gpt1.inference.zeroshot:ZeroshotResult",
    "fine_tune": "gpt1.training.runs:fine_tune",
    "load_pretrained": "gpt1.inference.language_model:open_model",
    "pretrain": "gpt1.training.pretraining_runs:pretrain",
    "zeroshot": "gpt1.inference.zeroshot:zeroshot",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _FOUND_IN[name].partition(":")
    globals()[name] = found = getattr(import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    """List the public names before they are imported, too."""
    return sorted({*globals(), *__all__})
