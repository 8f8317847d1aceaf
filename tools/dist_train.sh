#!/usr/bin/env bash
# Trains on several devices of one machine, or of several:
#   tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Environment: PORT, NNODES, NODE_RANK, MASTER_ADDR, PYTHON.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "error: usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
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
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
