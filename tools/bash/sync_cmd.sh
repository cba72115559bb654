#!/usr/bin/env bash
# Run a command on every host of the job: tools/bash/sync_cmd.sh 'nvidia-smi -L'
set -euo pipefail
. "$(dirname "$0")/hosts.sh"
exec pdsh -S "${on_hosts[@]}" "$*"
