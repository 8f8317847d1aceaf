"""KGSP for accuracy: 20% of the heads, 15% of the neurons.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        python tools/train.py projects/configs/distilbert/kgsp_conservative.py

14 heads and 2,765 neurons fewer: 10.5% of the parameters, 16.6% of the MACs at
128 tokens. The size of weights counts for more, and the gradient looks back
twice as far as in kgsp_full.py.
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
            final=dict(head=0.20, neuron=0.15),
        ),
        pruner=dict(
            type='mmprune.StructuredPruner',
            importance=dict(
                type='mmprune.Mixed', lambda_mag=0.6, lambda_grad=0.4
            ),
            normalize=None,
        ),
        interval=40,
        window=100,
    ),
    dict(
        type='mmprune.EarlyStopHook',
        monitor='Acc@1',
        rule='greater',
        patience=5,
    ),
    dict(type='mmprune.ExportHook', best=True),
]
