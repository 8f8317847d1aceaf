"""Map ground truth as polylines, and as targets of the map branch.

Everything is in the LiDAR frame, in metres, x to the right and y forward.
Polygons become lines the way the paper's map format (HD map construction as
in MapTR, Liao et al., ICLR 2023) wants them: the outline of the union, cut
by a box around the region.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from shapely import LinearRing, LineString, Polygon, box
from shapely.ops import linemerge, unary_union

REGION = (30.0, 60.0)
CROSSING_MARGIN = 0.2
BOUNDARY_MARGIN = -0.2
PADDING = -10000.0


def crossing_lines(
    crossings: Iterable[Polygon], region: Sequence[float] = REGION
) -> list[np.ndarray]:
    """Returns the outlines of pedestrian crossings.

    Args:
        crossings: Polygons; touching ones are joined.
        region: Size of the region in x and y. Outlines are cut 0.2 m outside
            of it.

    Returns:
        Lines ``[k, 2]``; one that is not cut is closed (first point = last).
    """
    return _outlines(crossings, region, CROSSING_MARGIN)


def boundary_lines(
    roads: Iterable[Polygon],
    lanes: Iterable[Polygon],
    region: Sequence[float] = REGION,
) -> list[np.ndarray]:
    """Returns the borders of the drivable area.

    Args:
        roads: Polygons of road segments.
        lanes: Polygons of lanes.
        region: Size of the region in x and y. Borders are cut 0.2 m inside
            of it, so that the edge of the patch is no border.

    Returns:
        Lines ``[k, 2]``; one that is not cut is closed (first point = last).
    """
    area = unary_union([unary_union(list(roads)), unary_union(list(lanes))])
    return _outlines([area], region, BOUNDARY_MARGIN)


def sample_line(line: np.ndarray, num_points: int = 20) -> np.ndarray:
    """Returns equidistant points along a polyline, both ends included.

    Args:
        line: ``[k, 2]`` with at least two points.
        num_points: Number of points to return.

    Returns:
        ``[num_points, 2]`` float64.
    """
    line = np.asarray(line, dtype=np.float64)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate(([0.0], np.cumsum(steps)))
    where = np.linspace(0.0, along[-1], num_points)
    return np.stack([np.interp(where, along, axis) for axis in line.T], axis=1)


def line_targets(
    lines: Sequence[np.ndarray],
    labels: Sequence[int],
    region: Sequence[float] = REGION,
    num_points: int = 20,
    max_orders: int = 19,
) -> dict[str, np.ndarray]:
    """Returns what the map branch learns from polylines ("v2" orders).

    An open line may be predicted from either end. A closed one may start at
    each of its vertices, in its own direction; where it has more than
    ``max_orders`` vertices, random ones are drawn from numpy's generator.

    Args:
        lines: M polylines ``[k, 2]``.
        labels: M classes (0 divider, 1 crossing, 2 boundary).
        region: Size of the region in x and y; points are clamped to it.
        num_points: Points per line.
        max_orders: Room for the equivalent orders of the points.

    Returns:
        ``labels [M]`` int64 and, as float32, ``bboxes [M, 4]`` (x1, y1, x2,
        y2), ``pts [M, num_points, 2]``, ``shift_pts [M, max_orders,
        num_points, 2]``, padded with -10000.

    Raises:
        ValueError: If the numbers of lines and labels differ, or a line has
            fewer than two points.
    """
    if len(lines) != len(labels):
        raise ValueError(
            f'{len(lines)} map lines came with {len(labels)} labels; give '
            'one label per line'
        )
    half = np.asarray(region, dtype=np.float64) / 2
    count = len(lines)
    bboxes = np.zeros((count, 4), np.float32)
    pts = np.zeros((count, num_points, 2), np.float32)
    shifts = np.full(
        (count, max_orders, num_points, 2), PADDING, dtype=np.float32
    )
    for i, line in enumerate(lines):
        line = _checked(line, i)
        bounds = np.concatenate((line.min(axis=0), line.max(axis=0)))
        bboxes[i] = np.clip(bounds, -np.tile(half, 2), np.tile(half, 2))
        pts[i] = np.clip(sample_line(line, num_points), -half, half)
        orders = _orders(line, num_points)
        if len(orders) > max_orders:
            drawn = np.random.choice(len(orders), max_orders, replace=False)
            orders = orders[drawn]
        shifts[i, : len(orders)] = np.clip(orders, -half, half)
    return dict(
        labels=np.asarray(labels, dtype=np.int64).reshape(count),
        bboxes=bboxes,
        pts=pts,
        shift_pts=shifts,
    )


def _checked(line: np.ndarray, index: int) -> np.ndarray:
    line = np.asarray(line, dtype=np.float64)
    if line.ndim != 2 or line.shape[1] != 2 or len(line) < 2:
        raise ValueError(
            f'map line {index} has the shape {line.shape}; a line needs at '
            'least two points of two numbers'
        )
    return line


def _orders(line: np.ndarray, num_points: int) -> np.ndarray:
    """Returns the equivalent orders, ``[orders, num_points, 2]``."""
    if not np.array_equal(line[0], line[-1]):
        points = sample_line(line, num_points)
        return np.stack((points, points[::-1]))
    ring = line[:-1]
    starts = (np.roll(ring, shift, axis=0) for shift in range(len(ring)))
    return np.stack(
        [sample_line(np.vstack((s, s[:1])), num_points) for s in starts]
    )


def _outlines(
    polygons: Iterable[Polygon], region: Sequence[float], margin: float
) -> list[np.ndarray]:
    half_x, half_y = region[0] / 2 + margin, region[1] / 2 + margin
    patch = box(-half_x, -half_y, half_x, half_y)
    union = unary_union(list(polygons))
    parts = [
        part
        for part in getattr(union, 'geoms', [union])
        if isinstance(part, Polygon) and not part.is_empty
    ]
    rings = [_turned(part.exterior, ccw=False) for part in parts]
    rings += [
        _turned(hole, ccw=True) for part in parts for hole in part.interiors
    ]
    return [line for ring in rings for line in _cut(ring, patch)]


def _turned(ring: LinearRing, ccw: bool) -> LinearRing:
    return ring if ring.is_ccw == ccw else LinearRing(ring.coords[::-1])


def _cut(ring: LinearRing, patch: Polygon) -> list[np.ndarray]:
    """Returns the pieces of a ring inside a box, joined at its start."""
    pieces = ring.intersection(patch)
    if pieces.geom_type in ('MultiLineString', 'GeometryCollection'):
        lines = [p for p in pieces.geoms if isinstance(p, LineString)]
        pieces = linemerge(lines)
    return [
        np.asarray(piece.coords)
        for piece in getattr(pieces, 'geoms', [pieces])
        if isinstance(piece, LineString) and not piece.is_empty
    ]
