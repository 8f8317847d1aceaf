"""Losses of boxes, agents' motion and map lines, summed and unweighted."""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(
    logits: Tensor,
    batch: Tensor,
    query: Tensor,
    labels: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Returns the summed sigmoid focal loss (Lin et al., ICCV 2017).

    Args:
        logits: ``[B, queries, classes]``.
        batch: ``[n]`` sample of each matched pair.
        query: ``[n]`` query of each matched pair; the others are background.
        labels: ``[n]`` class of each matched pair.
        alpha: Weight of the foreground.
        gamma: Focusing exponent.
    """
    target = torch.zeros_like(logits)
    target[batch, query, labels] = 1.0
    prob = logits.sigmoid()
    miss = torch.where(target > 0, 1 - prob, prob)
    weight = torch.where(target > 0, alpha, 1 - alpha) * miss**gamma
    entropy = F.binary_cross_entropy_with_logits(
        logits, target, reduction='none'
    )
    return (weight * entropy).sum()


def motion_losses(
    trajs: Tensor,
    scores: Tensor,
    attributes: Tensor,
    batch: Tensor,
    query: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the losses of each agent's best mode and of naming that mode.

    The best mode is the one that ends nearest to the truth; where the last
    step is not known it is mode 0, as in the original.

    Args:
        trajs: ``[B, queries, modes, 2 T]`` per-step offsets in metres.
        scores: ``[B, queries, modes]`` logits.
        attributes: ``[n, >= 3 T]`` of each matched pair: true offsets 2 T,
            then step masks T.
        batch: ``[n]`` sample of each matched pair.
        query: ``[n]`` query of each matched pair.

    Returns:
        Summed L1 over the known steps, and summed focal loss over the modes.
    """
    modes = trajs[batch, query].unflatten(-1, (-1, 2))  # [n, modes, T, 2]
    steps = modes.shape[2]
    target = attributes[:, : 2 * steps].unflatten(-1, (steps, 2))
    mask = attributes[:, 2 * steps : 3 * steps]
    with torch.no_grad():
        ends = modes.sum(dim=2) - target.sum(dim=1)[:, None]
        best = torch.linalg.norm(ends, dim=-1).argmin(dim=1)
        best = torch.where(mask[:, -1] > 0, best, torch.zeros_like(best))
    chosen = modes[torch.arange(len(best), device=best.device), best]
    error = (chosen - target).abs() * mask[..., None]
    return error.sum(), focal_loss(scores, batch, query, best)


def turning_loss(points: Tensor, targets: Tensor) -> Tensor:
    """Returns the summed 1 - cosine between the steps of paired lines.

    Args:
        points: ``[n, P, 2]`` predicted, in metres.
        targets: ``[n, P, 2]`` true points in the order that was matched.
    """
    a = (points[:, 1:] - points[:, :-1]).flatten(0, 1)
    b = (targets[:, 1:] - targets[:, :-1]).flatten(0, 1)
    same = a.new_ones(len(a))
    return F.cosine_embedding_loss(a, b, same, reduction='sum')


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """Returns 1 - generalised IoU of each pair (Rezatofighi, CVPR 2019).

    Args:
        a: ``[n, 4]`` boxes (x1, y1, x2, y2).
        b: ``[n, 4]`` boxes.

    Returns:
        ``[n]``, in [0, 2].
    """
    area_a = (a[:, 2:] - a[:, :2]).prod(dim=1)
    area_b = (b[:, 2:] - b[:, :2]).prod(dim=1)
    low, high = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    hull = torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])
    hull = hull.prod(dim=1).clamp(min=1e-6)
    union = (area_a + area_b - inter).clamp(min=1e-6)
    return 1 - inter / union + (hull - union) / hull
