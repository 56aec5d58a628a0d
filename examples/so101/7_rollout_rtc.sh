#!/usr/bin/env bash
# The same without waiting: the next chunk is decided while the arm moves.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
exec bash "$(dirname "$0")/../so100/5_rollout_rtc.sh" "$@"
