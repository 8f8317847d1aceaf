"""Upright boxes: corners, overlap, points inside."""

import numpy as np

UNIT = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) / 2


def corners(poses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns the footprints' corners ``[n, 4, 2]``, counter-clockwise.

    Args:
        poses: ``[n, 3]`` x, y of the middle and yaw.
        sizes: ``[n, 2+]`` length and width.
    """
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)
    local = UNIT[None] * sizes[:, None, :2]
    return local @ turn.transpose(0, 2, 1) + poses[:, None, :2]


def overlaps(poses: np.ndarray, sizes: np.ndarray, moving: np.ndarray) -> bool:
    """Whether two boxes of which one moves share ground.

    Args:
        poses: ``[n, 3]``.
        sizes: ``[n, 2]``.
        moving: ``[n]`` bool; two that stand still are not looked at.
    """
    apart = np.linalg.norm(poses[:, None, :2] - poses[None, :, :2], axis=-1)
    reach = np.linalg.norm(sizes, axis=1) / 2
    close = apart < reach[:, None] + reach[None]
    close &= moving[:, None] | moving[None]
    first, second = np.nonzero(np.triu(close, 1))
    if not len(first):
        return False
    shapes = corners(poses, sizes)
    a, b = shapes[first], shapes[second]
    return bool((~_separated(a, b) & ~_separated(b, a)).any())


def _separated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether an edge direction of ``a`` separates the pairs, ``[k]``."""
    out = np.zeros(len(a), dtype=bool)
    for edge in (0, 1):
        axis = a[:, edge + 1] - a[:, edge]
        on_a = np.einsum('kij,kj->ki', a, axis)
        on_b = np.einsum('kij,kj->ki', b, axis)
        out |= (on_a.max(1) < on_b.min(1)) | (on_b.max(1) < on_a.min(1))
    return out


def inside(
    points: np.ndarray, poses: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Counts the points in each box standing on the ground, ``[n]``.

    Args:
        points: ``[k, 3]`` metres.
        poses: ``[n, 3]`` x, y and yaw.
        sizes: ``[n, 3]`` length, width, height.
    """
    counts = np.zeros(len(poses), dtype=int)
    for i, (x, y, yaw) in enumerate(poses):
        away = points[:, :2] - (x, y)
        along = away @ (np.cos(yaw), np.sin(yaw))
        aside = away @ (-np.sin(yaw), np.cos(yaw))
        length, width, height = sizes[i] / 2
        hit = (np.abs(along) <= length) & (np.abs(aside) <= width)
        hit &= np.abs(points[:, 2] - height) <= height
        counts[i] = hit.sum()
    return counts
