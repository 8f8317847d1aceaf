"""KGSP and MSP on generated reviews: two minutes on a core, no download.

    python tools/train.py projects/configs/distilbert/dense_tiny.py
    python tools/train.py projects/configs/distilbert/kgsp_tiny.py

5 of 18 heads and 230 of 1,152 neurons go. Measured on one core, seed 0: see
docs/prune_distilbert.md.
"""

_base_ = [
    '../_base_/distilbert_runtime.py',
    '../_base_/distilbert_tiny.py',
]

dense = '{{$MMPRUNE_DENSE:work_dirs/dense_tiny/epoch_4.pth}}'
model = dict(
    _delete_=True,
    type='mmprune.DistilledModel',
    student={{_base_.model}},
    teacher={{_base_.model}},
    teacher_checkpoint=dense,
    task_weight=0.3,
    terms=[dict(source='classifier', loss='kl', weight=0.5, temperature=4.0)]
    + [
        dict(
            source=f'distilbert.transformer.layer.{layer}',
            loss='mse',
            weight=0.2 / 3,
            mask='attention_mask',
        )
        for layer in range(3)
    ],
)
load_from = dense

train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(checkpoint=dict(save_best='Acc@1', rule='greater'))
custom_hooks = [
    dict(type='mmprune.SeedHook'),
    dict(type='mmprune.PlanHook'),
    dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(
            type='mmprune.CubicSchedule',
            begin=0.05,
            end=0.5,
            final=dict(head=0.30, neuron=0.20),
        ),
        pruner=dict(
            type='mmprune.StructuredPruner',
            importance=dict(
                type='mmprune.Mixed', lambda_mag=0.5, lambda_grad=0.5
            ),
            # Mixed has brought the units of all layers to one scale.
            normalize=None,
        ),
        interval=20,
        window=20,
    ),
    dict(
        type='mmprune.EarlyStopHook',
        monitor='Acc@1',
        rule='greater',
        patience=5,
    ),
    dict(type='mmprune.ExportHook', best=True),
]
