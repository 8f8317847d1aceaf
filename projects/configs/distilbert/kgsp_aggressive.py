"""KGSP for size: 40% of the heads, 35% of the neurons.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        python tools/train.py projects/configs/distilbert/kgsp_aggressive.py

29 heads and 6,451 neurons fewer: 23.3% of the parameters, 36.9% of the MACs at
128 tokens.
"""

_base_ = ['kgsp_full.py']

custom_hooks = [
    dict(type='mmprune.SeedHook'),
    dict(type='mmprune.PlanHook'),
    dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(
            type='mmprune.CubicSchedule',
            begin=0.05,
            end=0.5,
            final=dict(head=0.40, neuron=0.35),
        ),
        pruner=dict(
            type='mmprune.StructuredPruner',
            importance=dict(
                type='mmprune.Mixed', lambda_mag=0.5, lambda_grad=0.5
            ),
            normalize=None,
        ),
        interval=40,
        window=50,
    ),
    dict(
        type='mmprune.EarlyStopHook',
        monitor='Acc@1',
        rule='greater',
        patience=5,
    ),
    dict(type='mmprune.ExportHook', best=True),
]
