"""Overlap and suppression of rotated boxes (x, y, w, h, angle)."""

import torch
from torch import Tensor

from .boxes import greedy

# Pairs clipped at once: about 100 MB of intermediate polygons.
_CHUNK = 1 << 16


def box_iou_rotated(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode_flag: int,
    aligned: bool,
) -> None:
    """Writes the overlap of rotated boxes into ``ious``.

    Args:
        bboxes1: ``[n, 5]``, centre, size and angle in radians.
        bboxes2: ``[m, 5]``.
        ious: ``[n * m]``, or ``[n]`` if aligned; written.
        mode_flag: 0: over the union, 1: over the area of the first box.
        aligned: Pair row by row instead of all with all.
    """
    first = bboxes1[:, :5].double()
    second = bboxes2[:, :5].double()
    if aligned:
        rows = columns = torch.arange(len(first), device=first.device)
    else:
        rows, columns = _near(first, second)
    values = ious.new_zeros(len(rows))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        values[part] = _overlap(
            first[rows[part]], second[columns[part]], mode_flag
        ).to(ious.dtype)
    ious.zero_()
    ious[rows if aligned else rows * len(second) + columns] = values


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Returns the indices of the kept boxes, best score first.

    As in mmcv's own kernels, labels do not keep boxes apart; batched_nms
    does, by moving the boxes.

    Args:
        dets: ``[n, 5]``, or ``[n, 6]`` with the label.
        scores: ``[n]``.
        order: ``[n]``, sorts the scores from high to low.
        dets_sorted: ``dets[order]``.
        labels: Not used.
        iou_threshold: A box above it with a better one is dropped.
        multi_label: Whether ``dets`` has the sixth column.
    """
    count = len(dets_sorted)
    ious = dets_sorted.new_zeros(count * count, dtype=torch.float64)
    box_iou_rotated(dets_sorted, dets_sorted, ious, 0, False)
    return order[greedy(ious.view(count, count) > iou_threshold)]


def _near(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pairs whose circumscribed circles meet."""
    reach1 = first[:, 2:4].norm(dim=1) / 2
    reach2 = second[:, 2:4].norm(dim=1) / 2
    apart = torch.cdist(
        first[:, :2],
        second[:, :2],
        compute_mode='donot_use_mm_for_euclid_dist',
    )
    return torch.nonzero(
        apart <= reach1[:, None] + reach2[None], as_tuple=True
    )


def _overlap(first: Tensor, second: Tensor, mode_flag: int) -> Tensor:
    # Coordinates relative to the first box keep their digits far from 0.
    second = second.clone()
    second[:, :2] -= first[:, :2]
    first = first.clone()
    first[:, :2] = 0
    shared = _intersection(_corners(first), _corners(second))
    area1 = first[:, 2] * first[:, 3]
    area2 = second[:, 2] * second[:, 3]
    base = area1 if mode_flag == 1 else area1 + area2 - shared
    real = (area1 >= 1e-14) & (area2 >= 1e-14)
    return torch.where(real, shared / base.clamp(min=1e-14), 0.0)


def _corners(boxes: Tensor) -> Tensor:
    """Returns ``[p, 4, 2]``, in the turning sense of positive area."""
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    local = signs * boxes[:, None, 2:4]
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return torch.stack([x, y], dim=-1) + boxes[:, None, :2]


def _intersection(subject: Tensor, window: Tensor) -> Tensor:
    """Returns the shared area of convex quadrilaterals, ``[p]``.

    Sutherland-Hodgman: the subject is cut by each side of the window.
    """
    polygon = subject
    for side in range(4):
        start, end = window[:, side], window[:, (side + 1) % 4]
        polygon = _cut(polygon, start, end - start)
    following = polygon.roll(-1, dims=1)
    return _cross(polygon, following).sum(1).clamp(min=0) / 2


def _cut(polygon: Tensor, start: Tensor, along: Tensor) -> Tensor:
    """Returns the part left of a line, ``[p, k, 2]`` to ``[p, k + 1, 2]``."""
    side = _cross(along[:, None], polygon - start[:, None])
    following, next_side = polygon.roll(-1, dims=1), side.roll(-1, dims=1)
    inside = side >= 0
    crosses = inside != (next_side >= 0)
    gap = torch.where(crosses, side - next_side, torch.ones_like(side))
    crossing = polygon + (side / gap)[..., None] * (following - polygon)
    points = torch.stack([polygon, crossing], dim=2).flatten(1, 2)
    valid = torch.stack([inside, crosses], dim=2).flatten(1, 2)
    # A line adds at most one corner to a convex polygon: k + 1 places.
    front = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    front = front[:, : polygon.shape[1] + 1]
    points = points.gather(1, front[..., None].expand(-1, -1, 2))
    valid = valid.gather(1, front)
    # Unused places repeat the first point: they add no area.
    points = torch.where(valid[..., None], points, points[:, :1])
    return points * valid[:, :1, None]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
