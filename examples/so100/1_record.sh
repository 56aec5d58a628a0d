#!/usr/bin/env bash
# Record demonstrations: the leader moves, the follower follows, the camera looks on.
source "$(dirname "$0")/common.sh"
new_folder "$RUN/dataset"

# Without a keyboard timers end the episodes: </dev/null makes that so everywhere. With one (arrow keys), leave it out.
lerobot-record "${ROBOT[@]}" "${TELEOP[@]}" \
  --dataset.repo_id=local/$NAME --dataset.root="$RUN/dataset" --dataset.no_stamp=true \
  --dataset.single_task="$TASK" --dataset.fps="$FPS" --dataset.num_episodes="$EPISODES" \
  --dataset.episode_time_s="$EPISODE_S" --dataset.reset_time_s="$RESET_S" \
  --dataset.push_to_hub=false --play_sounds=false "$@" </dev/null
