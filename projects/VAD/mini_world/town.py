"""A small town: a bent grid of streets with junctions and crossings.

Traffic keeps to the right. Metres, x to the east and y to the north.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from shapely import Polygon, box, intersects
from shapely.ops import unary_union

from projects.VAD.mini_world.paths import Path, Pose, connect

LANE_WIDTH = 3.6
# Lanes per direction and the strip beside them, metres.
KINDS = {
    'narrow': (1, 0.3),
    'parking': (1, 2.4),
    'wide': (2, 0.3),
    'avenue': (2, 2.4),
}
# How often each is built: where cars park there is something to see.
SHARES = (0.05, 0.5, 0.1, 0.35)
COLUMNS, ROWS = 14, 7
# Training scenes stay west of this column of junctions, validation scenes
# on it and east of it.
HELD_OUT_COLUMN = 10
SPACING = 64.0
# From the middle of a junction to where its streets begin.
JUNCTION_REACH = 13.0
BEND_RADIUS = 26.0
# Along the street, from the junction.
CROSSING_SPAN = (1.0, 4.2)
STOP_LINE = 5.2
MARGIN = 60.0
WALKWAY = 2.5


@dataclass(frozen=True)
class Lane:
    """One lane of a street, in driving direction.

    Attributes:
        street: Index of the street.
        forward: Whether it runs in the direction of the street's path.
        number: 0 is next to the middle of the street.
        source: Junction it comes from.
        target: Junction it leads to.
    """

    path: Path
    street: int
    forward: bool
    number: int
    source: int
    target: int


@dataclass(frozen=True)
class Connector:
    """A way over a junction, from lane to lane (indices)."""

    path: Path
    junction: int
    source: int
    target: int


@dataclass(frozen=True)
class Street:
    """A street between two junctions; the path is its middle."""

    path: Path
    kind: str
    source: int
    target: int

    @property
    def lanes(self) -> int:
        """Number of lanes per direction."""
        return KINDS[self.kind][0]

    @property
    def strip(self) -> float:
        """Width of what is beside the lanes."""
        return KINDS[self.kind][1]

    @property
    def has_parking(self) -> bool:
        """Whether a car can stand beside the lanes."""
        return self.strip > 2

    @property
    def half_width(self) -> float:
        """From the middle to the kerb."""
        return self.lanes * LANE_WIDTH + self.strip

    def band(
        self, left: float, right: float, begin: float, end: float
    ) -> np.ndarray:
        """Corners ``[4, 2]`` of a strip on a straight part of the street."""
        corners = [(begin, left), (begin, right), (end, right), (end, left)]
        return np.array([_beside(self.path.at(s), d) for s, d in corners])

    def end_points(self, pose: Pose) -> np.ndarray:
        """Where the kerbs and lane borders end, right to left, ``[k, 2]``.

        Args:
            pose: An end of the street's path, either way round.
        """
        inner = np.arange(-self.lanes, self.lanes + 1) * LANE_WIDTH
        across = [-self.half_width, *inner, self.half_width]
        return np.array([_beside(pose, left) for left in across])

    @property
    def outline(self) -> np.ndarray:
        """Points of the street's polygon, kerb to kerb.

        The corners of the lanes are among them and among those of the
        junctions: where polygons share an edge they share all its points.
        """
        half = self.half_width
        left = self.path.offset(half).outline()
        right = self.path.offset(-half).outline()
        begin = self.end_points(self.path.start)
        end = self.end_points(self.path.end)
        return np.concatenate([right[1:-1], end, left[-2:0:-1], begin[::-1]])


@dataclass(frozen=True)
class Crossing:
    """A pedestrian crossing at one end of a street."""

    street: int
    junction: int
    outline: np.ndarray

    @property
    def axis(self) -> np.ndarray:
        """The middle line from kerb to kerb, ``[2, 2]``."""
        a, b, c, d = self.outline
        return np.array([(a + d) / 2, (b + c) / 2])


@dataclass
class Town:
    """Streets, lanes and ways over junctions; see :func:`build_town`."""

    nodes: np.ndarray
    angle: float
    streets: list[Street]
    lanes: list[Lane] = field(default_factory=list)
    connectors: list[Connector] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)
    junction_outlines: list[np.ndarray] = field(default_factory=list)
    houses: list[tuple[np.ndarray, np.ndarray, float, int]] = field(
        default_factory=list
    )
    drivable: Polygon | None = None
    walkways: list[Polygon] = field(default_factory=list)
    size: tuple[float, float] = (0.0, 0.0)

    def ways_from(self, lane: int) -> list[int]:
        """Indices of the connectors that leave a lane."""
        return [i for i, c in enumerate(self.connectors) if c.source == lane]

    def is_held_out(self, node: int) -> bool:
        """Whether a junction belongs to the part kept for validation."""
        return node % COLUMNS >= HELD_OUT_COLUMN


def build_town(rng: np.random.Generator) -> Town:
    """Returns a town; the same state of ``rng`` gives the same one."""
    angle = float(rng.uniform(0.15, 0.45))
    nodes = _nodes(rng, angle)
    low = nodes.min(0) - MARGIN
    nodes = nodes - low
    town = Town(nodes, angle, _streets(rng, nodes, angle))
    top = nodes.max(0) + MARGIN
    town.size = (float(math.ceil(top[0])), float(math.ceil(top[1])))
    _add_lanes(town)
    _add_connectors(town)
    _add_crossings(town, rng)
    town.junction_outlines = [
        _junction_outline(town, node) for node in range(len(nodes))
    ]
    outlines = [street.outline for street in town.streets]
    shapes = [rounded(o) for o in outlines + town.junction_outlines]
    town.drivable = unary_union([Polygon(s) for s in shapes])
    ring = town.drivable.buffer(WALKWAY).difference(town.drivable)
    town.walkways = list(getattr(ring, 'geoms', [ring]))
    _add_houses(town, rng)
    return town


def rounded(points: np.ndarray) -> np.ndarray:
    """Points to a tenth of a millimetre.

    Polygons that share an edge then share its corners exactly, so that
    their union has no slit between them.
    """
    return np.round(points, 4)


def _nodes(rng: np.random.Generator, angle: float) -> np.ndarray:
    grid = np.array([(c, r) for r in range(ROWS) for c in range(COLUMNS)])
    places = grid * SPACING + rng.uniform(-3.2, 3.2, grid.shape)
    cos, sin = math.cos(angle), math.sin(angle)
    return places @ np.array([[cos, sin], [-sin, cos]])


def _streets(
    rng: np.random.Generator, nodes: np.ndarray, angle: float
) -> list[Street]:
    """Streets between neighbours; a few are left out for T-junctions."""
    edges = []
    for node in range(len(nodes)):
        column, row = node % COLUMNS, node // COLUMNS
        if column + 1 < COLUMNS:
            edges.append((node, node + 1, angle))
        if row + 1 < ROWS:
            edges.append((node, node + COLUMNS, angle + math.pi / 2))
    degree = np.zeros(len(nodes), dtype=int)
    for a, b, _ in edges:
        degree[[a, b]] += 1
    dropped = set()
    for i in rng.permutation(len(edges))[: len(edges) // 4]:
        a, b, _ = edges[i]
        if min(degree[a], degree[b]) > 3 - (i % 2):
            degree[[a, b]] -= 1
            dropped.add(int(i))
    kinds = rng.choice(list(KINDS), len(edges), p=SHARES)
    return [
        Street(_street_path(nodes[a], nodes[b], way), str(kinds[i]), a, b)
        for i, (a, b, way) in enumerate(edges)
        if i not in dropped
    ]


def _street_path(begin: np.ndarray, end: np.ndarray, heading: float) -> Path:
    """Straight, two opposite bends, straight: leaves both ends squarely."""
    cos, sin = math.cos(heading), math.sin(heading)
    dx, dy = end - begin
    ahead = cos * dx + sin * dy - 2 * JUNCTION_REACH
    left = cos * dy - sin * dx
    start = (
        begin[0] + cos * JUNCTION_REACH,
        begin[1] + sin * JUNCTION_REACH,
        heading,
    )
    angle = math.acos(1 - abs(left) / (2 * BEND_RADIUS))
    rest = (ahead - 2 * BEND_RADIUS * math.sin(angle)) / 2
    bend = math.copysign(1 / BEND_RADIUS, left)
    arc = BEND_RADIUS * angle
    pieces = ((rest, 0.0), (arc, bend), (arc, -bend), (rest, 0.0))
    return Path(start, pieces)


def _add_lanes(town: Town) -> None:
    for index, street in enumerate(town.streets):
        ends = (street.source, street.target)
        for forward in (True, False):
            middle = street.path if forward else street.path.reversed()
            source, target = ends if forward else ends[::-1]
            for number in range(street.lanes):
                path = middle.offset(-(number + 0.5) * LANE_WIDTH)
                town.lanes.append(
                    Lane(path, index, forward, number, source, target)
                )


def _add_connectors(town: Town) -> None:
    for i, lane in enumerate(town.lanes):
        ways = [
            (j, out, _turn(lane.path.end, out.path.start))
            for j, out in enumerate(town.lanes)
            if out.source == lane.target and out.street != lane.street
        ]
        chosen = [w for w in ways if _is_usual(town, lane, w[1], w[2])]
        if not chosen:
            last = town.streets[lane.street].lanes - 1
            chosen = [
                w
                for w in ways
                if w[1].number == lane.number
                or lane.number > town.streets[w[1].street].lanes - 1
                or (last == 0 and w[1].number == 0)
            ]
        for j, out, _ in chosen:
            path = connect(lane.path.end, out.path.start)
            town.connectors.append(Connector(path, lane.target, i, j))


def _is_usual(town: Town, lane: Lane, out: Lane, turn: int) -> bool:
    """Left from the inner lane, right from the outer one, else keep it."""
    outer = town.streets[lane.street].lanes - 1
    outer_out = town.streets[out.street].lanes - 1
    if turn > 0:
        return lane.number == 0 and out.number == 0
    if turn < 0:
        return lane.number == outer and out.number == outer_out
    return out.number == min(lane.number, outer_out)


def _turn(begin: Pose, end: Pose) -> int:
    """1 for left, -1 for right, 0 for straight on."""
    turn = math.remainder(end[2] - begin[2], 2 * math.pi)
    return round(turn / (math.pi / 2))


def _add_crossings(town: Town, rng: np.random.Generator) -> None:
    for index, street in enumerate(town.streets):
        half, length = street.half_width, street.path.length
        near, far = CROSSING_SPAN
        spans = {
            street.source: (near, far),
            street.target: (length - far, length - near),
        }
        for junction, (begin, end) in spans.items():
            if rng.random() < 0.65:
                outline = street.band(half, -half, begin, end)
                town.crossings.append(Crossing(index, junction, outline))


def _junction_outline(town: Town, node: int) -> np.ndarray:
    """The arms' ends, joined by rounded kerbs, counter-clockwise."""
    arms = []
    for street in town.streets:
        if street.source == node:
            arms.append((street.path.start, street))
        elif street.target == node:
            x, y, heading = street.path.end
            arms.append(((x, y, heading + math.pi), street))
    arms.sort(key=lambda arm: arm[0][2] % (2 * math.pi))
    points = []
    for i, (pose, street) in enumerate(arms):
        after, following = arms[(i + 1) % len(arms)]
        points += list(street.end_points(pose))
        left, right = points[-1], _beside(after, -following.half_width)
        gap = (after[2] - pose[2]) % (2 * math.pi)
        if abs(gap - math.pi) > 0.1:
            points += _rounded_corner(left, pose[2], right, after[2])
    return np.array(points)


def _rounded_corner(
    begin: np.ndarray, heading: float, end: np.ndarray, other: float
) -> list[np.ndarray]:
    """A quadratic curve whose control point is where the kerbs would meet."""
    a = np.array([math.cos(heading), math.sin(heading)])
    b = np.array([math.cos(other), math.sin(other)])
    along = np.linalg.solve(np.stack([a, -b], 1), end - begin)
    corner = begin + along[0] * a
    return [
        (1 - t) ** 2 * begin + 2 * t * (1 - t) * corner + t * t * end
        for t in np.linspace(0, 1, 7)[1:-1]
    ]


def _beside(pose: Pose, left: float) -> np.ndarray:
    x, y, heading = pose
    return np.array(
        [x - left * math.sin(heading), y + left * math.cos(heading)]
    )


def _add_houses(town: Town, rng: np.random.Generator) -> None:
    """Houses along the streets: centre, size (l, w, h), yaw, paint."""
    free = town.drivable.buffer(WALKWAY + 0.5)
    taken: list[Polygon] = []
    for street in town.streets:
        for side in (-1, 1):
            along = float(rng.uniform(0, 6))
            while along < street.path.length:
                size = rng.uniform((8, 7, 4), (14, 10, 11))
                away = street.half_width + WALKWAY + 1.5 + size[1] / 2
                pose = street.path.at(along + size[0] / 2)
                centre = _beside(pose, side * away)
                shape = footprint(centre, size, pose[2])
                along += size[0] + rng.uniform(1.5, 6)
                paint = int(rng.integers(5))
                if shape.intersects(free) or intersects(shape, taken).any():
                    continue
                taken.append(shape)
                town.houses.append((centre, size, pose[2], paint))


def footprint(centre: np.ndarray, size: np.ndarray, yaw: float) -> Polygon:
    """The rectangle a box stands on; ``size`` is length, width, ..."""
    half = np.asarray(size[:2]) / 2
    corners = np.array(box(-1, -1, 1, 1).exterior.coords[:4]) * half
    cos, sin = math.cos(yaw), math.sin(yaw)
    return Polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + centre)
