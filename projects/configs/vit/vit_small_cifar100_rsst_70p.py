"""Experiment 4 of the guide: as experiment 3, with RSST.

python tools/train.py projects/configs/vit/vit_small_cifar100_rsst_70p.py
"""

_base_ = ['vit_small_cifar100_refill_70p.py']

train_cfg = dict(
    decay=dict(strength=1.0, shape='exponential', exponent=4),
)
