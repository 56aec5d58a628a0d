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
source examples/so100/training.sh           # episodes, chunk, steps, device: each can be set beforehand
