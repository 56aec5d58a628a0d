#!/usr/bin/env bash
# Train. CONFIG decides what: a toy on a CPU, or the 3B model with LoRA on a GPU. Again: goes on where it stopped.
source "$(dirname "$0")/common.sh"

if [ -f "$POLICY/train_config.json" ]; then
  lerobot-train --config_path="$POLICY/train_config.json" --resume=true "$@"
else
  new_folder "$RUN/train"
  lerobot-train --config_path="$CONFIG" --dataset.repo_id=local/$NAME --dataset.root="$RUN/dataset" \
    --output_dir="$RUN/train" --steps="$STEPS" --save_freq="$SAVE" --policy.push_to_hub=false \
    --policy.chunk_size="$CHUNK" --policy.n_action_steps="$CHUNK" --policy.ensemble_n_chunks=1 "$@"
fi
