#!/usr/bin/env bash
# Tests a checkpoint on several devices:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# Environment: PORT, NNODES, NODE_RANK, MASTER_ADDR, PYTHON.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "error: usage: $0 CONFIG CHECKPOINT GPUS [flags]" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
PORT=${PORT:-29500}
NODE_RANK=${NODE_RANK:-0}
TOOLS=$(cd "$(dirname "$0")" && pwd)
PYTHON=$("$TOOLS/python.sh")
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

if [ "$NODE_RANK" = 0 ]; then
    "$PYTHON" -m mmprune.run.port "$PORT"
fi
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="$NODE_RANK" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --nproc_per_node="$GPUS" \
    --master_port="$PORT" \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
