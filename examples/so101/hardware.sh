# The options of real arms, for the numbered scripts: edit, then  export SO101_OPTIONS=examples/so101/hardware.sh
# Ports: lerobot-find-port. Cameras: lerobot-find-cameras. Calibrate each arm once with lerobot-calibrate, with the same
# id as here. The cameras have the names that the policy was trained with.
ROBOT=(
  --robot.type=so101_follower
  --robot.port=/dev/ttyACM0
  --robot.id=follower
  --robot.cameras='{wrist: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}, side: {type: opencv, index_or_path: 2, width: 640, height: 480, fps: 30}}'
)
TELEOP=(
  --teleop.type=so101_leader
  --teleop.port=/dev/ttyACM1
  --teleop.id=leader
)

RUN=${RUN:-outputs/so101/real}
NAME=${NAME:-so101}
TASK=${TASK:-Pick up the red cube.}
source examples/so100/training.sh           # episodes, chunk, steps, device: each can be set beforehand
