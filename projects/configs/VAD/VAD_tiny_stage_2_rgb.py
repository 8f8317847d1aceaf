"""VAD-Tiny, second stage after a first one that was trained here.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The first stage begins with torchvision's ResNet, so it
sees what that has seen: RGB with ImageNet's mean and deviation. The released
weights need another normalisation, that of ``VAD_tiny_stage_2.py``.

    tools/dist_train.sh projects/configs/VAD/VAD_tiny_stage_2_rgb.py 8 \\
        --load-from work_dirs/VAD_tiny_stage_1/epoch_48.pth
"""

_base_ = './VAD_tiny_stage_2.py'

train_pipeline, test_pipeline = (
    [dict(step, **_base_.rgb) if 'mean' in step else step for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = test_dataloader
