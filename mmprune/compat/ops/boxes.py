"""Non-maximum suppression of upright boxes."""

import torch
import torchvision
from torch import Tensor

from .precision import exact_dtype


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Returns the indices of the kept boxes, best score first.

    Args:
        boxes: ``[n, 4]``, x1 y1 x2 y2.
        scores: ``[n]``.
        iou_threshold: A box above it with a better one is dropped.
        offset: 1 where a box from pixel 3 to pixel 3 is one pixel wide.
    """
    if boxes.numel() == 0:
        return boxes.new_zeros(0, dtype=torch.long)
    return torchvision.ops.nms(
        _with_offset(boxes, offset),
        scores.to(exact_dtype(scores)),
        iou_threshold,
    )


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Returns the indices of the kept boxes, best decayed score first.

    Soft-NMS (Bodla et al., https://arxiv.org/abs/1704.04503).

    Args:
        boxes: ``[n, 4]``, x1 y1 x2 y2.
        scores: ``[n]``.
        dets: ``[n, 5]``; its first rows receive boxes and decayed scores.
        iou_threshold: Overlap from which ``naive`` and ``linear`` decay.
        sigma: Width of the ``gaussian`` decay.
        min_score: A box that decays below it is dropped.
        method: 0 naive, 1 linear, 2 gaussian.
        offset: As for :func:`nms`.
    """
    shifted = _with_offset(boxes, offset)
    left = scores.to(shifted.dtype).clone()
    alive = torch.ones_like(left, dtype=torch.bool)
    kept = []
    while alive.any():
        best = int(left.masked_fill(~alive, -torch.inf).argmax())
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = left[best]
        kept.append(best)
        alive[best] = False
        iou = torchvision.ops.box_iou(shifted[best, None], shifted)[0]
        decay = _decay(iou, iou_threshold, sigma, method)
        left = torch.where(alive, left * decay, left)
        alive &= left >= min_score
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Returns each kept box followed by those it suppressed.

    Args:
        dets: ``[n, 5]``, x1 y1 x2 y2 score.
        iou_threshold: From this overlap on a box is suppressed.
    """
    boxes = _with_offset(dets[:, :4], 0)
    iou = torchvision.ops.box_iou(boxes, boxes)
    order = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(order):
        best, rest = order[0], order[1:]
        joins = iou[best, rest] >= iou_threshold
        groups.append([int(best), *rest[joins].tolist()])
        order = rest[~joins]
    return groups


def greedy(overlaps: Tensor) -> Tensor:
    """Returns which rows survive, ``[n]`` bool.

    Args:
        overlaps: ``[n, n]`` bool, rows and columns sorted best score first.
    """
    table = overlaps.cpu().numpy()
    alive = torch.ones(len(table), dtype=torch.bool).numpy()
    for i in range(len(table)):
        if alive[i]:
            alive[i + 1 :] &= ~table[i, i + 1 :]
    return torch.from_numpy(alive).to(overlaps.device)


def _decay(iou: Tensor, threshold: float, sigma: float, method: int) -> Tensor:
    if method == 2:
        return torch.exp(-(iou**2) / sigma)
    decayed = 1 - iou if method == 1 else torch.zeros_like(iou)
    return torch.where(iou >= threshold, decayed, torch.ones_like(iou))


def _with_offset(boxes: Tensor, offset: int) -> Tensor:
    # Widths and intersections of x2 - x1 + offset are those of boxes whose
    # lower right corner moved by the offset.
    shift = boxes.new_tensor([0, 0, offset, offset])
    return boxes.to(exact_dtype(boxes)) + shift.to(exact_dtype(boxes))
