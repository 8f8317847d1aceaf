"""Model of VAD-Tiny (Jiang et al., ICCV 2023): one feature level, 100x100."""

family = 'vad'
# The one that the head of a report shows.
main_metric = 'VAD/plan_L2_avg_3s'
# Those that a command shows.
summary_metrics = [
    'VAD/plan_L2_avg_3s',
    'VAD/NDS',
    'VAD/bev_center_ap',
    'VAD/map_mAP',
]
# Groups, examples and calibration for tools/prune_and_retrain.py.
pruning = dict(type='mmprune.VADPruning')
default_scope = 'mmdet3d'
custom_imports = dict(imports=['mmprune', 'projects.VAD'])

point_cloud_range = [-15.0, -30.0, -2.0, 15.0, 30.0, 2.0]
# Five metres beyond the region, where a centre may still be.
centre_low, centre_high = [-20.0, -35.0], [20.0, 35.0]
width, ffn_channels = 256, 512
num_layers = 3
dropout = 0.1

# The stem, the first stage and all batch norms stay as they are loaded.
backbone = dict(
    type='mmdet.ResNet',
    depth=50,
    out_indices=(3,),
    norm_cfg=dict(type='BN', requires_grad=False),
    frozen_stages=1,
)
neck = dict(
    type='mmdet.FPN',
    num_outs=1,
    in_channels=[2048],
    out_channels=width,
    # a further level is made from the last output
    add_extra_convs='on_output',
)
decoder = dict(
    num_layers=num_layers,
    feedforward_channels=ffn_channels,
    num_heads=8,
    num_points=4,
    dropout=dropout,
)

model = dict(
    type='VAD',
    data_preprocessor=dict(type='VADDataPreprocessor'),
    use_grid_mask=True,
    img_backbone=backbone,
    img_neck=neck,
    pts_bbox_head=dict(
        type='VADHead',
        pc_range=point_cloud_range,
        bev_h=100,
        bev_w=100,
        embed_dims=width,
        feedforward_channels=ffn_channels,
        num_query=300,
        num_map_vectors=100,
        num_map_points=20,
        num_classes=10,
        num_map_classes=3,
        num_modes=6,
        num_steps=6,
        num_commands=3,
        dropout=dropout,
        map_threshold=0.5,
        lane_distance=0.2,
        transformer=dict(
            type='VADPerceptionTransformer',
            embed_dims=width,
            num_cams=6,
            num_feature_levels=4,
            # for both sizes, as the released weights were trained
            rotate_center=(100, 100),
            encoder=dict(
                num_layers=num_layers,
                pc_range=point_cloud_range,
                num_heights=4,
                feedforward_channels=ffn_channels,
                num_heads=8,
                num_levels=1,
                num_points=8,
                dropout=dropout,
            ),
            decoder=decoder,
            map_decoder=decoder,
        ),
        bbox_coder=dict(
            type='VADBoxCoder',
            post_center_range=[*centre_low, -10.0, *centre_high, 10.0],
            max_num=100,
        ),
        map_coder=dict(
            type='VADMapCoder',
            pc_range=point_cloud_range,
            post_center_range=2 * centre_low + 2 * centre_high,
            max_num=50,
        ),
        # the second stage's weights; the other stages change some
        loss=dict(
            type='VADLoss',
            pc_range=point_cloud_range,
            loss_cls=0.8,
            loss_bbox=0.1,
            loss_iou=0.0,
            loss_traj=0.2,
            loss_traj_cls=0.2,
            loss_map_cls=0.8,
            loss_map_bbox=0.0,
            loss_map_iou=0.0,
            loss_map_pts=0.4,
            loss_map_dir=0.005,
            loss_plan_reg=1.0,
            loss_plan_bound=1.0,
            loss_plan_col=1.0,
            loss_plan_dir=0.5,
            cls_cost=0.8,
            bbox_cost=0.1,
            map_cls_cost=0.8,
            map_pts_cost=0.4,
        ),
    ),
)
