#!/usr/bin/env bash
# What the policy would have done on recorded episodes, beside what was done.
export SO100_OPTIONS=${SO101_OPTIONS:-examples/so101/simulation.sh}
source "$(dirname "$0")/../so100/common.sh"

vla0 open-loop --policy.path="$POLICY" --policy.device="$DEVICE" --dataset.repo_id="local/$NAME" \
  --dataset.root="$RUN/dataset" "$@"
