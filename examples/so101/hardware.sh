# The options of real arms, for the numbered scripts: edit, then  export SO101_OPTIONS=examples/so101/hardware.sh
# Ports: lerobot-find-port. Cameras: lerobot-find-cameras. Calibrate each arm once with lerobot-calibrate, with the same
# id as here. The cameras have the names that the policy was trained with.
ROBOT=(
  --robot.type=so101_follower
  --robot.port=/dev/ttyACM0
  --robot.id=follower
  --robot.cameras='{wrist: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}, overhead: {type: opencv, index_or_path: 2, width: 640, height: 480, fps: 30}}'
)
TELEOP=(
  --teleop.type=so101_leader
  --teleop.port=/dev/ttyACM1
  --teleop.id=leader
)

RUN=${RUN:-outputs/so101/real}
NAME=${NAME:-so101}
TASK=${TASK:-Pick up the red cube.}
EPISODES=${EPISODES:-50}
EPISODE_S=${EPISODE_S:-20}
RESET_S=${RESET_S:-10}
CONFIG=${CONFIG:-configs/so100_lora.yaml}   # Qwen2.5-VL-3B with LoRA, one 24 GB GPU
CHUNK=${CHUNK:-15}                          # at 30 frames a second; vla0 latency says what your GPU sustains
STEPS=${STEPS:-10000}
SAVE=${SAVE:-1000}                          # steps between checkpoints: 3_train.sh goes on from the last one
DEVICE=${DEVICE:-cuda}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}  # the backbone is downloaded once
