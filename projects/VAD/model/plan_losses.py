"""The three constraints on the ego plan (Jiang et al., ICCV 2023, 3.4).

All positions are in metres in the LiDAR frame with the ego at the origin; T
future steps. The losses are not reduced and not masked. They look at the
predicted map and agents, and gradients flow into both.
"""

import math

import torch
from torch import Tensor

FAR = 1e6


def boundary_loss(
    ego_offsets: Tensor,
    lines: Tensor,
    kept: Tensor,
    margin: float = 1.0,
) -> Tensor:
    """Returns how far the plan comes too near to a road boundary.

    ``max(0, margin - d_t)`` with ``d_t`` the distance to the nearest point
    of any kept line; 0 from the first step on that crosses its nearest line,
    because behind the boundary the distance would push the wrong way.

    Args:
        ego_offsets: ``[B, T, 2]`` per-step offsets of the commanded plan.
        lines: ``[B, V, P, 2]`` map vectors.
        kept: ``[B, V]`` bool, the vectors that are boundaries.
        margin: Distance in metres below which a step costs.

    Returns:
        ``[B, T]``.
    """
    ego = ego_offsets.cumsum(dim=1)
    distance, vector, _ = _nearest(ego, lines, kept)
    previous = torch.cat((torch.zeros_like(ego[:, :1]), ego[:, :-1]), dim=1)
    nearest = _moved_away(lines, kept).gather(
        1, vector[..., None, None].expand(-1, -1, *lines.shape[2:])
    )  # [B, T, P, 2]
    with torch.no_grad():
        hit = _crosses(
            previous[:, :, None],
            ego[:, :, None],
            nearest[:, :, :-1],
            nearest[:, :, 1:],
        )
        crossed = hit.any(dim=-1).cumsum(dim=1) > 0
    loss = (margin - distance).clamp(min=0)
    return torch.where(crossed, torch.zeros_like(loss), loss)


def collision_loss(
    ego_offsets: Tensor,
    agent_centers: Tensor,
    agent_offsets: Tensor,
    mode_scores: Tensor,
    kept: Tensor,
    x_margin: float = 1.5,
    y_margin: float = 3.0,
    radius: float = 3.0,
) -> Tensor:
    """Returns how far the plan comes too near to an agent, per axis.

    ``max(0, margin - min_a |d|)`` for x and y. The two minima are taken
    separately, as the original does; they may be of different agents.

    Args:
        ego_offsets: ``[B, T, 2]`` per-step offsets of the commanded plan.
        agent_centers: ``[B, A, 2]``.
        agent_offsets: ``[B, A, M, T, 2]`` per-step offsets of M modes.
        mode_scores: ``[B, A, M]``; the best mode of each agent counts.
        kept: ``[B, A]`` bool, the agents to avoid.
        x_margin: Sideways distance in metres below which a step costs.
        y_margin: The same along the road.
        radius: Agents farther than this from the ego do not count.

    Returns:
        ``[B, T, 2]``.
    """
    ego = ego_offsets.cumsum(dim=1)
    best = mode_scores.argmax(dim=-1)[..., None, None, None]
    offsets = agent_offsets.gather(
        2, best.expand(-1, -1, 1, *agent_offsets.shape[3:])
    ).squeeze(2)  # [B, A, T, 2]
    agents = agent_centers[:, :, None] + offsets.cumsum(dim=2)
    with torch.no_grad():
        distance = torch.linalg.norm(ego[:, None] - agents, dim=-1)
        near = kept[..., None] & (distance <= radius)
    agents = torch.where(near[..., None], agents, agents.new_full((1,), FAR))
    if agents.shape[1] == 0:
        return torch.zeros_like(ego)
    gap = (ego[:, None] - agents).abs().amin(dim=1)
    return (gap.new_tensor([x_margin, y_margin]) - gap).clamp(min=0)


def direction_loss(
    ego_offsets: Tensor,
    lines: Tensor,
    kept: Tensor,
    radius: float = 2.0,
    min_length: float = 1.0,
) -> Tensor:
    """Returns the angle between the plan and its nearest lane divider.

    A divider has no direction, so angles differ by at most pi / 2.

    Args:
        ego_offsets: ``[B, T, 2]`` per-step offsets of the commanded plan.
        lines: ``[B, V, P, 2]`` map vectors.
        kept: ``[B, V]`` bool, the vectors that are dividers.
        radius: A divider farther away than this costs nothing.
        min_length: A plan whose last step is nearer than this to its first
            one has no heading and costs nothing.

    Returns:
        ``[B, T]`` in radians.
    """
    ego = ego_offsets.cumsum(dim=1)
    distance, vector, point = _nearest(ego, lines, kept)
    batch = torch.arange(len(lines), device=lines.device)[:, None]
    follower = torch.where(point == lines.shape[2] - 1, point - 1, point + 1)
    along = lines[batch, vector, follower] - lines[batch, vector, point]

    moves = ego[:, 1:] - ego[:, :-1]
    moves = torch.cat((moves, moves[:, -1:]), dim=1)
    length = torch.linalg.norm(ego[:, -1] - ego[:, 0], dim=-1)
    counts = (distance <= radius) & (length >= min_length)[:, None]

    angle = _heading(moves) - _heading(along)
    return torch.where(counts, _wrapped(angle).abs(), angle.new_zeros(()))


def _moved_away(lines: Tensor, kept: Tensor) -> Tensor:
    far = lines.new_full((1,), FAR)
    return torch.where(kept[..., None, None], lines, far)


def _nearest(
    ego: Tensor, lines: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, vector and point index of the nearest kept point, [B, T]."""
    points = _moved_away(lines, kept)
    distance = torch.linalg.norm(
        ego[:, :, None, None] - points[:, None], dim=-1
    )  # [B, T, V, P]
    nearest, index = distance.flatten(2).min(dim=-1)
    num_points = lines.shape[2]
    return nearest, index // num_points, index % num_points


def _crosses(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Whether the segments a-b and c-d meet; parallel ones never do."""
    ab, cd, ac = b - a, d - c, c - a
    det = _cross(ab, cd)
    parallel = det == 0
    det = torch.where(parallel, torch.ones_like(det), det)
    s, t = _cross(ac, cd) / det, _cross(ac, ab) / det
    inside = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    return inside & ~parallel


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _heading(moves: Tensor) -> Tensor:
    return torch.atan2(moves[..., 1], moves[..., 0])


def _wrapped(angle: Tensor) -> Tensor:
    """Moves angles in [-2 pi, 2 pi] to [-pi/2, pi/2] by steps of pi."""
    for limit in (math.pi, math.pi / 2):
        angle = torch.where(angle > limit, angle - math.pi, angle)
    for limit in (math.pi, math.pi / 2):
        angle = torch.where(angle < -limit, angle + math.pi, angle)
    return angle
