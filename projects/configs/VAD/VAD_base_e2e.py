"""VAD-Base, all losses from the start, 60 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The published checkpoints are the second stage's, not
this one's.

    python tools/test.py projects/configs/VAD/VAD_base_e2e.py \\
        work_dirs/VAD_base_e2e/epoch_60.pth
"""

_base_ = './VAD_base_stage_2.py'

model = dict(
    # read by init_weights() before a training, not when the model is built
    img_backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')
    ),
    pts_bbox_head=dict(
        loss=dict(
            loss_cls=2.0,
            loss_bbox=0.25,
            loss_map_cls=2.0,
            loss_map_pts=1.0,
            cls_cost=2.0,
            bbox_cost=0.25,
            map_cls_cost=2.0,
            map_pts_cost=1.0,
        ),
    ),
)

schedule = dict(
    train_cfg=dict(max_epochs=60, val_interval=60),
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
            T_max=60,
            eta_min_ratio=1e-3,
        ),
    ],
)
