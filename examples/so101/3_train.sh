#!/usr/bin/env bash
# Train. Again: goes on where it stopped.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
exec bash "$(dirname "$0")/../so100/3_train.sh" "$@"
