"""VAD-Base, second stage: perception, motion and planning, 12 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The published checkpoint ``VAD_base.pth`` is this
stage's. Published on nuScenes val, at 1 / 2 / 3 s: L2 0.41 / 0.70 / 1.05 m,
collisions 0.07 / 0.17 / 0.41 %.

    python tools/test.py projects/configs/VAD/VAD_base_stage_2.py \\
        ckpts/VAD_base.pth

Pictures are normalised as the released weights need it. To train this stage
after a first one of your own take ``VAD_base_stage_2_rgb.py``.
"""

_base_ = [
    '../_base_/vad_model_base.py',
    '../_base_/vad_schedule.py',
    '../_base_/vad_runtime.py',
    '../_base_/vad_nuscenes_base.py',
]

custom_hooks = [
    dict(
        type='mmprune.NeededWeightsHook',
        hint='--load-from work_dirs/VAD_base_stage_1/epoch_48.pth',
    )
]
