#!/usr/bin/env bash
# Record scripted experts, train a tiny VLA-0 on them, evaluate it beside baselines, write a report. CPU only, offline.
#
#   make demo                                      or: PATH=.venv/bin:$PATH bash examples/metaworld/demo.sh
#   DEMO_TASK=reach-v3 DEMO_EPISODES=150 make demo
#
# Stop it at any time (Ctrl-C) and run it again: finished stages are skipped, recording and training go on where
# they were. Nothing that exists is overwritten; to start again choose another DEMO_DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."

task=${DEMO_TASK:-button-press-topdown-v3}
dir=${DEMO_DIR:-outputs/demo/$task}
episodes=${DEMO_EPISODES:-64}             # demonstrations
noise=${DEMO_NOISE:-0}                    # disturbance of the expert's motion; 0.5 makes most experts fail
steps=${DEMO_STEPS:-2200}                 # training steps
eval_episodes=${DEMO_EVAL_EPISODES:-20}   # start positions to evaluate on
seed=${DEMO_SEED:-200000}                 # the first of them; demonstrations have seeds from 100000
eval_batch=${DEMO_EVAL_BATCH:-4}          # environments at once: each is a process that renders
config=configs/metaworld_tiny.yaml
here=examples/metaworld

# What the policy has to see, as fractions (left, top, right, bottom) of the frame, measured over 30 start positions.
# The configuration's own box is for its own task; an unmeasured task gets the whole frame.
case $task in
  button-press-topdown-v3) crop='[0.3, 0.125, 0.875, 0.7]' ;;
  reach-v3)                crop='[0.43, 0.29, 0.85, 0.71]' ;;
  push-v3 | dial-turn-v3)  crop='[0.43, 0.34, 0.83, 0.74]' ;;
  *)                       crop=null ;;
esac

settings="task=$task episodes=$episodes noise=$noise steps=$steps eval_episodes=$eval_episodes seed=$seed"
n_stages=5
source examples/demo/stages.sh

record() {
  "$python" "$here/record.py" --task "$task" --episodes "$episodes" --noise "$noise" --root "$dir/dataset" \
    --repo-id "local/$task"
}

train() {
  train_policy --policy.crop_box="$crop"
}

baselines() {
  "$python" "$here/baselines.py" --task "$task" --root "$dir/dataset" --seeds "$seed" --episodes "$eval_episodes" \
    --output "$dir/baselines.json"
}

evaluate() {
  # One thread for the policy: it is tiny, and its threads would wait in busy loops while the environments render.
  # On a loaded machine one decision took 0.3 s of CPU with one thread and 20 s with two. float32 decodes faster than
  # bfloat16 on a CPU at this size.
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} lerobot-eval \
    --policy.path="$dir/train/checkpoints/last/pretrained_model" --policy.device=cpu --policy.dtype=float32 \
    --env.type=metaworld --env.task="$task" --seed="$seed" --output_dir="$dir/eval_seed$seed" \
    --eval.n_episodes="$eval_episodes" --eval.batch_size="$eval_batch" --eval.use_async_envs=true
}

stage record
stage train
stage baselines
stage evaluate
report 80
