"""Experiment 3 of the guide: as experiment 1, on CIFAR-100.

    python tools/train.py projects/configs/vit/vit_small_cifar100_refill_70p.py

Set MMPRUNE_CIFAR100 to the folder of the images.
"""

_base_ = ['vit_small_cifar10_refill_70p.py']

_kind = dict(kind='cifar100', data_root='{{$MMPRUNE_CIFAR100:data/cifar100}}')
model = dict(num_classes=100)
train_dataloader = dict(dataset=_kind)
val_dataloader = dict(dataset=_kind)
test_dataloader = dict(dataset=_kind)
train_cfg = dict(init='init_model/vit_small_cifar100_pretrained_init.pth.tar')
