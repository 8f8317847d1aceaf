"""VAD-Base, all losses from the start, 60 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The published checkpoints are the second stage's, not
this one's: it starts from torchvision's ResNet and reads pictures as that has.

    tools/dist_train.sh projects/configs/VAD/VAD_base_e2e.py 8
    python tools/test.py projects/configs/VAD/VAD_base_e2e.py \\
        work_dirs/VAD_base_e2e/epoch_60.pth
"""

_base_ = './VAD_base_stage_2_rgb.py'

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

# It needs no weights to start with.
custom_hooks = []

max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = max_epochs
