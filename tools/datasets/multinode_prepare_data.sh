#!/usr/bin/env bash
# Tokenise many files on many nodes: every node takes a contiguous share of a list of files.
#
#   multinode_prepare_data.sh LIST [options of preprocess_data.py but --input]
#
# LIST: text file with one input path a line. Rank and number of nodes come from torchrun's, Slurm's or Open MPI's
# variables. The rank is appended to --output-prefix (default: rank); the last rank takes what does not divide.
# Afterwards tools/datasets/merge_datasets.py makes one data set of the shares.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
    echo "usage: $0 LIST [options of preprocess_data.py]; LIST names one input file a line" >&2
    exit 1
fi
list=$1
shift

rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
size=${WORLD_SIZE:-${SLURM_NTASKS:-${OMPI_COMM_WORLD_SIZE:-1}}}

prefix=rank
options=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --output-prefix=*) prefix=${1#*=} ;;
        --output-prefix)
            prefix=${2:?--output-prefix needs a value}
            shift
            ;;
        *) options+=("$1") ;;
    esac
    shift
done

mapfile -t files < <(grep -v '^[[:space:]]*$' "$list")
share=$((${#files[@]} / size))
first=$((rank * share))
count=$share
if [[ $rank -eq $((size - 1)) ]]; then
    count=$((${#files[@]} - first))
fi
if [[ $count -eq 0 ]]; then
    echo "rank $rank of $size: no file to do (${#files[@]} in $list)"
    exit 0
fi
joined=$(IFS=,; echo "${files[*]:first:count}")
echo "rank $rank of $size: files $((first + 1)) to $((first + count)) of ${#files[@]}"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python}" "$here/preprocess_data.py" --input "$joined" --output-prefix "$prefix$rank" "${options[@]}"
