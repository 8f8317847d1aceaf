"""Displacement and collision of the ego plan, open loop.

The grid of the collision check has 200 x 200 cells of 0.5 m around the ego;
row 0 is at the front, column 0 at the left: row = 100 - 2 y, column =
100 + 2 x.
"""

from functools import cache

import numpy as np
from skimage.draw import polygon

from .rasterize import fill_convex

CELL = 0.5
CELLS = 200
ORIGIN = CELLS // 2
EGO_LENGTH, EGO_WIDTH, EGO_SHIFT = 4.084, 1.85, 0.5
STEPS_PER_SECOND = 2
HORIZONS = (1, 2, 3)
HUMANS = range(2, 9)
VEHICLES = range(14, 24)


def occupancy(
    boxes: np.ndarray, attributes: np.ndarray, num_steps: int = 6
) -> np.ndarray:
    """Returns the cells that agents occupy at each future step.

    Only vehicles and humans count, and only while their future is known.
    The shape of a box is rounded to whole cells.

    Args:
        boxes: ``[n, 9]``: x, y, z, w, l, h, yaw, vx, vy with the yaw of
            mmdet3d 0.17 (``box_convention.to_old``).
        attributes: ``[n, 34]``: future offsets 12, masks 6, goal 1, local
            features 9 (the last is the category), yaw steps 6.
        num_steps: Number of future steps.

    Returns:
        ``[num_steps, 200, 200]`` bool.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    attributes = np.asarray(attributes, dtype=np.float64)
    end = 3 * num_steps
    masks = attributes[:, 2 * num_steps : end]
    centers = attributes[:, : 2 * num_steps].reshape(-1, num_steps, 2)
    centers = boxes[:, None, :2] + centers.cumsum(axis=1)
    turns = attributes[:, end + 10 : end + 10 + num_steps].cumsum(axis=1)
    headings = turns - (boxes[:, 6:7] + np.pi / 2)
    grid = np.zeros((num_steps, CELLS, CELLS), np.uint8)
    for i, category in enumerate(attributes[:, end + 9].astype(int)):
        if category not in VEHICLES and category not in HUMANS:
            continue
        for step in np.flatnonzero(masks[i] == 1):
            corners = _corners(
                centers[i, step], headings[i, step], boxes[i, 4], boxes[i, 3]
            )
            fill_convex(grid[step], corners)
    return grid.astype(bool)


def box_hits(positions: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Returns at which steps the ego's box touches an occupied cell.

    The box is not turned with the plan; it is moved in parts of a cell and
    then truncated. What leaves the grid is moved to its border.

    Args:
        positions: ``[T, 2]`` of the ego, in metres.
        grid: ``[>= T, 200, 200]`` bool.

    Returns:
        ``[T]`` bool.
    """
    rows, columns = _ego_cells()
    moved = np.asarray(positions, dtype=np.float64) / CELL
    row = (CELLS - (rows + moved[:, 1:])).astype(np.int32)
    column = (columns + moved[:, :1]).astype(np.int32)
    row, column = row.clip(0, CELLS - 1), column.clip(0, CELLS - 1)
    step = np.arange(len(moved))[:, None]
    return grid[step, row, column].any(axis=1)


def center_hits(positions: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Returns the original's collision of the ego's centre alone.

    Its index uses half of the grid's offset, so that it looks about 25 m
    away from the ego. It is here for comparison with old logs only.

    Args:
        positions: ``[T, 2]`` of the ego, in metres.
        grid: ``[>= T, 200, 200]`` bool.

    Returns:
        ``[T]`` bool.
    """
    positions = np.asarray(positions, dtype=np.float64)
    offset = (ORIGIN * CELL - CELL / 2) / 2
    row = ((offset - positions[:, 1]) / CELL).astype(np.int64)
    column = ((offset + positions[:, 0]) / CELL).astype(np.int64)
    inside = (row >= 0) & (row < CELLS) & (column >= 0) & (column < CELLS)
    step = np.arange(len(positions))
    hit = grid[step, row.clip(0, CELLS - 1), column.clip(0, CELLS - 1)]
    return hit & inside


def planning_errors(
    plan: np.ndarray, truth: np.ndarray, grid: np.ndarray | None = None
) -> dict[str, float]:
    """Returns displacement and collision of one plan at 1, 2 and 3 s.

    ``avg`` is the mean over all steps up to that time (the table of VAD and
    ST-P3), ``at`` the value at that time (the table of UniAD). ``mean`` is
    the mean of the three horizons, the last column of both tables. Steps at
    which the true ego box collides as well do not count as collisions.

    Args:
        plan: ``[6, 2]`` predicted positions in metres.
        truth: ``[6, 2]`` true positions in metres.
        grid: ``[6, 200, 200]`` bool of ``occupancy``; without it collisions
            are left out.

    Returns:
        ``plan_L2_{avg,at}_{1s,2s,3s,mean}`` in metres, and as fractions
        ``plan_box_col_...`` and ``plan_center_col_...`` likewise.
    """
    plan = np.asarray(plan, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64)
    per_step = {'L2': np.linalg.norm(plan - truth, axis=-1)}
    if grid is not None:
        allowed = ~box_hits(truth, grid)
        per_step['box_col'] = box_hits(plan, grid) & allowed
        per_step['center_col'] = center_hits(plan, grid) & allowed
    errors = {}
    for name, values in per_step.items():
        for second in HORIZONS:
            steps = second * STEPS_PER_SECOND
            errors[f'plan_{name}_avg_{second}s'] = float(values[:steps].mean())
            errors[f'plan_{name}_at_{second}s'] = float(values[steps - 1])
        for form in ('avg', 'at'):
            each = [errors[f'plan_{name}_{form}_{k}s'] for k in HORIZONS]
            errors[f'plan_{name}_{form}_mean'] = float(np.mean(each))
    return errors


def _corners(
    center: np.ndarray, heading: float, length: float, width: float
) -> np.ndarray:
    """Corners of a box as (column, row) cells, ``[4, 2]`` int32."""
    cos, sin = np.cos(heading), np.sin(heading)
    along = np.array([1, -1, -1, 1]) * length / 2
    across = np.array([1, 1, -1, -1]) * width / 2
    x = center[0] + cos * along - sin * across
    y = center[1] + sin * along + cos * across
    cells = np.stack((ORIGIN + x / CELL, ORIGIN - y / CELL), axis=1)
    return np.round(cells).astype(np.int32)


@cache
def _ego_cells() -> tuple[np.ndarray, np.ndarray]:
    """Rows (counted from the rear) and columns of the ego at the origin."""
    front, side = EGO_LENGTH / 2, EGO_WIDTH / 2
    along = np.array([-front, front, front, -front]) + EGO_SHIFT
    across = np.array([side, side, -side, -side])
    first = ORIGIN - 0.5
    return polygon(along / CELL + first, across / CELL + first)
