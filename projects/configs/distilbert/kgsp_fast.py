"""KGSP in the fast mode of the guide: to develop and to choose settings.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        python tools/train.py projects/configs/distilbert/kgsp_fast.py

As kgsp_full.py, with 4 epochs for 8, batches of 64 for 32, 30% of the
sentences and half of those that validate, 64 tokens for 128, a pruning every
100 steps for 40, 20% of all units in one ranking for two targets, a window of
20 for 50 that the L2 norm does not read, bfloat16, patience 2 for 5. With the
20,205 sentences 4 epochs are 1,264 steps.
"""

_base_ = ['kgsp_full.py']

train_cfg = dict(max_epochs=4)
train_dataloader = dict(
    batch_size=64, dataset=dict(fraction=0.3, max_length=64)
)
val_dataloader = dict(dataset=dict(fraction=0.5, max_length=64))
optim_wrapper = dict(type='mmprune.AutocastOptimWrapper', dtype='bfloat16')
custom_hooks = [
    dict(type='mmprune.SeedHook'),
    dict(type='mmprune.PlanHook'),
    dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(
            type='mmprune.CubicSchedule', begin=0.05, end=0.5, final=0.20
        ),
        pruner=dict(
            type='mmprune.StructuredPruner',
            importance=dict(
                type='mmprune.Mixed', lambda_mag=1.0, lambda_grad=0.0
            ),
            normalize=None,
            together=True,
        ),
        interval=100,
        window=20,
    ),
    dict(
        type='mmprune.EarlyStopHook',
        monitor='Acc@1',
        rule='greater',
        min_delta=0.2,
        patience=2,
    ),
    dict(type='mmprune.ExportHook', best=True),
]
