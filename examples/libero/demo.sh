#!/usr/bin/env bash
# Record a scripted expert on a LIBERO task, train a tiny VLA-0 on it, evaluate it on the benchmark's 50 fixed states
# beside baselines, write a report. CPU only, offline.
#
#   make libero-demo                               or: PATH=.venv/bin:$PATH bash examples/libero/demo.sh
#   DEMO_TASK=put_the_bowl_on_the_plate make libero-demo
#
# Stop it at any time (Ctrl-C) and run it again: finished stages are skipped, recording and training go on where
# they were. Nothing that exists is overwritten; to start again choose another DEMO_DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."

task=${DEMO_TASK:-put_the_cream_cheese_in_the_bowl}
dir=${DEMO_DIR:-outputs/libero/$task}
episodes=${DEMO_EPISODES:-60}             # demonstrations, on random placements
noise=${DEMO_NOISE:-0.2}                  # disturbance of the expert's motion
size=${DEMO_IMAGE_SIZE:-128}              # edge of both cameras' pictures, in demonstrations and evaluation
steps=${DEMO_STEPS:-1900}                 # training steps
eval_episodes=${DEMO_EVAL_EPISODES:-50}   # the benchmark's fixed states, from the first one on
seed=${DEMO_SEED:-1000}                   # of the first: it places the stove and the cabinet
eval_batch=${DEMO_EVAL_BATCH:-2}          # environments at once: each is a process that renders
workers=${DEMO_WORKERS:-2}                # rendering processes while recording
config=configs/libero_tiny.yaml
here=examples/libero

settings="task=$task episodes=$episodes noise=$noise size=$size steps=$steps eval_episodes=$eval_episodes seed=$seed"
n_stages=5
source examples/demo/stages.sh

# LIBERO asks questions and downloads unless it is set up; this does nothing when it is.
vla0 libero-setup > "$dir/libero-setup.log" || { cat "$dir/libero-setup.log" >&2; exit 2; }
found=$("$python" "$here/tasks.py" "$task")
read -r suite task_id <<< "${found##*$'\n'}" # LIBERO prints lines of its own before

record() {
  OMP_NUM_THREADS=1 "$python" "$here/2_record.py" --task "$task" --episodes "$episodes" --noise "$noise" \
    --image-size "$size" --workers "$workers" --root "$dir/dataset" --repo-id "local/$task"
}

train() {
  train_policy
}

evaluate() {
  # One thread for the policy: it is tiny, and its threads would wait in busy loops while the environments render.
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} lerobot-eval \
    --policy.path="$dir/train/checkpoints/last/pretrained_model" --policy.device=cpu --policy.dtype=float32 \
    --env.type=libero --env.task="$suite" --env.task_ids="[$task_id]" --seed="$seed" \
    --env.observation_height="$size" --env.observation_width="$size" --output_dir="$dir/eval_seed$seed" \
    --eval.n_episodes="$eval_episodes" --eval.batch_size="$eval_batch" --eval.use_async_envs=true
}

baselines() {
  OMP_NUM_THREADS=1 "$python" "$here/4_baselines.py" --task "$task" --root "$dir/dataset" --seed "$seed" \
    --episodes "$eval_episodes" --workers "$workers" --output "$dir/baselines.json"
}

stage record
stage train
stage evaluate
stage baselines
report 20
