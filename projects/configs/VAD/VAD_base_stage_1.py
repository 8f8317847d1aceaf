"""VAD-Base, first stage: perception and motion, 48 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The second stage starts from the weights of this one, with
``VAD_base_stage_2_rgb.py``. But for the plan it learns what e2e learns.

    tools/dist_train.sh projects/configs/VAD/VAD_base_stage_1.py 8
    python tools/test.py projects/configs/VAD/VAD_base_stage_1.py \\
        work_dirs/VAD_base_stage_1/epoch_48.pth
"""

_base_ = './VAD_base_e2e.py'

model = dict(
    pts_bbox_head=dict(
        loss=dict(
            loss_plan_reg=0.0,
            loss_plan_bound=0.0,
            loss_plan_col=0.0,
            loss_plan_dir=0.0,
        ),
    ),
)

max_epochs = 48
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = max_epochs
