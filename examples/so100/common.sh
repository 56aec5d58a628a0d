# Sourced by the numbered scripts: where the robot is, what is trained, where results go. Every variable can be set
# beforehand; the robot's own options come from one file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

options=${SO100_OPTIONS:-outputs/so100/options.sh}
if [ ! -f "$options" ]; then
  echo "error: $options is missing. It holds the options of the arms." >&2
  echo "  without hardware: start  vla0 emulate-so100 --options $options  in another terminal and leave it running" >&2
  echo "  with hardware:    edit examples/so100/hardware.sh and set SO100_OPTIONS=examples/so100/hardware.sh" >&2
  exit 2
fi
ROBOT=() TELEOP=()
source "$options"
ARM=()                                  # the robot without its cameras
for option in "${ROBOT[@]}"; do
  [[ $option == --robot.cameras=* ]] || ARM+=("$option")
done

RUN=${RUN:-outputs/so100/wave}          # everything below is written here
NAME=${NAME:-so100}                     # of the data sets: local/$NAME and local/rollout_$NAME
TASK=${TASK:-wave}                      # the instruction the policy is given, in training and rollout
FPS=${FPS:-30}
EPISODES=${EPISODES:-2}
EPISODE_S=${EPISODE_S:-6}
RESET_S=${RESET_S:-1}                   # seconds to put things back between episodes
CONFIG=${CONFIG:-configs/debug.yaml}    # a policy that trains in a minute on a CPU, and learns next to nothing
CHUNK=${CHUNK:-15}                      # half a second: long enough for real-time chunking on a CPU
STEPS=${STEPS:-40}
SAVE=${SAVE:-$STEPS}                    # steps between checkpoints
DEVICE=${DEVICE:-cpu}
POLICY=${POLICY:-$RUN/train/checkpoints/last/pretrained_model}

# Nothing is downloaded or uploaded unless asked for.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} SVT_LOG=${SVT_LOG:-1}

new_folder() { # DIRECTORY: refuse to write over what is there
  if [ -e "$1" ]; then
    echo "error: $1 exists and is left alone: set RUN to another folder, or move it away" >&2
    exit 2
  fi
}
