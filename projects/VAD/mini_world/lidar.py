"""Casts the rays of a 32-beam LiDAR at the ground and at boxes."""

import numpy as np

BEAMS, COLUMNS = 32, 360
LOWEST, HIGHEST = np.radians(-30.0), np.radians(10.0)
RANGE = 70.0
# Points are moved this far behind the surface they hit, so that rounding
# cannot place them outside of the box.
DEPTH = 0.02


def sweep(
    ego: np.ndarray, height: float, ahead: float, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of one turn in the frame of the LiDAR.

    Args:
        ego: Pose ``[3]`` of the car.
        height: Of the LiDAR above the ground.
        ahead: How far it sits before the origin of the car's frame.
        boxes: ``[n, 6]`` x, y of the middle, yaw, length, width, height.

    Returns:
        ``[k, 5]`` float32: x to the right, y forward, z up, intensity, ring;
        and ``[k]`` the index of the box that was hit, -1 for the ground.
    """
    azimuth = 2 * np.pi * np.arange(COLUMNS) / COLUMNS
    slope = np.tan(np.linspace(LOWEST, HIGHEST, BEAMS))
    forward = np.array([np.cos(ego[2]), np.sin(ego[2])])
    origin = ego[:2] + ahead * forward
    heading = azimuth + ego[2]
    rays = np.stack([np.cos(heading), np.sin(heading)], 1)
    enter, leave = _crossed(origin, rays, boxes)
    reach, hit = _first_hit(enter, leave, slope, height, boxes[:, 5])
    down = np.where(slope < 0, -height / np.minimum(slope, -1e-6), np.inf)
    ground = np.broadcast_to(down, reach.shape)
    on_ground = ground < reach
    reach = np.where(on_ground, ground, reach)
    hit[on_ground] = -1
    column, ring = np.nonzero(reach < RANGE)
    distance, hit = reach[column, ring], hit[column, ring]
    tops = np.append(boxes[:, 5], np.inf)[hit] - height
    points = _points(distance, azimuth[column], slope[ring], tops, hit >= 0)
    intensity = np.where(hit < 0, 12.0, 30.0 + 7.0 * (hit % 8))
    points = np.c_[points, intensity, ring]
    return points.astype(np.float32), hit


def _points(
    distance: np.ndarray,
    turn: np.ndarray,
    slope: np.ndarray,
    tops: np.ndarray,
    on_box: np.ndarray,
) -> np.ndarray:
    """Hits as ``[k, 3]``, those on boxes a little inside."""
    z = distance * slope
    # A ray that comes down on a roof goes in from above.
    on_roof = z > tops - 1e-6
    z = np.where(on_roof, tops - DEPTH, z)
    distance = distance + np.where(on_box & ~on_roof, DEPTH, 0.0)
    return np.stack([-distance * np.sin(turn), distance * np.cos(turn), z], 1)


def _crossed(
    origin: np.ndarray, rays: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each ray enters and leaves each footprint, ``[rays, n]``.

    Infinite where it misses.
    """
    cos, sin = np.cos(boxes[:, 2]), np.sin(boxes[:, 2])
    away = boxes[:, :2] - origin
    low = np.full((len(rays), len(boxes)), 0.0)
    high = np.full((len(rays), len(boxes)), np.inf)
    for axis, half in (
        (np.stack([cos, sin], 1), boxes[:, 3] / 2),
        (np.stack([-sin, cos], 1), boxes[:, 4] / 2),
    ):
        speed = rays @ axis.T
        speed = np.where(np.abs(speed) < 1e-9, 1e-9, speed)
        middle = (away * axis).sum(1)
        one, two = (middle - half) / speed, (middle + half) / speed
        low = np.maximum(low, np.minimum(one, two))
        high = np.minimum(high, np.maximum(one, two))
    missed = low >= high
    return np.where(missed, np.inf, low), np.where(missed, np.inf, high)


def _first_hit(
    enter: np.ndarray,
    leave: np.ndarray,
    slope: np.ndarray,
    height: float,
    tops: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest box and its index, ``[columns, beams]``."""
    reach = np.full((len(enter), len(slope)), np.inf)
    which = np.zeros(reach.shape, dtype=int)
    for box in np.flatnonzero(np.isfinite(enter).any(0)):
        rows = np.flatnonzero(enter[:, box] < RANGE)
        first = enter[rows, box, None]
        last = leave[rows, box, None]
        at_side = height + first * slope
        roof = (tops[box] - height) / np.minimum(slope, -1e-6)
        on_roof = (at_side > tops[box]) & (slope < 0) & (roof < last)
        at = np.where(on_roof, roof, first)
        met = on_roof | ((at_side <= tops[box]) & (at_side > 0))
        nearer = met & (at < reach[rows])
        reach[rows] = np.where(nearer, at, reach[rows])
        which[rows] = np.where(nearer, box, which[rows])
    return reach, which
