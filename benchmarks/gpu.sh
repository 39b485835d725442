#!/usr/bin/env bash
# Run every check that needs an NVIDIA GPU within 12 minutes, installation included; see gpu.py.
#
#   benchmarks/gpu.sh FOLDER [--mnist FOLDER] [--only CHECK …]
#   benchmarks/gpu.sh FOLDER --device cpu --tiny
#
# ENVARIANT_PYTHON names an interpreter that has PyTorch with CUDA; without it, `make` installs into .venv.
# Packages that this interpreter lacks can be in a folder named in PYTHONPATH.
set -euo pipefail

if [ $# -eq 0 ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${ENVARIANT_PYTHON:-}
if [ -z "$python" ]; then
    timeout 480 make --quiet -C "$root" .venv/installed-dev
    python=$root/.venv/bin/python
fi
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/benchmarks/gpu.py" --seconds $((720 - SECONDS)) "$@"
