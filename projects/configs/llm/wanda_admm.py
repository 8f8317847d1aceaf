"""Wanda chooses the weights; those that stay make up for them (ADMM).

MODEL is the folder; its tokenizer and length are taken from there. For 2 of 4
neighbours give --pattern 2:4 in the place of the ratio.

    python tools/prune_and_retrain.py \
        projects/configs/llm/wanda_admm.py MODEL \
        --mode unstructured --pruning-ratio 0.5
"""

_base_ = ['../_base_/causal_lm.py']

pruning = dict(
    weights=dict(
        type='mmprune.LayerwisePruner',
        reconstruct=dict(type='mmprune.ADMM'),
    )
)
