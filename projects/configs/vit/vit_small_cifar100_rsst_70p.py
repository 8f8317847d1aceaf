"""Experiment 4 of the guide: as experiment 3, with RSST.

python tools/train.py projects/configs/vit/vit_small_cifar100_rsst_70p.py
"""

_base_ = ['vit_small_cifar100_refill_70p.py']

train_cfg = dict(
    struct='rsst',
    reg_granularity_prune=1.0,
    RST_schedule='exp_custom_exponents',
    exponents=4,
)
