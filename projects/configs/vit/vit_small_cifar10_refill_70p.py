"""Experiment 1 of the guide: ViT-Small, CIFAR-10, Refill, 70% in 16 rounds.

    python tools/train.py projects/configs/vit/vit_small_cifar10_refill_70p.py

Set MMPRUNE_CIFAR10 to the folder of the images, and `model.pretrained.source`
to a file of timm's vit_small_patch16_224 (or to 'timm', which may fetch it).
72 heads and 18,432 neurons, of which 22 and 5,530 stay; 16 rounds of 60
epochs.
"""

_base_ = ['../_base_/vit_runtime.py', '../_base_/vit_cifar.py']

model = dict(pretrained=dict(source='init_model/vit_small_patch16_224.pth'))

train_cfg = dict(
    type='mmprune.IterativePruningLoop',
    rounds=16,
    epochs=60,
    pruner=dict(
        type='mmprune.StructuredPruner',
        sparsity=dict(head=0.7, neuron=0.7),
        # The sum over the rows that write a unit; large layers count more.
        importance=dict(
            type='mmprune.Magnitude', reduce='sum', sides='producers'
        ),
        normalize=None,
    ),
    require_pretrained=True,
    init='init_model/vit_small_cifar10_pretrained_init.pth.tar',
    val_interval=5,
)
param_scheduler = [
    # 20 epochs of warm-up, and two steps that lie beyond 60 epochs: so the
    # public script trains.
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=20,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(type='MultiStepLR', milestones=[91, 136], gamma=0.1, by_epoch=True),
]
