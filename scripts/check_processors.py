"""Run the comparisons with the original's numbers as on several kinds of processor.

Libraries choose their kernels by the processor, and kernels differ in rounding. Environment
variables make a library choose the kernels of another processor; each variant sets one of them.
Every variant runs the tests marked ``golden``, which compare floating-point numbers with numbers
that the original produced. All variants use one thread, except the one with two threads.

``DNNL_MAX_CPU_ISA`` is not among the variables, because oneDNN computes nothing here in float32.

    python scripts/check_processors.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # Waiting threads sleep.
VARIANTS = {
    "this machine's own": {},
    "no vector kernels of torch": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 kernels of torch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "SSE2 kernels of MKL": {"MKL_CBWR": "COMPATIBLE"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
VARIABLES = {name for changes in VARIANTS.values() for name in changes}
LINE = "{:<28} {:<36} {:<8} {}"


def run(changes: dict[str, str]) -> tuple[bool, str]:
    """Run the golden tests with these variables set.

    Returns:
        Whether all tests passed, and the output of pytest.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "golden", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | BASE | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode == 0, done.stdout


def main() -> int:
    """Print one line per variant; return 1 if a comparison failed in any variant."""
    outputs = {}
    print(LINE.format("variant", "variable", "result", "largest error, in its tolerance"))
    for name, changes in VARIANTS.items():
        passed, output = run(changes)
        if not passed:
            outputs[name] = output
        share = re.search(r"golden values: .* largest error (\S+) of its tolerance", output)
        variable = " ".join(f"{key}={value}" for key, value in changes.items())
        result = "passed" if passed else "FAILED"
        print(LINE.format(name, variable, result, share[1] if share else "unknown"), flush=True)
    for name, output in outputs.items():
        print(f"\n==== {name}\n{output}")
    return 1 if outputs else 0


if __name__ == "__main__":
    sys.exit(main())
