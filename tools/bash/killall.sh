#!/usr/bin/env bash
# End this user's training processes on every host of the job.
set -euo pipefail
. "$(dirname "$0")/hosts.sh"
# The brackets keep pkill from finding the shell that runs it.
pdsh "${on_hosts[@]}" 'pkill -u $(id -u) -f "[t]rain\.py" || true'
