"""VAD-Base, second stage: perception, motion and planning, 12 epochs.

Jiang et al., VAD: Vectorized Scene Representation for Efficient Autonomous
Driving, ICCV 2023. The published checkpoint ``VAD_base.pth`` is this
stage's. Published on nuScenes val, at 1 / 2 / 3 s: L2 0.41 / 0.70 / 1.05 m,
collisions 0.07 / 0.17 / 0.41 %.

    python tools/test.py projects/configs/VAD/VAD_base_stage_2.py \\
        ckpts/VAD_base.pth

Training starts from the first stage's weights:

    tools/dist_train.sh projects/configs/VAD/VAD_base_stage_2.py 8 \\
        --cfg-options load_from=work_dirs/VAD_base_stage_1/epoch_48.pth
"""

_base_ = [
    '../_base_/vad_model_base.py',
    '../_base_/vad_schedule.py',
    '../_base_/vad_runtime.py',
    '../_base_/vad_nuscenes_base.py',
]
