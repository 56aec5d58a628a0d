# The options of real arms, for the numbered scripts: edit, then  export SO100_OPTIONS=examples/so100/hardware.sh
# Ports: lerobot-find-port. Cameras: lerobot-find-cameras. Calibrate each arm once with lerobot-calibrate, with the same
# id as here.
ROBOT=(
  --robot.type=so100_follower
  --robot.port=/dev/ttyACM0
  --robot.id=follower
  --robot.cameras='{top: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}'
)
TELEOP=(
  --teleop.type=so100_leader
  --teleop.port=/dev/ttyACM1
  --teleop.id=leader
)

RUN=${RUN:-outputs/so100/real}
TASK=${TASK:-put the red cube into the bowl}
EPISODES=${EPISODES:-50}
EPISODE_S=${EPISODE_S:-20}
RESET_S=${RESET_S:-10}
CONFIG=${CONFIG:-configs/so100_lora.yaml}   # Qwen2.5-VL-3B with LoRA, one 24 GB GPU
CHUNK=${CHUNK:-15}                          # at 30 frames a second; vla0 latency says what your GPU sustains
STEPS=${STEPS:-10000}
SAVE=${SAVE:-1000}                          # steps between checkpoints: 3_train.sh goes on from the last one
DEVICE=${DEVICE:-cuda}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}  # the backbone is downloaded once
