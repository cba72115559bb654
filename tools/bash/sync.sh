#!/usr/bin/env bash
# Copy files to the same place on the other hosts of the job: tools/bash/sync.sh FILE...
set -euo pipefail
. "$(dirname "$0")/hosts.sh"
for path in "$@"; do
    path=$(realpath "$path")
    pdcp "${on_hosts[@]}" -x "$(hostname)" -p "$path" "$path"
done
