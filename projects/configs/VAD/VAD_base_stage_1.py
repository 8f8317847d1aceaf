"""VAD-Base, first stage: perception and motion, 48 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The second stage starts from the weights of this one.

    tools/dist_train.sh projects/configs/VAD/VAD_base_stage_1.py 8
    python tools/test.py projects/configs/VAD/VAD_base_stage_1.py \\
        work_dirs/VAD_base_stage_1/epoch_48.pth
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
            loss_plan_reg=0.0,
            loss_plan_bound=0.0,
            loss_plan_col=0.0,
            loss_plan_dir=0.0,
            cls_cost=2.0,
            bbox_cost=0.25,
            map_cls_cost=2.0,
            map_pts_cost=1.0,
        ),
    ),
)

max_epochs = 48
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = max_epochs
