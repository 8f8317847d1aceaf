"""Experiment 1 at a size for a CPU: a small ViT, few images, few rounds.

    python tools/train.py projects/configs/vit/vit_tiny_cifar10_refill_70p.py

For folders with some thousand images, as 5,000 for training and 1,000 to
test: all training images train, the test images are evaluated in each round.
4 layers of width 96 with 6 heads of 16 and 384 neurons: 24 heads and 1,536
neurons, of which 7 and 461 stay after 5 rounds. The same config with
`train_cfg.rounds=2` prunes in one shot, with `train_cfg.rounds=1` it trains
dense for one round.
"""

_base_ = ['../_base_/vit_runtime.py', '../_base_/vit_cifar.py']

model = dict(
    model='vit_tiny_patch16_224',
    embed_dim=96,
    depth=4,
    num_heads=6,
    class_token=False,
    global_pool='avg',
)
train_cfg = dict(
    type='mmprune.IterativePruningLoop',
    rounds=5,
    epochs=12,
    pruner=dict(
        type='mmprune.StructuredPruner',
        sparsity=dict(head=0.7, neuron=0.7),
        # The sum over the rows that write a unit; large layers count more.
        importance=dict(
            type='mmprune.Magnitude', reduce='sum', sides='producers'
        ),
        normalize=None,
    ),
    val_interval=4,
)
# A ViT without pretraining hardly moves under SGD in so few steps.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05)
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        begin=0,
        end=2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        begin=2,
        end=12,
        T_max=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_dataloader = dict(
    batch_size=64, num_workers=0, dataset=dict(split='trainval')
)
val_dataloader = dict(num_workers=0, dataset=dict(split='test'))
test_dataloader = dict(num_workers=0)
