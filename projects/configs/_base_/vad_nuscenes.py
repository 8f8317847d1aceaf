"""Training and test data of VAD-Tiny: nuScenes, 640x360 pictures.

The folder of nuScenes is named by a variable of the environment, the info
files lie in it (tools/create_data.py makes them):

    MMPRUNE_NUSCENES=/data/nuscenes      (default data/nuscenes/)

MMPRUNE_INFOS names another info file to test on, absolute or below that
folder. 1600x900 pictures become 640x360 and are padded to 640x384.
"""

data_root = '{{$MMPRUNE_NUSCENES:data/nuscenes/}}'
train_ann_file = 'vad_nuscenes_infos_temporal_train.pkl'
ann_file = '{{$MMPRUNE_INFOS:vad_nuscenes_infos_temporal_val.pkl}}'

pc_range = [-15.0, -30.0, -2.0, 15.0, 30.0, 2.0]
# What the released weights were trained on. With the other one they detect
# almost nothing.
bgr = dict(to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
# What torchvision's ResNet has seen; see VAD_tiny_stage_2_rgb.py.
rgb = dict(
    to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
)

# Transform -> its arguments, in order.
sample_steps = dict(
    LoadMultiViewImageFromFiles=dict(num_views=6, to_float32=True),
    PhotoMetricDistortionMultiViewImage=dict(),
    CustomObjectRangeFilter=dict(point_cloud_range=pc_range),
    CustomObjectNameFilter=dict(),
    NormalizeMultiviewImage=bgr,
    RandomScaleImageMultiViewImage=dict(scales=[0.4]),
    PadMultiViewImage=dict(size_divisor=32),
    PackVADInputs=dict(),
)
train_pipeline = [
    dict(options, type=name) for name, options in sample_steps.items()
]
test_pipeline = [
    step for step in train_pipeline if 'Distortion' not in step['type']
]

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='NuScenesVADDataset',
        data_root=data_root,
        ann_file=train_ann_file,
        pipeline=train_pipeline,
        pc_range=pc_range,
        queue_length=3,
        use_valid_flag=True,
    ),
)
# One sample at a time, whole scenes in order: the model remembers the frame
# before.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='SceneSampler'),
    dataset=dict(
        type='NuScenesVADDataset',
        data_root=data_root,
        ann_file=ann_file,
        pipeline=test_pipeline,
        pc_range=pc_range,
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='VADMetric', num_workers=2)
val_evaluator = test_evaluator
test_cfg = dict(type='TestLoop')
val_cfg = dict(type='ValLoop')
