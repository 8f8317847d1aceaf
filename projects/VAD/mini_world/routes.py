"""Ways through the town: where a vehicle drives, how fast, where it waits."""

import math
from dataclasses import dataclass

import numpy as np

from projects.VAD.mini_world.paths import Path, smoothed
from projects.VAD.mini_world.town import CROSSING_SPAN, STOP_LINE, Town

STEP = 0.25
SMOOTHING = 1.4 / STEP
LATERAL_ACCELERATION = 2.4
COMFORTABLE_BRAKING = 1.4


@dataclass(frozen=True)
class Passage:
    """A junction on a route, in metres along it."""

    stop: float
    enter: float
    leave: float
    connector: int


@dataclass
class Route:
    """A driven line with what the driver has to heed on it.

    Attributes:
        lanes: Indices of the lanes.
        along: ``[n]`` metres from the start, ``STEP`` apart.
        xy: ``[n, 2]``.
        heading: ``[n]`` radians, without jumps.
        curvature: ``[n]`` 1/m, to the left.
        passages: Junctions in order.
        crossings: (begin, end, index of the crossing), in order.
    """

    lanes: list[int]
    along: np.ndarray
    xy: np.ndarray
    heading: np.ndarray
    curvature: np.ndarray
    passages: list[Passage]
    crossings: list[tuple[float, float, int]]

    def limit(self, cruise: float) -> np.ndarray:
        """The greatest speed at each point from which every bend is reached
        with comfortable braking, ``[n]``."""
        bend = np.maximum(np.abs(self.curvature), 1e-4)
        speed = np.minimum(cruise, np.sqrt(LATERAL_ACCELERATION / bend))
        gain = 2 * COMFORTABLE_BRAKING * np.diff(self.along)
        for i in range(len(speed) - 2, -1, -1):
            reachable = math.sqrt(speed[i + 1] ** 2 + gain[i])
            speed[i] = min(speed[i], reachable)
        return speed

    def __post_init__(self) -> None:
        self.table = np.c_[self.xy, self.heading]

    def pose(self, along: np.ndarray) -> np.ndarray:
        """Poses ``[..., 3]`` after so many metres."""
        place = np.clip(np.asarray(along) / STEP, 0, len(self.table) - 1.001)
        index = place.astype(int)
        share = (place - index)[..., None]
        below, above = self.table[index], self.table[index + 1]
        return below + share * (above - below)


def choose_lanes(
    town: Town,
    rng: np.random.Generator,
    lane: int,
    length: float,
    allowed: frozenset[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Returns a random drive as lanes and the connectors between them.

    Args:
        town: The town.
        rng: Source of the choice at each junction.
        lane: Index of the first lane.
        length: Metres at least.
        allowed: Junctions that may be driven to; all by default.
    """
    lanes, ways = [lane], []
    done = town.lanes[lane].path.length
    while done < length:
        options = [
            i
            for i in town.ways_from(lanes[-1])
            if allowed is None
            or town.lanes[town.connectors[i].target].target in allowed
        ]
        if not options:
            break
        way = int(rng.choice(options))
        ways.append(way)
        lanes.append(town.connectors[way].target)
        done += town.connectors[way].path.length
        done += town.lanes[lanes[-1]].path.length
    return lanes, ways


def plan_route(town: Town, lanes: list[int], ways: list[int]) -> Route:
    """Returns the route over these lanes and connectors."""
    parts = []
    for i, lane in enumerate(lanes):
        parts.append(town.lanes[lane].path)
        if i < len(ways):
            parts.append(town.connectors[ways[i]].path)
    pieces = tuple(piece for part in parts for piece in part.pieces)
    exact = Path(parts[0].start, pieces).sample(STEP)
    xy = smoothed(exact, SMOOTHING)
    steps = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    driven = np.concatenate(([0.0], np.cumsum(steps)))
    along = np.arange(0.0, driven[-1], STEP)
    xy = np.stack([np.interp(along, driven, axis) for axis in xy.T], 1)
    tangent = np.gradient(xy, along, axis=0)
    heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    curvature = np.gradient(heading, along)
    ends = np.cumsum([part.length for part in parts])
    # Smoothing cuts bends by centimetres: marks move with their samples.
    ends = np.interp(ends, np.linspace(0, ends[-1], len(driven)), driven)
    begins = np.concatenate(([0.0], ends[:-1]))
    passages, crossings = [], []
    for i, way in enumerate(ways):
        enter, leave = begins[2 * i + 1], ends[2 * i + 1]
        incoming = town.lanes[lanes[i]]
        passages.append(Passage(enter - STOP_LINE, enter, leave, way))
        before = _crossing(town, incoming.street, incoming.target)
        if before is not None:
            near, far = CROSSING_SPAN
            crossings.append((enter - far, enter - near, before))
        outgoing = town.lanes[lanes[i + 1]]
        after = _crossing(town, outgoing.street, outgoing.source)
        if after is not None:
            near, far = CROSSING_SPAN
            crossings.append((leave + near, leave + far, after))
    return Route(lanes, along, xy, heading, curvature, passages, crossings)


def _crossing(town: Town, street: int, junction: int) -> int | None:
    for i, crossing in enumerate(town.crossings):
        if (crossing.street, crossing.junction) == (street, junction):
            return i
    return None
