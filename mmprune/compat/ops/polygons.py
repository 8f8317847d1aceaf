"""Which points lie in which quadrilaterals."""

import torch
from torch import Tensor


def points_forward(points: Tensor, polygons: Tensor, output: Tensor) -> None:
    """Writes 1 where a point is inside into ``output``, ``[n, m]``.

    A ray to the right crosses the outline an odd number of times. A point
    exactly on a side ends the count there, as in mmcv's kernel.

    Args:
        points: ``[n, 2]``, x and y.
        polygons: ``[m, 8]``, four corners in order.
        output: Written.
    """
    x, y = points[:, None, :1], points[:, None, 1:]
    corners = polygons.view(1, -1, 4, 2)
    sx, sy = corners.unbind(-1)
    tx, ty = corners.roll(1, dims=2).unbind(-1)
    level = (y >= torch.minimum(sy, ty)) & (y <= torch.maximum(sy, ty))
    spans = level & (((sy < y) & (ty >= y)) | ((sy >= y) & (ty < y)))
    rise = torch.where(ty == sy, torch.ones_like(sy), ty - sy)
    crossing = sx + (y - sy) * (tx - sx) / rise
    on_corner = ((sx == x) & (sy == y)) | ((tx == x) & (ty == y))
    stops = level & (on_corner | (spans & (crossing == x)))
    going = stops.long().cumsum(-1) == 0
    crossed = (spans & (crossing > x) & going).sum(-1)
    output.copy_(crossed % 2)
