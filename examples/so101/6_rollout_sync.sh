#!/usr/bin/env bash
# Let the policy drive: it decides, the arm carries the whole chunk out, it decides again. SEED puts the cube elsewhere.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
exec bash "$(dirname "$0")/../so100/4_rollout_sync.sh" "$@"
