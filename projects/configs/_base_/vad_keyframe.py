"""Test data of VAD-Tiny: nuScenes keyframes of an mmdet3d 1.x info file.

The pictures and the info file are found through two variables of the
environment, the defaults being those of mmdet3d:

    MMPRUNE_NUSCENES=/data/nuscenes MMPRUNE_INFOS=nuscenes_infos_val.pkl

MMPRUNE_INFOS is absolute or below MMPRUNE_NUSCENES. 1600x900 pictures become
640x360 and are padded to 640x384.
"""

data_root = '{{$MMPRUNE_NUSCENES:data/nuscenes/}}'
ann_file = '{{$MMPRUNE_INFOS:nuscenes_infos_val.pkl}}'

class_names = [
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
]

test_pipeline = [
    dict(type='LoadMultiViewImageFromFiles', to_float32=True, num_views=6),
    dict(
        type='CustomObjectRangeFilter',
        point_cloud_range=[-15.0, -30.0, -2.0, 15.0, 30.0, 2.0],
    ),
    dict(type='CustomObjectNameFilter', classes=class_names),
    # Not the numbers that the official configs print: the released weights
    # were trained on BGR with the mean alone. With RGB and a deviation of 58
    # they detect almost nothing.
    dict(
        type='NormalizeMultiviewImage',
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        to_rgb=False,
    ),
    dict(type='RandomScaleImageMultiViewImage', scales=[0.4]),
    dict(type='PadMultiViewImage', size_divisor=32),
    dict(type='PackVADInputs'),
]

# One sample at a time and in order: the model remembers the frame before.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='NuScenesKeyframeDataset',
        data_root=data_root,
        ann_file=ann_file,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='VADMetric')
val_evaluator = test_evaluator
test_cfg = dict(type='TestLoop')
val_cfg = dict(type='ValLoop')
