"""Which prediction answers for which ground truth (Hungarian matching)."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

BACKGROUND = -1


def focal_cost(
    logits: Tensor,
    labels: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-12,
) -> Tensor:
    """Returns what the focal loss would gain from calling each pair a match.

    Args:
        logits: ``[queries, classes]``.
        labels: ``[n]`` class of each ground truth.
        alpha: Weight of the foreground.
        gamma: Focusing exponent.
        eps: Added inside the logarithms.

    Returns:
        ``[queries, n]``.
    """
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * -(prob + eps).log()
    negative = (1 - alpha) * prob**gamma * -(1 - prob + eps).log()
    return (positive - negative)[:, labels]


def hungarian(cost: Tensor) -> Tensor:
    """Returns the column matched to each row, -1 where there is none.

    Args:
        cost: ``[rows, columns]``; entries that are not finite count as 100,
            so that a diverged prediction loses its match and nothing stops.

    Returns:
        ``[rows]`` int64 on the device of ``cost``.
    """
    finite = cost.detach().nan_to_num(100.0, posinf=100.0, neginf=-100.0)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    assigned = torch.full((len(cost),), BACKGROUND, dtype=torch.int64)
    assigned[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return assigned.to(cost.device)


def assign_boxes(
    logits: Tensor,
    codes: Tensor,
    gt_codes: Tensor,
    gt_labels: Tensor,
    cls_cost: float,
    bbox_cost: float,
) -> Tensor:
    """Matches predicted boxes with ground truth, without the velocity.

    Args:
        logits: ``[queries, classes]``.
        codes: ``[queries, 10]`` predicted box codes.
        gt_codes: ``[n, 10]`` encoded ground truth.
        gt_labels: ``[n]``.
        cls_cost: Weight of the focal cost.
        bbox_cost: Weight of the L1 distance over the first 8 numbers.

    Returns:
        ``[queries]`` index of the ground truth, -1 for background.
    """
    cost = cls_cost * focal_cost(logits, gt_labels)
    cost = cost + bbox_cost * torch.cdist(codes[:, :8], gt_codes[:, :8], p=1)
    return hungarian(cost)


def assign_lines(
    logits: Tensor,
    points: Tensor,
    gt_points: Tensor,
    gt_labels: Tensor,
    cls_cost: float,
    pts_cost: float,
) -> tuple[Tensor, Tensor]:
    """Matches predicted map vectors with lines, each in its best order.

    Args:
        logits: ``[vectors, classes]``.
        points: ``[vectors, points, 2]`` normalised to the region.
        gt_points: ``[M, orders, points, 2]`` normalised: the equivalent
            orders of each line (padding far away is never chosen).
        gt_labels: ``[M]``.
        cls_cost: Weight of the focal cost.
        pts_cost: Weight of the L1 distance, summed over all numbers.

    Returns:
        ``[vectors]`` index of the line and ``[vectors]`` index of its order,
        both -1 for background.
    """
    num_lines, num_orders = gt_points.shape[:2]
    distance = torch.cdist(
        points.flatten(1), gt_points.flatten(0, 1).flatten(1), p=1
    )
    distance = distance.view(len(points), num_lines, num_orders)
    best, order = distance.min(dim=-1)
    cost = cls_cost * focal_cost(logits, gt_labels) + pts_cost * best
    assigned = hungarian(cost)
    chosen = torch.full_like(assigned, BACKGROUND)
    matched = assigned >= 0
    chosen[matched] = order[matched, assigned[matched]]
    return assigned, chosen
