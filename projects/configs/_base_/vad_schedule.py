"""Training schedule of VAD: AdamW, warm-up, cosine, 8 GPUs x 1 sample.

Under a key of its own, not at the top level: mmengine's Runner refuses
``train_cfg``, ``optim_wrapper`` and ``param_scheduler`` in a config that has
no ``train_dataloader``, and these configs bring the test data only. A training
config lifts the three.
"""

schedule = dict(
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=12),
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.01),
        paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
        clip_grad=dict(max_norm=35, norm_type=2),
    ),
    param_scheduler=[
        dict(
            type='LinearLR',
            start_factor=1.0 / 3,
            by_epoch=False,
            begin=0,
            end=500,
        ),
        dict(
            type='CosineAnnealingLR',
            by_epoch=True,
            begin=0,
            T_max=12,
            eta_min_ratio=1e-3,
        ),
    ],
)
