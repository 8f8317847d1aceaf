"""Experiment 2 at a size for a CPU.

    python tools/train.py projects/configs/vit/vit_tiny_cifar10_rsst_70p.py

AdamW shrinks what goes by 1 - lr x strength per step. The rate follows a
cosine to zero, so an exponential penalty would come too late. With the linear
one the sum of lr x progress over 12 epochs of 79 steps is 0.17, and strength
60 leaves exp(-10) of the norm.
"""

_base_ = ['vit_tiny_cifar10_refill_70p.py']

train_cfg = dict(decay=dict(strength=60.0, shape='power', exponent=1))
