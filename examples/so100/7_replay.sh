#!/usr/bin/env bash
# Send a recorded episode's actions again: EPISODE of the demonstrations, or with DATA=rollout of the policy's own.
source "$(dirname "$0")/common.sh"
case ${DATA:-dataset} in
  dataset) name=local/$NAME ;;
  rollout) name=local/rollout_$NAME ;;
  *) echo "error: DATA is dataset or rollout, not $DATA" >&2; exit 2 ;;
esac

# Without cameras: nothing looks, and lerobot-replay 0.6.1 does not know every kind of camera (zmq, for one).
lerobot-replay "${ARM[@]}" --dataset.repo_id="$name" --dataset.root="$RUN/${DATA:-dataset}" \
  --dataset.episode="${EPISODE:-0}" --dataset.fps="$FPS" --play_sounds=false "$@" </dev/null
