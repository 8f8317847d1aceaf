"""Which points lie in which 3-D boxes, and what they carry."""

import torch
from torch import Tensor


def part_forward(boxes: Tensor, points: Tensor, output: Tensor) -> None:
    """Writes the first box of each point into ``output``, -1 for none.

    Args:
        boxes: ``[b, t, 7]``: x y z (bottom), sizes, yaw about z.
        points: ``[b, m, 3]``.
        output: ``[b, m]`` int; written.
    """
    if boxes.shape[1] == 0:
        output.fill_(-1)
        return
    inside = _inside(boxes, points)
    first = inside.to(torch.uint8).argmax(-1)
    output.copy_(torch.where(inside.any(-1), first, -1))


def all_forward(boxes: Tensor, points: Tensor, output: Tensor) -> None:
    """Writes 1 where a point is in a box into ``output``, ``[b, m, t]``."""
    output.copy_(_inside(boxes, points))


def cpu_forward(boxes: Tensor, points: Tensor, output: Tensor) -> None:
    """Writes the same for one sample into ``output``, ``[t, m]``."""
    output.copy_(_inside(boxes[None], points[None])[0].T)


def pool_forward(
    points: Tensor,
    boxes: Tensor,
    features: Tensor,
    output: Tensor,
    empty: Tensor,
) -> None:
    """Writes the first points of each box, and what they carry.

    Where a box holds fewer than ``output`` has room for, they come again in
    turn. A box that holds none is left as it is.

    Args:
        points: ``[b, m, 3]``.
        boxes: ``[b, t, 7]``, as in :func:`part_forward`.
        features: ``[b, m, c]`` of the points.
        output: ``[b, t, k, 3 + c]``; written.
        empty: ``[b, t]`` int; written, 1 where a box holds no point.
    """
    inside = _inside(boxes, points).transpose(1, 2)
    filled = inside.any(2)
    empty.copy_(~filled)
    batch, box = filled.nonzero(as_tuple=True)
    held = inside[batch, box]
    # Stable: the points of a box come first, and in the order of the scan.
    order = held.byte().argsort(dim=1, descending=True, stable=True)
    room = torch.arange(output.shape[2], device=output.device)
    index = order.gather(1, room % held.sum(1, keepdim=True))
    carried = torch.cat([points, features], 2).to(output.dtype)
    output[batch, box] = carried[batch[:, None], index]


def points_in_boxes_part(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the first box of each point, ``[b, m]`` int, -1 for none.

    mmcv's function of this name, without its question to CUDA.
    """
    _check(points, boxes)
    output = points.new_full(points.shape[:2], -1, dtype=torch.int)
    part_forward(boxes, points, output)
    return output


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns 1 where a point is in a box, ``[b, m, t]`` int.

    mmcv's function of this name, without its question to CUDA.
    """
    _check(points, boxes)
    shape = (*points.shape[:2], boxes.shape[1])
    output = points.new_zeros(shape, dtype=torch.int)
    all_forward(boxes, points, output)
    return output


def _check(points: Tensor, boxes: Tensor) -> None:
    fits = points.dim() == boxes.dim() == 3 and len(points) == len(boxes)
    if not fits or points.shape[2] != 3 or boxes.shape[2] != 7:
        raise ValueError(
            'points [b, m, 3] and boxes [b, t, 7] are needed, found '
            f'{tuple(points.shape)} and {tuple(boxes.shape)}'
        )


def _inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Returns ``[b, m, t]`` bool; faces above and below belong to a box."""
    offset = points[:, :, None] - boxes[:, None, :, :3]
    half = boxes[:, None, :, 3:6] / 2
    cos, sin = boxes[:, None, :, 6].cos(), boxes[:, None, :, 6].sin()
    x = offset[..., 0] * cos + offset[..., 1] * sin
    y = offset[..., 1] * cos - offset[..., 0] * sin
    z = offset[..., 2] - half[..., 2]
    across = (x.abs() < half[..., 0]) & (y.abs() < half[..., 1])
    return across & (z.abs() <= half[..., 2])
