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
# What the released weights were trained on: BGR with the mean alone. With RGB
# and a deviation of 58 they detect almost nothing.
img_norm_cfg = dict(
    mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False
)

load_pictures = dict(
    type='LoadMultiViewImageFromFiles', to_float32=True, num_views=6
)
filter_and_pack = [
    dict(type='CustomObjectRangeFilter', point_cloud_range=pc_range),
    dict(type='CustomObjectNameFilter', classes=class_names),
    dict(type='NormalizeMultiviewImage', **img_norm_cfg),
    dict(type='RandomScaleImageMultiViewImage', scales=[0.4]),
    dict(type='PadMultiViewImage', size_divisor=32),
    dict(type='PackVADInputs'),
]
train_pipeline = [
    load_pictures,
    dict(type='PhotoMetricDistortionMultiViewImage'),
    *filter_and_pack,
]
test_pipeline = [load_pictures, *filter_and_pack]

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
