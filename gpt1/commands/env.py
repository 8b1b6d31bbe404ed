"""Show the versions and the hardware that a run would use: ``gpt1 env``."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import gpt1
from gpt1.commands.running import run_command
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import setting

REQUIRED = ("torch", "numpy", "spacy", "ftfy", "scikit-learn", "safetensors")
OPTIONAL = ("transformers", "matplotlib", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """Device."""

    device: str | None = setting(
        None,
        "the device to describe: cpu, cuda, cuda:1, mps, ... [cuda if there is one, else cpu]",
        metavar="DEVICE",
    )


COMMAND = Command(
    name="env",
    summary="Show versions, devices, threads and processor, one per line.",
    groups=(EnvironmentSettings,),
    examples="""\
  # what to write into a report of a problem
  gpt1 env

  # whether the second GPU can be used, and computes in bfloat16
  gpt1 env --device cuda:1""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 if there is no such device."""
    return run_command(COMMAND, _show, argv)


def _show(values: Values) -> None:
    device = values[EnvironmentSettings].device
    facts = [*_versions(), *_hardware(device)]  # a wrong --device shows nothing but its message
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:{width}}  {value}")


def _versions() -> Iterator[tuple[str, str]]:
    """Yield the versions of the package, of Python and of the libraries that are installed."""
    yield "gpt1", gpt1.__version__
    yield "Python", platform.python_version()
    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in REQUIRED:
                yield name, "missing"


def _hardware(name: str | None) -> Iterator[tuple[str, str]]:
    """Yield what a run computes on."""
    import torch

    from gpt1.runtime import device

    chosen = device.choose_device(name)
    yield "device", str(chosen)
    yield "devices", ", ".join(device.available_devices())
    yield "bf16", "yes" if device.has_bf16(chosen) else "no"
    yield "threads", str(torch.get_num_threads())
    yield "processor", device.processor_name()
    yield "instruction set", torch.backends.cpu.get_cpu_capability()
