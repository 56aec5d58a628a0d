#!/usr/bin/env bash
# Look before training: ranges, resolution, tokens, and the pictures as the model will see them.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
exec bash "$(dirname "$0")/../so100/2_inspect.sh" "$@"
