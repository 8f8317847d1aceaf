"""Points into voxels: hard, dynamic, and what is scattered into them."""

import torch
from torch import Tensor


def dynamic_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    coors: Tensor,
    NDim: int = 3,
) -> None:
    """Writes the voxel of each point into ``coors``, -1 outside.

    Args:
        points: ``[n, 3 + f]``: x y z and features.
        voxel_size: ``[3]``, along x y z.
        coors_range: ``[6]``, lowest and highest x y z.
        coors: ``[n, 3]`` int, z y x; written.
        NDim: Always 3.
    """
    voxel_size = voxel_size.to(points)
    low, high = coors_range.to(points).view(2, 3)
    grid = ((high - low) / voxel_size).round().long()
    place = ((points[:, :3] - low) / voxel_size).floor().long()
    inside = ((place >= 0) & (place < grid)).all(1, keepdim=True)
    coors.copy_(torch.where(inside, place.flip(1), -1))


def hard_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    voxels: Tensor,
    coors: Tensor,
    num_points_per_voxel: Tensor,
    voxel_num: Tensor,
    max_points: int,
    max_voxels: int,
    NDim: int = 3,
    deterministic: bool = True,
) -> None:
    """Writes the first points of the first voxels, in the order of points.

    Args:
        points: ``[n, 3 + f]``: x y z and features.
        voxel_size: ``[3]``, along x y z.
        coors_range: ``[6]``, lowest and highest x y z.
        voxels: ``[max_voxels, max_points, 3 + f]``, zeros; written.
        coors: ``[max_voxels, 3]`` int, z y x; written.
        num_points_per_voxel: ``[max_voxels]`` int; written.
        voxel_num: How many voxels there are, a scalar; written.
        max_points: Points of a voxel beyond it are left out.
        max_voxels: Voxels beyond it are left out.
        NDim: Always 3.
        deterministic: It always is.
    """
    place = coors.new_empty(len(points), 3)
    dynamic_forward(points, voxel_size, coors_range, place)
    seen = torch.nonzero(place[:, 0] >= 0)[:, 0]
    found, voxel = _numbered(place[seen])
    count = min(len(found), max_voxels)
    slot = _turn(voxel)
    kept = (voxel < count) & (slot < max_points)
    voxels[voxel[kept], slot[kept]] = points[seen[kept]]
    coors[:count] = found[:count].to(coors.dtype)
    sizes = torch.bincount(voxel, minlength=len(found))[:count]
    num_points_per_voxel[:count] = sizes.clamp(max=max_points).to(
        num_points_per_voxel.dtype
    )
    voxel_num.fill_(count)


def scatter_forward(
    feats: Tensor, coors: Tensor, reduce_type: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduces the features of the points of each voxel.

    Args:
        feats: ``[n, c]``.
        coors: ``[n, d]`` int; points with a negative entry are left out.
        reduce_type: ``max``, ``sum`` or ``mean``.

    Returns:
        Features ``[m, c]``, voxels ``[m, d]`` in order, the voxel of each
        point ``[n]`` (-1 for none) and the points of each voxel ``[m]``.
    """
    valid = (coors >= 0).all(1)
    found, voxel = torch.unique(coors[valid], dim=0, return_inverse=True)
    places = voxel[:, None].expand(-1, feats.shape[1])
    reduce = {'max': 'amax'}.get(reduce_type, reduce_type)
    empty = feats.new_zeros(len(found), feats.shape[1])
    reduced = empty.scatter_reduce(
        0, places, feats[valid], reduce, include_self=False
    )
    of_point = torch.full_like(coors[:, 0], -1)
    of_point[valid] = voxel.to(of_point.dtype)
    counts = torch.bincount(voxel, minlength=len(found))
    return reduced, found, of_point, counts.to(coors.dtype)


def scatter_backward(
    grad_feats: Tensor,
    grad_reduced: Tensor,
    feats: Tensor,
    reduced: Tensor,
    of_point: Tensor,
    counts: Tensor,
    reduce_type: str,
) -> None:
    """Writes the gradient of the features; of equal maxima the first has it.

    Args:
        grad_feats: ``[n, c]``, zeros; written.
        grad_reduced: ``[m, c]``.
        feats: ``[n, c]``.
        reduced: ``[m, c]``, what ``scatter_forward`` returned.
        of_point: ``[n]``, the voxel of each point.
        counts: ``[m]``, points of each voxel.
        reduce_type: ``max``, ``sum`` or ``mean``.
    """
    valid = of_point >= 0
    voxel = of_point[valid].long()
    shares = grad_reduced[voxel]
    if reduce_type == 'mean':
        shares = shares / counts[voxel, None]
    if reduce_type == 'max':
        shares = shares * _first_maxima(feats[valid], reduced, voxel)
    grad_feats[valid] = shares.to(grad_feats.dtype)


def _first_maxima(feats: Tensor, reduced: Tensor, voxel: Tensor) -> Tensor:
    """Returns where a point is the first that has the maximum, ``[n, c]``."""
    points = torch.arange(len(feats), device=feats.device)[:, None]
    candidates = torch.where(feats == reduced[voxel], points, len(feats))
    first = torch.full_like(reduced, len(feats), dtype=torch.long)
    places = voxel[:, None].expand_as(candidates)
    first = first.scatter_reduce(0, places, candidates, 'amin')
    return first[voxel] == points


def _numbered(place: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows in order of appearance, and each row's."""
    rows, inverse = torch.unique(place, dim=0, return_inverse=True)
    order = torch.arange(len(place), device=place.device)
    first = torch.full((len(rows),), len(place), device=place.device)
    first = first.scatter_reduce(0, inverse, order, 'amin')
    by_first = first.argsort()
    return rows[by_first], by_first.argsort()[inverse]


def _turn(voxel: Tensor) -> Tensor:
    """Returns how many earlier points have the same voxel, ``[n]``."""
    order = voxel.argsort(stable=True)
    ranked = voxel[order]
    start = torch.searchsorted(ranked, ranked)
    turn = torch.empty_like(voxel)
    turn[order] = torch.arange(len(voxel), device=voxel.device) - start
    return turn
