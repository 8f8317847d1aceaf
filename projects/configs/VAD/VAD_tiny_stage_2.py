"""VAD-Tiny, second stage: perception, motion and planning, 12 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The published checkpoint ``VAD_tiny.pth`` is this
stage's. Published on nuScenes val, at 1 / 2 / 3 s: L2 0.46 / 0.76 / 1.12 m,
collisions 0.21 / 0.35 / 0.58 %.

    python tools/test.py projects/configs/VAD/VAD_tiny_stage_2.py \\
        ckpts/VAD_tiny.pth

Pictures are normalised as the released weights need it. To train this stage
after a first one of your own take ``VAD_tiny_stage_2_rgb.py``.
"""

_base_ = [
    '../_base_/vad_model_tiny.py',
    '../_base_/vad_schedule.py',
    '../_base_/vad_runtime.py',
    '../_base_/vad_nuscenes.py',
]

custom_hooks = [
    dict(
        type='mmprune.NeededWeightsHook',
        hint='--load-from work_dirs/VAD_tiny_stage_1/epoch_48.pth',
    )
]
