#!/usr/bin/env bash
# Record what the policy does as a data set of its own. The simulation is not reset between episodes: one is recorded.
export EPISODES=${EPISODES:-1}
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
exec bash "$(dirname "$0")/../so100/6_rollout_record.sh" "$@"
