#!/usr/bin/env bash
# Let the policy drive: it decides, the arm carries the whole chunk out, it decides again. The arm waits meanwhile.
source "$(dirname "$0")/common.sh"

lerobot-rollout "${ROBOT[@]}" --policy.path="$POLICY" --policy.device="$DEVICE" --task="$TASK" \
  --strategy.type=base --inference.type=sync --fps="$FPS" --duration="$EPISODE_S" \
  --play_sounds=false "$@" </dev/null
