#!/usr/bin/env bash
# The same without waiting: the next chunk is decided while the arm moves, and begins with what is committed.
# Half a chunk before the end, not LeRobot's 30 steps: with shorter chunks it would ask all the time (docs/so100.md).
source "$(dirname "$0")/common.sh"

lerobot-rollout "${ROBOT[@]}" --policy.path="$POLICY" --policy.device="$DEVICE" --task="$TASK" \
  --strategy.type=base --inference.type=rtc --inference.queue_threshold=$((CHUNK / 2)) \
  --fps="$FPS" --duration="$EPISODE_S" \
  --play_sounds=false "$@" </dev/null
