#!/usr/bin/env bash
# Record what the policy does, episode by episode, as a dataset of its own.
source "$(dirname "$0")/common.sh"
new_folder "$RUN/rollout"

# LeRobot wants names of such datasets to begin with rollout_.
lerobot-rollout "${ROBOT[@]}" --policy.path="$POLICY" --policy.device="$DEVICE" --task="$TASK" \
  --strategy.type=episodic --inference.type=sync --fps="$FPS" \
  --dataset.repo_id=local/rollout_$NAME --dataset.root="$RUN/rollout" --dataset.no_stamp=true \
  --dataset.single_task="$TASK" --dataset.fps="$FPS" --dataset.num_episodes="$EPISODES" \
  --dataset.episode_time_s="$EPISODE_S" --dataset.reset_time_s="$RESET_S" \
  --dataset.push_to_hub=false --play_sounds=false "$@" </dev/null
