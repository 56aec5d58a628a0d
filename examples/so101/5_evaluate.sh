#!/usr/bin/env bash
# How often the policy lifts the cube, from starts that no demonstration had. On real arms somebody has to count.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
source "$(dirname "$0")/../so100/common.sh"
new_folder "$RUN/eval"

lerobot-eval --policy.path="$POLICY" --policy.device="$DEVICE" --seed=1000 \
  --env.discover_packages_path=lerobot_policy_vla0.tools.so101 --env.type=so101_pick_lift \
  --env.image_size="$SIZE" --env.fps="$FPS" --output_dir="$RUN/eval" \
  --eval.n_episodes="${EVAL_EPISODES:-50}" --eval.batch_size="${EVAL_BATCH:-10}" \
  --eval.use_async_envs=false "$@"
