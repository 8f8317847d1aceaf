"""VAD-Tiny with every part, but few and narrow ones, and frames for it."""

import math

import numpy as np
import torch
from golden import ROOT
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData

BASE_CONFIG = ROOT / 'projects' / 'configs' / '_base_' / 'vad_model_tiny.py'
HEIGHT, WIDTH, CLASSES = 64, 96, 10


def small_vad():
    """VAD-Tiny with every part, but few and narrow ones."""
    config = build_config()
    model = MODELS.build(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    # lanes on both sides of the probability 0.5, so that motion reads some
    torch.nn.init.normal_(model.pts_bbox_head.map_cls_branches[-1][-1].weight)
    return model.eval()


def build_config():
    init_default_scope('mmdet3d')
    config = Config.fromfile(BASE_CONFIG).model
    config.img_backbone.depth = 18
    config.img_neck.update(in_channels=[512], out_channels=64)
    head = config.pts_bbox_head
    head.update(
        embed_dims=64,
        feedforward_channels=32,
        bev_h=20,
        bev_w=20,
        num_query=30,
        num_map_vectors=12,
    )
    head.transformer.update(embed_dims=64, rotate_center=(10, 10))
    for name in ('encoder', 'decoder', 'map_decoder'):
        head.transformer[name].update(num_layers=2, feedforward_channels=32)
    return config


def frame(index: int = 0, scene: str = 'a', **extra) -> Det3DDataSample:
    """Six cameras around the vehicle, which drives 2 m per frame."""
    cameras = []
    for camera in range(6):
        yaw = camera * math.pi / 3
        forward = [math.sin(yaw), math.cos(yaw), 0]
        right = [math.cos(yaw), -math.sin(yaw), 0]
        pose = np.eye(4)
        pose[:3, :3] = [right, [0, 0, -1], forward]
        lens = np.eye(4)
        lens[:2, :3] = [[50, 0, WIDTH / 2], [0, 50, HEIGHT / 2]]
        cameras.append(lens @ pose)
    can_bus = np.zeros(18)
    can_bus[:2] = 100 + 2 * index, 50
    can_bus[16:] = 0.1 * index, math.degrees(0.1 * index)
    meta = dict(
        lidar2img=np.stack(cameras),
        can_bus=can_bus,
        img_shape=[(HEIGHT, WIDTH, 3)] * 6,
        scene_token=scene,
    )
    return Det3DDataSample(metainfo={**meta, **extra})


def images(seed: int = 0, batch: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 6, 3, HEIGHT, WIDTH)
    return dict(img=torch.randn(shape, generator=generator))


def training_sample() -> Det3DDataSample:
    sample = frame(1, history=[frame(0).metainfo])
    sample.can_bus[:3] = 2, 0, 0
    boxes = torch.tensor(
        [[3, 5, -1, 4, 2, 1.5, 0.3, 1, 0], [-6, 9, -1, 1, 1, 2, 1, 0, 0]]
    )
    attr = torch.rand(2, 34)
    attr[:, 12:18] = 1
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.tensor([0, 8]),
        attr_labels=attr,
    )
    line = torch.stack((torch.full((20,), 2.0), torch.linspace(-9, 9, 20)), 1)
    shifts = torch.full((1, 19, 20, 2), -10000.0)
    shifts[0, 0], shifts[0, 1] = line, line.flip(0)
    sample.gt_map = InstanceData(
        labels=torch.tensor([2]),
        bboxes=torch.tensor([[2.0, -9, 2, 9]]),
        pts=line[None],
        shift_pts=shifts,
    )
    sample.gt_ego = BaseDataElement(
        fut_trajs=torch.rand(6, 2),
        fut_masks=torch.ones(6),
        fut_cmd=torch.tensor([0.0, 0.0, 1.0]),
    )
    return sample
