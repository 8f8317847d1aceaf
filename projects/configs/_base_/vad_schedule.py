"""Training schedule of VAD: AdamW, warm-up, cosine, 8 GPUs x 1 sample."""

max_epochs = 12

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
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
        T_max=max_epochs,
        eta_min_ratio=1e-3,
    ),
]
# Scales the learning rate to the real batch where --auto-scale-lr asks.
auto_scale_lr = dict(enable=False, base_batch_size=8)
