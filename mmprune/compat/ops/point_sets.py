"""Sampling, grouping and interpolating sets of points."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Distances of so many pairs at once: 64 MB of them in float32.
_PAIRS = 1 << 24


def furthest_forward(
    points: Tensor, temp: Tensor, output: Tensor, *, b: int, n: int, m: int
) -> None:
    """Writes points that lie far from each other, from the first on.

    Args:
        points: ``[b, n, 3]``.
        temp: ``[b, n]``, large numbers; written.
        output: ``[b, m]`` int; written.
        b: Batch size.
        n: Points.
        m: How many to take.
    """
    _furthest(
        lambda rows, last: (
            (points - points[rows, last][:, None]).pow(2).sum(2)
        ),
        temp,
        output,
    )


def furthest_points(ctx: Any, points: Tensor, num_points: int) -> Tensor:
    """Returns ``[b, num_points]`` indices of points that lie far apart.

    mmcv's function of this name, without its memory on CUDA.
    """
    output = points.new_zeros(len(points), num_points, dtype=torch.int32)
    temp = points.new_full(points.shape[:2], 1e10)
    batch, count = points.shape[:2]
    furthest_forward(points, temp, output, b=batch, n=count, m=num_points)
    ctx.mark_non_differentiable(output)
    return output


def nearest_points(
    ctx: Any,
    k: int,
    points: Tensor,
    centers: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """Returns ``[b, k, m]`` indices of the points nearest to each center.

    mmcv's function of this name, without its question to CUDA.

    Args:
        ctx: Of autograd.
        k: How many, nearest first.
        points: ``[b, n, 3]``.
        centers: ``[b, m, 3]``, by default the points.
        transposed: Whether both are ``[b, 3, n]``.
    """
    centers = points if centers is None else centers
    if transposed:
        points, centers = points.transpose(1, 2), centers.transpose(1, 2)
    shape = (*centers.shape[:2], k)
    idx = centers.new_zeros(shape, dtype=torch.int32)
    knn_forward(points, centers, idx, centers.new_zeros(shape), nsample=k)
    idx = idx.transpose(1, 2).contiguous()
    ctx.mark_non_differentiable(idx)
    return idx


def furthest_with_dist_forward(
    distances: Tensor, temp: Tensor, output: Tensor, *, b: int, n: int, m: int
) -> None:
    """The same from the distances of all pairs, ``[b, n, n]``."""
    _furthest(lambda rows, last: distances[rows, last], temp, output)


def ball_query_forward(
    centers: Tensor,
    points: Tensor,
    idx: Tensor,
    *,
    min_radius: float,
    max_radius: float,
    nsample: int,
    **_: int,
) -> None:
    """Writes the first points near each center into ``idx``.

    The first one fills the places that are left; where there is none, ``idx``
    stays as it is.

    Args:
        centers: ``[b, m, 3]``.
        points: ``[b, n, 3]``.
        idx: ``[b, m, nsample]`` int; written.
        min_radius: Nearer points do not count, but for the center itself.
        max_radius: Points at this distance or beyond do not count.
        nsample: Points of a center.
    """
    for batch, start, squared in _distances(centers, points):
        near = (squared >= min_radius**2) & (squared < max_radius**2)
        near |= squared == 0
        rank = near.cumsum(1)
        place = torch.where(near & (rank <= nsample), rank - 1, nsample)
        found = torch.zeros(len(near), nsample + 1, device=near.device)
        found = found.long().scatter_(
            1, place, torch.arange(near.shape[1]).to(place).expand_as(place)
        )[:, :nsample]
        filled = torch.arange(nsample).to(place) < rank[:, -1:]
        found = torch.where(filled, found, found[:, :1])
        some = near.any(1)
        rows = torch.arange(start, start + len(near)).to(place)[some]
        idx[batch, rows] = found[some].to(idx.dtype)


def knn_forward(
    points: Tensor,
    centers: Tensor,
    idx: Tensor,
    dist2: Tensor,
    *,
    nsample: int,
    **_: int,
) -> None:
    """Writes the nearest points of each center, nearest first.

    Args:
        points: ``[b, n, 3]``.
        centers: ``[b, m, 3]``.
        idx: ``[b, m, nsample]`` int; written.
        dist2: ``[b, m, nsample]``, squared distances; written.
        nsample: Points of a center.
    """
    for batch, start, squared in _distances(centers, points):
        # Not topk: of equal distances the first point comes first.
        values, places = squared.sort(dim=1, stable=True)
        rows = slice(start, start + len(squared))
        idx[batch, rows] = places[:, :nsample].to(idx.dtype)
        dist2[batch, rows] = values[:, :nsample].to(dist2.dtype)


def three_nn_forward(
    target: Tensor, source: Tensor, dist2: Tensor, idx: Tensor, **_: int
) -> None:
    """Writes the three nearest points of ``source`` for each of ``target``.

    Args:
        target: ``[b, n, 3]``.
        source: ``[b, m, 3]``.
        dist2: ``[b, n, 3]``, squared distances; written.
        idx: ``[b, n, 3]`` int; written.
    """
    knn_forward(source, target, idx, dist2, nsample=3)


def gather_forward(
    features: Tensor, indices: Tensor, output: Tensor, **_: int
) -> None:
    """Writes ``[b, c, m]`` features of the points ``[b, m]``."""
    output.copy_(_taken(features, indices))


def gather_backward(
    grad_out: Tensor, indices: Tensor, grad_features: Tensor, **_: int
) -> None:
    """Adds each gradient to the point that it was taken from."""
    _given(grad_features, indices, grad_out)


def group_forward(
    features: Tensor, indices: Tensor, output: Tensor, **_: int
) -> None:
    """Writes ``[b, c, m, k]`` features of the points ``[b, m, k]``."""
    taken = _taken(features, indices.flatten(1))
    output.copy_(taken.unflatten(2, indices.shape[1:]))


def group_backward(
    grad_out: Tensor, indices: Tensor, grad_features: Tensor, **_: int
) -> None:
    """Adds each gradient to the point that it was taken from."""
    _given(grad_features, indices.flatten(1), grad_out.flatten(2))


def interpolate_forward(
    features: Tensor, indices: Tensor, weight: Tensor, output: Tensor, **_: int
) -> None:
    """Writes weighted sums of three points' features into ``output``.

    Args:
        features: ``[b, c, m]``.
        indices: ``[b, n, 3]``.
        weight: ``[b, n, 3]``.
        output: ``[b, c, n]``; written.
    """
    taken = _taken(features, indices.flatten(1)).unflatten(2, (-1, 3))
    output.copy_((taken * weight[:, None]).sum(3))


def interpolate_backward(
    grad_out: Tensor,
    indices: Tensor,
    weight: Tensor,
    grad_features: Tensor,
    **_: int,
) -> None:
    """Adds each gradient by its weight to the three points."""
    shares = grad_out[..., None] * weight[:, None]
    _given(grad_features, indices.flatten(1), shares.flatten(2))


def _furthest(
    distances_to: Callable[[Tensor, Tensor], Tensor],
    temp: Tensor,
    output: Tensor,
) -> None:
    rows = torch.arange(len(temp), device=temp.device)
    last = torch.zeros_like(rows)
    for i in range(output.shape[1]):
        output[:, i] = last.to(output.dtype)
        temp.copy_(torch.minimum(temp, distances_to(rows, last)))
        last = temp.argmax(1)


def _distances(
    centers: Tensor, points: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields batch, first center and squared distances ``[part, n]``."""
    step = max(1, _PAIRS // max(points.shape[1], 1))
    for batch in range(len(points)):
        for start in range(0, centers.shape[1], step):
            part = centers[batch, start : start + step, None]
            yield batch, start, (part - points[batch]).pow(2).sum(2)


def _taken(features: Tensor, indices: Tensor) -> Tensor:
    """``[b, c, n]`` at ``[b, k]`` as ``[b, c, k]``."""
    places = indices.long()[:, None].expand(-1, features.shape[1], -1)
    return features.gather(2, places)


def _given(grad_features: Tensor, indices: Tensor, grad: Tensor) -> None:
    places = indices.long()[:, None].expand_as(grad)
    grad_features.scatter_add_(2, places, grad.to(grad_features.dtype))
