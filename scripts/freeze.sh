#!/usr/bin/env bash
# Rewrites constraints.txt from what the environment holds (after tests passed with it).
# Left out: this package, pip, what torch pins itself per platform (nvidia-*, cuda-*, triton), and opencv-python (see [tool.uv]).
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(PATH="${VENV:-.venv}/bin:$PATH" command -v uv) || { echo "freeze: uv not found; run 'make setup' first" >&2; exit 1; }
{
    echo "# Versions this package was tested with, on Linux x86-64 and Python 3.12. Written by 'make freeze'."
    echo "# Constraints, not requirements: pip install -c constraints.txt ..."
    "$uv" pip freeze --quiet --python "${VENV:-.venv}/bin/python" --exclude-editable |
        grep -E '^[A-Za-z0-9._-]+==[^ ]+$' |
        grep -vE '^(nvidia-|cuda-|triton==|pip==|opencv-python==|lerobot[-_]policy[-_]vla0==)'
} >constraints.txt.new
mv constraints.txt.new constraints.txt
