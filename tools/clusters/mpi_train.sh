#!/usr/bin/env bash
# Train with an mpirun of your own, where a batch system has one that knows its hosts (PBS, Grid Engine, LSF):
#   HOSTS=node1,node2 SLOTS=8 tools/clusters/mpi_train.sh -d configs 20B.yml cluster.yml
# The configuration has deepspeed_mpi: true. Within an allocation HOSTS may be read from the batch system:
#   HOSTS=$(sort -u "$PBS_NODEFILE" | paste -sd,)
#   HOSTS=$(cut -d' ' -f1 "$PE_HOSTFILE" | paste -sd,)
# Further: SCRIPT (train.py), MPIRUN (mpirun), PYTHON (python), MASTER_ADDR (the first host), MASTER_PORT (29500), and
# EXPORT, names of variables that all processes get.
set -euo pipefail

: "${HOSTS:?names of the hosts, joined by commas}" "${SLOTS:?processes on each host}"
mpirun=${MPIRUN:-mpirun}
export MASTER_ADDR=${MASTER_ADDR:-${HOSTS%%,*}} MASTER_PORT=${MASTER_PORT:-29500}
names=(MASTER_ADDR MASTER_PORT ${EXPORT:-})
IFS=, read -ra hosts <<<"$HOSTS"

if [[ $("$mpirun" --version) == *'(Open'* ]]; then # (Open MPI) or (OpenRTE)
    options=(--host "$(printf "%s:$SLOTS," "${hosts[@]}" | sed 's/,$//')")
    for name in "${names[@]}"; do options+=(-x "$name"); done
else # MPICH, Intel MPI and MVAPICH take Hydra's options
    options=(-hosts "$HOSTS" -ppn "$SLOTS" -genvlist "$(IFS=,; echo "${names[*]}")")
fi
exec "$mpirun" -n $((${#hosts[@]} * SLOTS)) "${options[@]}" "${PYTHON:-python}" -u "${SCRIPT:-train.py}" "$@"
