#!/usr/bin/env bash
# Trains on a Slurm cluster:
#   tools/slurm_train.sh PARTITION JOB CONFIG [flags of tools/train.py]
# Environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS, PORT,
# PYTHON.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "error: usage: $0 PARTITION JOB CONFIG [flags]" >&2
    exit 2
fi
PARTITION=$1
JOB=$2
CONFIG=$3
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
TOOLS=$(cd "$(dirname "$0")" && pwd)
PYTHON=$("$TOOLS/python.sh")
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# The port is checked by rank 0, on the machine where it runs.
export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}

# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB" \
    --gres=gpu:"$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "$PYTHON" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
