#!/usr/bin/env bash
# Runs the tests that drive LeRobot's commands on another LeRobot, in an environment of its own beside ours.
#
#   scripts/try_lerobot.sh PATH [PYTEST ARGUMENTS]      a checkout (its last commit, not what is uncommitted)
#   scripts/try_lerobot.sh 0.6.2 [PYTEST ARGUMENTS]     a released version
#
#   LEROBOT_VENV=...   where the environment goes (default: .venv-lerobot-NAME, which git ignores)
#
# The outcome belongs into docs/log.md, with the commit.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'try_lerobot: error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 1 ] || die "name a checkout of LeRobot or a version: scripts/try_lerobot.sh PATH_OR_VERSION"
what=$1
shift

EXTRAS=training,transformers-dep,feetech,core_scripts,pyzmq-dep,async,peft,diffusion
# train, save, resume, validate, publish, LoRA, merge, shard, evaluate, roll out (sync, RTC), serve
TESTS=(
    tests/test_lerobot_commands.py tests/test_lerobot_next.py tests/test_processor.py tests/test_policy.py
    tests/test_questions.py tests/test_text_queries.py tests/text/test_question.py tests/tools/commands/test_ask.py
    tests/checkpoints tests/training/test_scale.py tests/tools/test_merging.py
    tests/tools/so100_emulator tests/tools/serving
)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -d "$what" ]; then
    commit=$(git -C "$what" rev-parse --short HEAD) || die "$what is no git checkout"
    git -C "$what" archive HEAD | tar -x -C "$scratch" # building writes into the folder
    requirement="lerobot[$EXTRAS] @ file://$scratch"
    name=$commit
elif [[ $what =~ ^[0-9]+\.[0-9.]+[a-z0-9]*$ ]]; then
    requirement="lerobot[$EXTRAS]==$what"
    name=$what
else
    die "$what is neither a folder nor a version such as 0.6.2"
fi

VENV=${LEROBOT_VENV:-.venv-lerobot-$name}
[ -x .venv/bin/uv ] || die "no .venv: run 'make setup' first"
[ -x "$VENV/bin/python" ] || .venv/bin/python -m venv "$VENV"
grep -v '^lerobot==' constraints.txt >"$scratch/constraints.txt"
echo "opencv-python; sys_platform == 'never'" >"$scratch/overrides.txt"
# LeRobot's own sources for torch (an index for one CUDA version) are not wanted.
.venv/bin/uv pip install --no-sources --python "$VENV/bin/python" -c "$scratch/constraints.txt" \
    --override "$scratch/overrides.txt" --reinstall-package lerobot \
    "$requirement" hypothesis pytest pytest-timeout pytest-xdist
.venv/bin/uv pip install --python "$VENV/bin/python" --no-deps -e .

"$VENV/bin/python" - <<'PY'
from importlib.metadata import version

print(f"try_lerobot: LeRobot {version('lerobot')}, transformers {version('transformers')}, torch {version('torch')}")
PY
echo "try_lerobot: this package at $(git rev-parse --short HEAD), LeRobot at $name"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=disabled MUJOCO_GL=${MUJOCO_GL:-egl}
export PATH="$PWD/$VENV/bin:$PATH"
if [ $# = 0 ]; then
    set -- -n auto --maxprocesses 4 --dist loadfile "${TESTS[@]}"
fi
"$VENV/bin/python" -m pytest "$@"
