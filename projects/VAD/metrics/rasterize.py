"""Fills polygons in a grid the same way on every OpenCV.

``cv2.fillPoly`` changed its rounding within version 4, by single cells at
slanted edges. Collision rates are counted in these cells, so the rule of the
versions that the published numbers were made with is written down here.
"""

import cv2
import numpy as np

_ONE = 1 << 16
_HALF = _ONE >> 1


def fill_convex(grid: np.ndarray, corners: np.ndarray) -> None:
    """Sets the cells of a convex polygon to 1, in place.

    The cells are those between the edges in each row, in 16-bit fixed point
    and rounded half up, and those of the drawn outline.

    Args:
        grid: ``[rows, columns]`` uint8.
        corners: ``[k, 2]`` whole numbers (column, row), possibly outside.
    """
    corners = np.asarray(corners, dtype=np.int64)
    top, bottom = corners[:, 1].min(), corners[:, 1].max()
    left = np.full(bottom - top, np.iinfo(np.int64).max)
    right = np.full(bottom - top, np.iinfo(np.int64).min)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        upper, lower = (a, b) if a[1] <= b[1] else (b, a)
        height = lower[1] - upper[1]
        if height == 0:
            continue
        slope = int((lower[0] - upper[0]) * _ONE / height)
        x = upper[0] * _ONE + slope * np.arange(height) + _HALF
        rows = slice(upper[1] - top, lower[1] - top)
        left[rows] = np.minimum(left[rows], x)
        right[rows] = np.maximum(right[rows], x)
    first, last = np.clip([top, bottom], 0, grid.shape[0])
    inside = slice(first - top, last - top)
    column = np.arange(grid.shape[1])
    grid[first:last][
        (column >= left[inside, None] >> 16)
        & (column <= right[inside, None] >> 16)
    ] = 1
    cv2.polylines(grid, [corners.astype(np.int32)], True, 1)
