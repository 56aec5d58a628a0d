#!/usr/bin/env bash
# Record demonstrations of the scripted expert, or of you:
#   LEADER=/dev/ttyACM1 bash examples/so101/1_record.sh     a real SO-101 leader moves the simulated arm
#   KEYBOARD=1 EPISODE_S=30 bash examples/so101/1_record.sh     keys in this terminal do
# Real arms have a leader (hardware.sh).
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
source "$(dirname "$0")/../so100/common.sh"

if [ ${#TELEOP[@]} -gt 0 ]; then
  exec bash examples/so100/1_record.sh "$@"
fi
"${PYTHON:-python}" examples/so101/record.py --episodes "$EPISODES" --image-size "$SIZE" --noise "${NOISE:-1.5}" \
  --root "$RUN/dataset" --repo-id "local/$NAME" "$@"
