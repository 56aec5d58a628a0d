#!/usr/bin/env bash
# Look before training: ranges, resolution, tokens, and the pictures as the model will see them.
source "$(dirname "$0")/common.sh"

vla0 inspect-dataset --dataset.repo_id=local/$NAME --dataset.root="$RUN/dataset" "$@"
