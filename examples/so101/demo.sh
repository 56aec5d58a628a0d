#!/usr/bin/env bash
# Record a scripted expert that lifts a cube with a simulated SO-101, train a tiny VLA-0 on it, evaluate it beside
# baselines, write a report. CPU only, offline.
#
#   make so101-demo                                or: PATH=.venv/bin:$PATH bash examples/so101/demo.sh
#
# Stop it at any time (Ctrl-C) and run it again: finished stages are skipped, recording and training go on where
# they were. Nothing that exists is overwritten; to start again choose another DEMO_DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."

task=pick_lift
dir=${DEMO_DIR:-outputs/so101/demo}
episodes=${DEMO_EPISODES:-600}            # demonstrations
noise=${DEMO_NOISE:-1.5}                  # disturbance of the expert's motion, degrees
size=${DEMO_IMAGE_SIZE:-128}              # edge of both pictures, in demonstrations and evaluation
steps=${DEMO_STEPS:-4800}                 # training steps
eval_episodes=${DEMO_EVAL_EPISODES:-50}   # starts to evaluate on
seed=${DEMO_SEED:-1000}                   # the first of them; demonstrations have seeds from 100000
eval_batch=${DEMO_EVAL_BATCH:-10}         # simulations at once
config=configs/so101_tiny.yaml
here=examples/so101

settings="episodes=$episodes noise=$noise size=$size steps=$steps eval_episodes=$eval_episodes seed=$seed"
n_stages=5
source examples/demo/stages.sh

record() {
  OMP_NUM_THREADS=1 "$python" "$here/record.py" --episodes "$episodes" --noise "$noise" --image-size "$size" \
    --root "$dir/dataset" --repo-id "local/$task"
}

train() {
  train_policy
}

evaluate() {
  # In one process: a picture takes less than the processes would to start.
  lerobot-eval \
    --policy.path="$dir/train/checkpoints/last/pretrained_model" --policy.device=cpu --policy.dtype=float32 \
    --env.discover_packages_path=lerobot_policy_vla0.tools.so101 --env.type=so101_pick_lift \
    --env.image_size="$size" --seed="$seed" --output_dir="$dir/eval_seed$seed" \
    --eval.n_episodes="$eval_episodes" --eval.batch_size="$eval_batch" --eval.use_async_envs=false
}

baselines() {
  OMP_NUM_THREADS=1 "$python" "$here/baselines.py" --root "$dir/dataset" --seed "$seed" --episodes "$eval_episodes" \
    --output "$dir/baselines.json"
}

stage record
stage train
stage evaluate
stage baselines
report 30
