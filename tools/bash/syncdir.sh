#!/usr/bin/env bash
# Copy folders with all that is in them to the same place on the other hosts of the job: tools/bash/syncdir.sh DIR...
set -euo pipefail
. "$(dirname "$0")/hosts.sh"
for path in "$@"; do
    path=$(realpath "$path")
    pdsh -S "${on_hosts[@]}" -x "$(hostname)" "mkdir -p $(printf %q "$(dirname "$path")")"
    pdcp "${on_hosts[@]}" -x "$(hostname)" -r -p "$path" "$(dirname "$path")"
done
