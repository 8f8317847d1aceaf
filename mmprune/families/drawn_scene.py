"""A drawn scene for the detectors and segmenters of mmdet3d."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from .drawn_picture import found_values, picture, steps_of

# Where things stand in a space of width, depth and height 1: the centre of
# the bottom and the size of each, along x, y and z.
_THINGS = (
    ((0.4, 0.45, 0.35), (0.06, 0.03, 0.15)),
    ((0.6, 0.55, 0.35), (0.05, 0.04, 0.15)),
    ((0.5, 0.35, 0.35), (0.06, 0.04, 0.15)),
)
# A room, where the config says nothing about how far points reach.
_ROOM = (-3.0, -3.0, 0.0, 3.0, 3.0, 2.5)
_POINTS = 4096


def drawn_scene(
    cfg: Config, height: int, width: int, training: bool = False
) -> dict[str, Any]:
    """Returns a batch of one scene, as a dataloader of the config gives it.

    Three boxes stand on a floor. The batch holds what the config's pipelines
    pack: points, a picture, boxes in space and in the picture, the class of
    each point.

    Args:
        cfg: A config of mmdet3d.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        training: Whether it is for the loss: points may be wider then.
    """
    from mmdet3d.structures import Det3DDataSample, PointData

    packed = _packed(cfg)
    area = torch.tensor(_area(cfg))
    classes = max(found_values(cfg.model, 'num_classes', int), default=3)
    labels = torch.arange(len(_THINGS)) % classes
    kind = _coordinates(cfg)
    centers, sizes = _placed(area, kind)
    focal = float(width)
    camera = [
        [focal, 0, width / 2, 0],
        [0, focal, height / 2, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    boxes, mode = _boxes(kind, centers, sizes, _code_size(cfg))
    sample = Det3DDataSample(
        metainfo=dict(
            sample_idx=0,
            box_type_3d=type(boxes),
            box_mode_3d=mode,
            cam2img=camera,
            lidar2img=_projection(camera, (1, 2, 0)),
            depth2img=_projection(camera, (0, 2, 1)),
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0),
            flip=False,
            affine_aug=False,
            trans_mat=_quarter(),
        )
    )
    sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=labels)
    inputs: dict[str, list] = {}
    if 'points' in packed:
        size = _point_size(cfg)
        tested = cfg.model.get('test_cfg') or {}
        if not training and tested.get('use_normalized_coord'):
            size -= 3  # the model itself adds where in the room a point is
        count = min(_POINTS, tested.get('num_points') or _POINTS)
        points, owner = _points(area, boxes, count, size)
        inputs['points'] = [points]
        # A detector knows no class of the floor, and its points vote for
        # nothing; a segmentor has one for every point.
        floor = classes - ('decode_head' in cfg.model)
        of_point = torch.cat([labels, torch.tensor([floor])])[owner]
        sample.gt_pts_seg = PointData(
            pts_semantic_mask=of_point, pts_instance_mask=owner
        )
    if 'img' in packed:
        flat = _flat_boxes(height, width)
        inputs['img'] = [picture(height, width)]
        sample.gt_instances = InstanceData(bboxes=flat, labels=labels)
        sample.gt_instances_3d.centers_2d = (flat[:, :2] + flat[:, 2:]) / 2
        sample.gt_instances_3d.depths = centers[:, 2].abs() + 1
        sample.gt_instances_3d.attr_labels = labels % 2
    return dict(inputs=inputs, data_samples=[sample])


def _packed(cfg: Config) -> set[str]:
    """What the pipelines hand to the model."""
    steps = steps_of(cfg.get('test_dataloader') or {})
    keys = [step['keys'] for step in steps if 'keys' in step]
    return {key for part in keys for key in part}


def _area(cfg: Config) -> tuple[float, ...]:
    """Lowest and highest x, y and z of points."""
    names = ('point_cloud_range', 'pc_range')
    for name in names:
        for found in found_values(cfg.model, name, list | tuple):
            if len(found) == 6:
                return tuple(found)
    own = cfg.get('point_cloud_range')
    if own and len(own) == 6:
        return tuple(own)
    block = (cfg.model.get('test_cfg') or {}).get('block_size')
    if block:  # a room is tested block by block: it is as wide as one
        return (-block / 2, -block / 2, 0.0, block / 2, block / 2, _ROOM[5])
    return _ROOM


def _coordinates(cfg: Config) -> str:
    """LIDAR, DEPTH or CAMERA."""
    if _packed(cfg) == {'img'} and not cfg.model.get('coord_type'):
        return 'CAMERA'
    kinds = [cfg.model.get('coord_type')]
    for loader in ('test_dataloader', 'train_dataloader'):
        steps = steps_of(cfg.get(loader) or {})
        kinds += [step.get('coord_type') for step in steps]
    return next((kind for kind in kinds if kind), 'LIDAR')


def _code_size(cfg: Config) -> int:
    """Numbers of a box: 7, or 9 with its velocity."""
    names = ('bbox_code_size', 'code_size')
    coded = [n for name in names for n in found_values(cfg.model, name, int)]
    if not coded:  # a box is all that a group of branches says
        sizes = found_values(cfg.model, 'group_reg_dims', list | tuple)
        coded = [7, *(sum(dims) for dims in sizes)]
    coded = max(coded)
    return 9 if coded >= 9 else 7


def _placed(area: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    low, high = area.view(2, 3)
    centers, sizes = torch.tensor(_THINGS).unbind(1)
    centers, sizes = low + centers * (high - low), sizes * (high - low)
    if kind == 'CAMERA':  # x to the right, y down, z ahead
        centers = torch.tensor([[-2.0, 1, 12], [2, 1, 16], [0, 1, 9]])
        sizes = torch.tensor([[3.9, 1.6, 1.6]]).repeat(len(centers), 1)
    return centers, sizes


def _boxes(kind: str, centers: Tensor, sizes: Tensor, code: int) -> tuple:
    from mmdet3d import structures

    yaw = torch.linspace(0.2, 0.8, len(centers))[:, None]
    if kind == 'DEPTH':
        yaw = yaw * 0  # boxes of rooms are upright
    speed = torch.full((len(centers), code - 7), 0.5)
    numbers = torch.cat([centers, sizes, yaw, speed], 1)
    names = dict(LIDAR='LiDAR', DEPTH='Depth', CAMERA='Camera')
    make = getattr(structures, f'{names[kind]}Instance3DBoxes')
    mode = {'LIDAR': 0, 'CAMERA': 1, 'DEPTH': 2}[kind]
    boxes = make(numbers, box_dim=code, with_yaw=kind != 'DEPTH')
    return boxes, structures.Box3DMode(mode)


def _point_size(cfg: Config) -> int:
    """Numbers of a point, as the first layer of the model reads them."""
    parts = ('voxel_encoder', 'pts_voxel_encoder', 'backbone', 'pts_backbone')
    for part in parts:
        node = cfg.model.get(part) or {}
        for size in found_values(node, 'in_channels', int):
            return size
        for size in found_values(node, 'num_features', int):
            return size
    return 4


def _points(
    area: Tensor, boxes: Any, count: int, size: int
) -> tuple[Tensor, Tensor]:
    """Returns ``[count, size]`` points and the thing of each; floor last."""
    generator = torch.Generator().manual_seed(0)
    low, high = area.view(2, 3)
    middle = (low + high) / 2
    half = (high - low).clamp(max=40.0) / 2 * 0.9
    spread = torch.rand(count, size, generator=generator)
    points = spread.clone()
    points[:, :3] = middle + (2 * spread[:, :3] - 1) * half
    owner = torch.arange(count) % (2 * len(boxes))
    owner = owner.clamp(max=len(boxes))
    for i, corners in enumerate(boxes.corners):
        near, far = corners.amin(0), corners.amax(0)
        mine = owner == i
        points[mine, :3] = near + spread[mine, :3] * (far - near)
    points[:, 2] = points[:, 2].clamp(low[2] + 0.01, high[2] - 0.01)
    return points, owner


def _flat_boxes(height: int, width: int) -> Tensor:
    flat = torch.tensor(
        [[0.1, 0.3, 0.4, 0.7], [0.5, 0.35, 0.7, 0.6], [0.4, 0.4, 0.6, 0.9]]
    )
    return flat * torch.tensor([width, height, width, height])


def _projection(camera: list, axes: tuple[int, int, int]) -> list:
    """Space to picture where the camera looks along the last of the axes."""
    turn = torch.zeros(4, 4)
    for row, axis in enumerate(axes):
        turn[row, axis] = 1 if row == 2 else -1
    turn[3, 3] = 1
    return (torch.tensor(camera) @ turn).tolist()


def _quarter() -> list:
    """Picture to a feature map of a quarter of its size."""
    return [[0.25, 0, 0], [0, 0.25, 0], [0, 0, 1]]
