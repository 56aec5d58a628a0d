# Sourced by the demos: stages that are skipped when done, and a folder that is never mixed with another run.
# The caller has set `dir` (the run's folder), `settings` (a line of all that the result depends on), `n_stages`, `task`,
# `config` and `steps` (of the training).

python=${PYTHON:-python}

# Nothing is downloaded or uploaded, and nothing needs a screen. Variables that are set already win.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} MUJOCO_GL=${MUJOCO_GL:-egl}
export SVT_LOG=${SVT_LOG:-1}   # the video encoder would print a page per episode

mkdir -p "$dir"
if [ -f "$dir/settings.txt" ] && [ "$(cat "$dir/settings.txt")" != "$settings" ]; then
  echo "error: $dir was started with other settings: choose another DEMO_DIR, or repeat these." >&2
  echo "  started with: $(cat "$dir/settings.txt")" >&2
  echo "  asked for:    $settings" >&2
  exit 2
fi
echo "$settings" > "$dir/settings.txt"

# Run a function once, and keep its wall time even if it is interrupted.
running=""
trap '[ -z "$running" ] || "$python" examples/demo/stages.py "$dir/stages.json" add "$running" "$((SECONDS - begin))"' EXIT
number=0
stage() { # NAME, function of the same name
  number=$((number + 1))
  if "$python" examples/demo/stages.py "$dir/stages.json" done "$1"; then
    printf '\n== %d/%d %s: done before\n' "$number" "$n_stages" "$1"
    return
  fi
  printf '\n== %d/%d %s\n' "$number" "$n_stages" "$1"
  running=$1 begin=$SECONDS
  "$1"
  running=""
  "$python" examples/demo/stages.py "$dir/stages.json" finish "$1" "$((SECONDS - begin))"
}

# Train into $dir/train, or go on from its last checkpoint; the log grows in $dir/train.log.
train_policy() { # more arguments of lerobot-train
  local last=$dir/train/checkpoints/last/pretrained_model
  if [ -f "$last/train_config.json" ]; then
    echo "going on from $(readlink -f "$dir/train/checkpoints/last")"
    lerobot-train --config_path="$last/train_config.json" --resume=true 2>&1 | tee -a "$dir/train.log"
    return
  fi
  if [ -d "$dir/train" ]; then # stopped before its first checkpoint
    mv "$dir/train" "$dir/train.stopped.$(date +%s)"
  fi
  # The report plots the logged loss: even the shortest training logs once.
  lerobot-train --config_path="$config" --dataset.root="$dir/dataset" --dataset.repo_id="local/$task" \
    --output_dir="$dir/train" --steps="$steps" --log_freq=$((steps < 50 ? steps : 50)) "$@" 2>&1 | tee "$dir/train.log"
}

report() { # frames that the environment acts on per second
  printf '\n== %d/%d report\n' "$n_stages" "$n_stages"
  "$python" examples/demo/report.py --run "$dir" --hz "$1"
}
