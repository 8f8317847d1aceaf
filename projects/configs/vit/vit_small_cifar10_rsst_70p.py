"""Experiment 2 of the guide: as experiment 1, with RSST.

    python tools/train.py projects/configs/vit/vit_small_cifar10_rsst_70p.py

The penalty's mean over a round is 0.158, so 60 epochs of 352 steps at lr
0.01 shrink what goes by exp(-33), with momentum 0.9 by exp(-330).
"""

_base_ = ['vit_small_cifar10_refill_70p.py']

train_cfg = dict(
    decay=dict(strength=1.0, shape='exponential', exponent=4),
)
