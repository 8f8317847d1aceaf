"""Homogeneous matrices."""

from collections.abc import Sequence

import numpy as np


def as_4x4(matrix: Sequence) -> np.ndarray:
    """Returns a 3x3, 3x4 or 4x4 matrix as a homogeneous 4x4 one, float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    rows, columns = matrix.shape
    wide = np.pad(matrix, ((0, 0), (0, 4 - columns)))
    return np.vstack((wide, np.eye(4)[rows:]))
