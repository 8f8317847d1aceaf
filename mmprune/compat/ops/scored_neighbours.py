"""Weight matrices mixed by scores of neighbours (PAConv, arXiv:2103.14635)."""

from functools import partial

import torch
from torch import Tensor

from .gradients import write_gradients


def forward(
    points: Tensor,
    centers: Tensor,
    scores: Tensor,
    knn_idx: Tensor,
    output: Tensor,
    **_: int,
) -> None:
    """Adds the mixed features of each neighbour to ``output``.

    Args:
        points: ``[b, n, matrices, c]``.
        centers: ``[b, n, matrices, c]``, taken off at the center.
        scores: ``[b, m, k, matrices]``.
        knn_idx: ``[b, m, k]``, the center first; those that are no points
            are left out.
        output: ``[b, c, m, k]``; written.
    """
    output.add_(_mixed(knn_idx, points, centers, scores))


def backward(
    grad_out: Tensor,
    points: Tensor,
    centers: Tensor,
    scores: Tensor,
    knn_idx: Tensor,
    grad_points: Tensor,
    grad_centers: Tensor,
    grad_scores: Tensor,
    **_: int,
) -> None:
    """Writes the three gradients."""
    write_gradients(
        partial(_mixed, knn_idx),
        (points, centers, scores),
        (grad_points, grad_centers, grad_scores),
        grad_out,
    )


def _mixed(
    knn_idx: Tensor, points: Tensor, centers: Tensor, scores: Tensor
) -> Tensor:
    known = (knn_idx >= 0) & (knn_idx < points.shape[1])
    neighbour = torch.where(known, knn_idx, 0).long()
    batch = torch.arange(len(points), device=points.device)[:, None, None]
    center = neighbour[:, :, :1].expand_as(neighbour)
    apart = points[batch, neighbour] - centers[batch, center]
    mixed = (apart * scores[..., None]).sum(3) * known[..., None]
    return mixed.permute(0, 3, 1, 2)
