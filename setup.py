"""Put a copy of the bundled demo into the wheel; ``pyproject.toml`` says everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithDemo(build_py):
    """Copy ``data/demo`` and ``model/demo`` to where ``gpt1.runtime.demo`` looks for them.

    The repository keeps one copy. An editable installation reads that one.
    """

    def run(self) -> None:
        """Build the package, then add the demo."""
        super().run()
        if self.editable_mode:
            return
        for kind in ("data", "model"):
            target = Path(self.build_lib, "gpt1", "demo", kind)
            shutil.rmtree(target, ignore_errors=True)  # files of an earlier build
            shutil.copytree(ROOT / kind / "demo", target)


setup(cmdclass={"build_py": BuildWithDemo})
