#!/usr/bin/env bash
# The same without waiting: the next chunk is decided while the arm moves, and begins with what is committed.
source "$(dirname "$0")/common.sh"

lerobot-rollout "${ROBOT[@]}" --policy.path="$POLICY" --policy.device="$DEVICE" --task="$TASK" \
  --strategy.type=base --inference.type=rtc --fps="$FPS" --duration="$EPISODE_S" \
  --play_sounds=false "$@" </dev/null
