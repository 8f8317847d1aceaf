"""Whole blocks of a language model go.

Those of which the loss on the calibration data changes least, to first order.

    python tools/prune_and_retrain.py projects/configs/llm/blocks.py MODEL \
        --mode structured --pruning-ratio 0.25 --importance taylor
"""

_base_ = ['../_base_/causal_lm.py']

pruning = dict(adapters=['mmprune.block_groups'])
