#!/usr/bin/env bash
# Send a recorded episode's actions again, from its own start: EPISODE of the demonstrations.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
export EPISODE=${EPISODE:-0}
recording=${RUN:-outputs/so101/lift}/dataset/recording.json
if [ -f "$recording" ]; then # of the scripted expert: the simulation puts the cube where it was
  SEED=$("${PYTHON:-python}" -c 'import json, sys; print(json.load(open(sys.argv[1]))["episodes"][int(sys.argv[2])][1])' \
    "$recording" "$EPISODE")
  export SEED
fi
exec bash "$(dirname "$0")/../so100/7_replay.sh" "$@"
