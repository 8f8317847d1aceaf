"""VAD-nano on the mini world: every part of VAD, small enough for a CPU.

Six 192x80 pictures without their sky, a BEV of 40x20 cells of 1.5 m, widths
of 64. The planner reads speed, acceleration and steering of the ego
(``ego_lcf_feat_idx``). In training the BEV also learns what is on each of
its cells (``HintedVAD``): few frames are enough then to know a car anywhere.

    python tools/make_mini_world.py data/mini_world
    python tools/create_data.py nuscenes --root-path data/mini_world \\
        --version v1.0-mini
    python tools/train.py projects/configs/VAD/VAD_nano_mini_world.py

The folder is found through the environment variable MMPRUNE_MINI_WORLD
(default data/mini_world). `make demo` runs all of it.
"""

_base_ = ['../_base_/vad_model_tiny.py', '../_base_/vad_runtime.py']

data_root = '{{$MMPRUNE_MINI_WORLD:data/mini_world/}}'
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

# Without the world at hand one frame of it is drawn to prune on.
pruning = dict(picture_size=(400, 225))

width, ffn_channels, num_layers, num_heads = 64, 128, 2, 4
decoder = dict(
    num_layers=num_layers,
    feedforward_channels=ffn_channels,
    num_heads=num_heads,
    dropout=0.0,
)
model = dict(
    type='HintedVAD',
    use_grid_mask=False,
    img_backbone=dict(
        # Half of a ResNet-18 with half its channels: at stride 8 a car 20 m
        # away still has three columns. Trained from scratch, so that nothing
        # is frozen.
        depth=18,
        base_channels=32,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(1,),
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
    ),
    img_neck=dict(in_channels=[64], out_channels=width),
    pts_bbox_head=dict(
        bev_h=40,
        bev_w=20,
        embed_dims=width,
        feedforward_channels=ffn_channels,
        num_query=60,
        num_map_vectors=24,
        dropout=0.0,
        ego_lcf_feat_idx=(0, 1, 2, 3, 4, 7, 8),
        transformer=dict(
            embed_dims=width,
            rotate_center=(10, 20),
            encoder=dict(
                num_layers=num_layers,
                # The lowest of the four points of a pillar is on the ground,
                # 1.84 m under the LiDAR, where the lines are.
                pc_range=[-15.0, -30.0, -2.34, 15.0, 30.0, 1.66],
                feedforward_channels=ffn_channels,
                num_heads=num_heads,
                num_points=4,
                dropout=0.0,
            ),
            decoder=decoder,
            # Each layer looks where the last one put the line.
            map_decoder=dict(decoder, num_layers=4),
        ),
        bbox_coder=dict(max_num=60),
        map_coder=dict(max_num=24),
        # Lines as in the first stage, else as in the second.
        loss=dict(
            loss_map_cls=2.0,
            loss_map_pts=1.0,
            map_cls_cost=2.0,
            map_pts_cost=1.0,
        ),
    ),
)

# The same for training and test: the world is drawn in one light.
pipeline = [
    dict(type='LoadMultiViewImageFromFiles', to_float32=True, num_views=6),
    dict(
        type='CustomObjectRangeFilter',
        point_cloud_range=_base_.point_cloud_range,
    ),
    dict(type='CustomObjectNameFilter', classes=class_names),
    dict(
        type='NormalizeMultiviewImage',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # 400x225 becomes 192x108, of which the lower 80 rows are not sky.
    dict(type='RandomScaleImageMultiViewImage', scales=[0.48]),
    dict(type='CropTopMultiViewImage', rows=28),
    dict(type='PadMultiViewImage', size_divisor=16),
    dict(type='PackVADInputs'),
]
dataset = dict(
    type='NuScenesVADDataset', data_root=data_root, pipeline=pipeline
)
train_dataloader = dict(
    # Twice as many steps teach more than pairs of frames do.
    batch_size=1,
    # One process does all: a CPU has no time to spare, and a resumed run
    # repeats every random number.
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='vad_nuscenes_infos_temporal_train.pkl',
        queue_length=2,
        use_valid_flag=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='SceneSampler'),
    dataset=dict(
        **dataset,
        ann_file='vad_nuscenes_infos_temporal_val.pkl',
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='VADMetric')
test_evaluator = val_evaluator

max_epochs = 2
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    # One pass over all parameters, of which there are many small ones.
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0 / 3,
        by_epoch=False,
        begin=0,
        end=100,
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        T_max=max_epochs,
        eta_min_ratio=1e-2,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=1)
randomness = dict(seed=0)
