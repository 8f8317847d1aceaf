"""Model of VAD-Base (Jiang et al., ICCV 2023): four levels, 200x200."""

_base_ = './vad_model_tiny.py'

num_layers = 6

model = dict(
    img_backbone=dict(out_indices=(1, 2, 3)),
    img_neck=dict(in_channels=[512, 1024, 2048], num_outs=4),
    pts_bbox_head=dict(
        bev_h=200,
        bev_w=200,
        transformer=dict(
            encoder=dict(num_layers=num_layers, num_levels=4),
            decoder=dict(num_layers=num_layers),
            map_decoder=dict(num_layers=num_layers),
        ),
    ),
)
