#!/usr/bin/env bash
# Measure everything on a machine with a GPU, within nine minutes:
#
#     benchmarks/gpu.sh OUT_DIR [IDS.npz] [--device cpu --small]
#
# PYTHON names the interpreter that has torch [python3]. All flags: benchmarks/gpu.sh --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
