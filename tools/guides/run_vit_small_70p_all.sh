#!/usr/bin/env bash
# The four experiments of the ViT guide at once, Refill and RSST on CIFAR-10
# (first GPU) and CIFAR-100 (second GPU):
#   tools/guides/run_vit_small_70p_all.sh [further flags of all four]
# It is started where data/ and init_model/ are. Each run has its log in
# logs_vit_small_70p/ and its checkpoints in checkpoint/vit_small_70p/; the
# script ends when all have.
# Environment: GPUS ("0 1"), DATA (data), PYTHON.
set -euo pipefail

GUIDES=$(cd "$(dirname "$0")" && pwd)
PYTHON=$("$GUIDES/../python.sh")
read -r FIRST SECOND _ <<<"${GPUS:-0 1} ${GPUS:-0 1}"
DATA=${DATA:-data}
STAMP=$(date +%m%d_%H%M)
LOGS=logs_vit_small_70p
mkdir -p "$LOGS"

SAME=(--arch vit_small --vit_pretrained --vit_structured
    --vit_prune_target both --criteria magnitude --rate 0.7
    --mlp_prune_ratio 0.7 --pruning_times 16 --epochs 60 --batch_size 128
    --sorting_mode global --lr 0.01)
REFILL=(--struct refill --fillback_rate 0.0)
RSST=(--struct rsst --reg_granularity_prune 1.0
    --RST_schedule exp_custom_exponents --exponents 4)

declare -A NAMES
# Ends the runs with the script, however it ends.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

start() { # GPU DATASET METHOD [flags...]
    local name=$2_$3
    CUDA_VISIBLE_DEVICES=$1 "$PYTHON" -u "$GUIDES/main_imp_fillback.py" \
        "${SAME[@]}" --dataset "$2" --data "$DATA/$2" \
        --init "init_model/vit_small_$2_pretrained_init.pth.tar" \
        --save_dir "checkpoint/vit_small_70p/$name" \
        --exp_name "${name}_70p_$STAMP" "${@:4}" \
        >>"$LOGS/$name.log" 2>&1 &
    NAMES[$!]=$name
    echo "$name on GPU $1, process $!, log $LOGS/$name.log"
}

start "$FIRST" cifar10 refill "${REFILL[@]}" "$@"
start "$FIRST" cifar10 rsst "${RSST[@]}" "$@"
start "$SECOND" cifar100 refill "${REFILL[@]}" "$@"
start "$SECOND" cifar100 rsst "${RSST[@]}" "$@"

failed=0
for process in "${!NAMES[@]}"; do
    if ! wait "$process"; then
        name=${NAMES[$process]}
        echo "error: $name failed: $(tail -n 1 "$LOGS/$name.log")" >&2
        failed=2
    fi
done
exit "$failed"
