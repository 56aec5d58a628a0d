# The options of the simulated arm, for the numbered scripts here and in examples/so100.
SIZE=${SIZE:-128}    # edge of both pictures, pixels
FPS=${FPS:-30}
SEED=${SEED:-0}      # where the cube lies
RUN=${RUN:-outputs/so101/lift}
NAME=${NAME:-so101}
TASK=${TASK:-Pick up the red cube.}
EPISODES=${EPISODES:-600}
EPISODE_S=${EPISODE_S:-5}
CONFIG=${CONFIG:-configs/so101_tiny.yaml}
CHUNK=${CHUNK:-4}
STEPS=${STEPS:-4800}
SAVE=${SAVE:-1200}

camera() { echo "{type: sim, source: $1_camera, width: $SIZE, height: $SIZE, fps: $FPS}"; }
ROBOT=(
  --robot.discover_packages_path=lerobot_policy_vla0.tools.so101
  --robot.type=sim_so_follower
  --robot.id=simulated
  --robot.calibration_dir=examples/so101/calibration
  --robot.env_id=vla0/SO101PickLift-v0
  --robot.env_kwargs="{image_size: $SIZE, fps: $FPS, log: $RUN/steps.jsonl}"
  --robot.seed="$SEED"
  --robot.cameras="{wrist: $(camera wrist), side: $(camera overhead)}"
)
# Who shows how, in place of the scripted expert: a real SO-101 leader, or keys in this terminal.
if [ -n "${LEADER:-}" ]; then
  TELEOP=(--teleop.type=so101_leader --teleop.port="$LEADER" --teleop.id="${LEADER_ID:-leader}")
elif [ -n "${KEYBOARD:-}" ]; then
  TELEOP=(--teleop.discover_packages_path=lerobot_policy_vla0.tools.so101 --teleop.type=keyboard_hand --teleop.id=keyboard)
fi
