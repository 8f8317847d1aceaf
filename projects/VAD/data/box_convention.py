"""Boxes between the network's old convention and mmdet3d 1.x."""

import math

import torch
from torch import Tensor


def to_new(boxes: Tensor) -> Tensor:
    """Converts boxes of mmdet3d 0.17 into those of mmdet3d 1.x.

    Old is ``(x, y, z, w, l, h, yaw_old, ...)``, new is ``(x, y, z, l, w, h,
    yaw_new, ...)`` with ``yaw_new = -yaw_old - pi/2``. Position and velocity
    are the same in both.

    Args:
        boxes: ``[..., 7]`` or more columns, metres and radians.

    Returns:
        Tensor of the same shape, yaw in [-pi, pi).

    Raises:
        ValueError: If there are fewer than seven columns.
    """
    if boxes.shape[-1] < 7:
        raise ValueError(
            f'boxes need at least 7 columns (x, y, z, three sizes, yaw), got '
            f'{boxes.shape[-1]}; pass the whole box tensor.'
        )
    yaw = -boxes[..., 6] - math.pi / 2
    yaw = torch.remainder(yaw + math.pi, 2 * math.pi) - math.pi
    return torch.cat(
        (
            boxes[..., :3],
            boxes[..., 4:5],
            boxes[..., 3:4],
            boxes[..., 5:6],
            yaw.unsqueeze(-1),
            boxes[..., 7:],
        ),
        dim=-1,
    )


def to_old(boxes: Tensor) -> Tensor:
    """Converts boxes of mmdet3d 1.x into those of mmdet3d 0.17.

    The relation is its own inverse, so this is ``to_new`` under the name of
    its purpose.
    """
    return to_new(boxes)
