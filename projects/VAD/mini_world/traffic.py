"""Moves vehicles and pedestrians through the town.

Vehicles follow the Intelligent Driver Model (Treiber et al., Physical
Review E 62, 2000) behind a leader and before a place to stop at, with a
bounded change of the acceleration. They book a junction before they enter
it and let pedestrians cross.
"""

from dataclasses import dataclass

import numpy as np

from projects.VAD.mini_world.paths import Path
from projects.VAD.mini_world.routes import STEP, Route
from projects.VAD.mini_world.town import Town

STEP_SECONDS = 0.1
MAX_ACCELERATION = 1.6
BRAKING = 1.6
HARD_BRAKING = 4.5
HEADWAY_SECONDS = 1.2
STANDING_GAP = 2.2
JERK_UP, JERK_DOWN = 2.0, 4.0
LOOK_AHEAD = np.arange(0.0, 34.0, 1.0)
# Two ways over a junction that come closer than this exclude each other.
CLEARANCE = 3.0
# Where a box is sampled along its length to be seen by those behind it.
BODY = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])


@dataclass
class Vehicle:
    """A driven vehicle; ``along`` is the route's metre of its middle."""

    kind: str
    size: tuple[float, float, float]
    paint: int
    route: Route
    along: float
    cruise: float
    speed: float = 0.0
    acceleration: float = 0.0

    def __post_init__(self) -> None:
        self.limit = self.route.limit(self.cruise)

    def poses(self, along: np.ndarray) -> np.ndarray:
        """Poses ``[n, 3]``: both axles stay on the route."""
        reach = 0.3 * self.size[0]
        rear = self.route.pose(along - reach)[..., :2]
        front = self.route.pose(along + reach)[..., :2]
        ahead = front - rear
        yaw = np.arctan2(ahead[..., 1], ahead[..., 0])
        return np.concatenate([(rear + front) / 2, yaw[..., None]], axis=-1)


@dataclass
class Walker:
    """A pedestrian on a path.

    Attributes:
        crossing: Index of the crossing it uses, None on a walkway.
        road: First and last metre of its path on the road.
    """

    size: tuple[float, float, float]
    paint: int
    path: Path
    pace: float
    along: float = 0.0
    start_time: float = -np.inf
    crossing: int | None = None
    road: tuple[float, float] = (0.0, 0.0)

    @property
    def is_at_road(self) -> bool:
        """Whether it is on the road or about to step onto it."""
        return self.road[0] - 1.3 <= self.along < self.road[1]

    def metres_to(self, place: np.ndarray) -> float:
        """How far ahead of it a place is, negative if it is past it."""
        x, y, yaw = self.path.at(self.along)
        away = place - (x, y)
        return float(away @ (np.cos(yaw), np.sin(yaw)))


class Traffic:
    """The state of all that moves; the first vehicle is the ego.

    Args:
        town: The town.
        vehicles: Vehicles at their starting places.
        walkers: Pedestrians at theirs.
        conflicts: Pairs of connectors that exclude each other.
    """

    def __init__(
        self,
        town: Town,
        vehicles: list[Vehicle],
        walkers: list[Walker],
        conflicts: set[tuple[int, int]],
    ) -> None:
        self.town = town
        self.vehicles = vehicles
        self.walkers = walkers
        self.conflicts = conflicts
        self.booked: dict[int, int] = {}
        self._sizes = np.array([v.size for v in vehicles])
        tables = [v.route.table for v in vehicles]
        longest = max(len(t) for t in tables)
        self._tables = np.stack(
            [
                np.pad(t, ((0, longest - len(t)), (0, 0)), mode='edge')
                for t in tables
            ]
        )

    def run(self, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Moves everything from one time to another.

        Returns:
            Metres along the route of each vehicle and along the line of each
            walker, ``[steps, vehicles]`` and ``[steps, walkers]``.
        """
        count = round((end - begin) / STEP_SECONDS) + 1
        driven = np.zeros((count, len(self.vehicles)))
        walked = np.zeros((count, len(self.walkers)))
        for i in range(count):
            driven[i] = [v.along for v in self.vehicles]
            walked[i] = [w.along for w in self.walkers]
            self._step(begin + i * STEP_SECONDS)
        return driven, walked

    def _step(self, time: float) -> None:
        gaps, speeds = self._leaders()
        self._release()
        wanted = []
        for i, vehicle in enumerate(self.vehicles):
            target = _follow(vehicle, gaps[i], speeds[i])
            for gap in self._stops(i, vehicle):
                target = min(target, _follow(vehicle, gap, 0.0, 0.8))
            wanted.append(target)
        for walker in self.walkers:
            self._walk(walker, time)
        for vehicle, target in zip(self.vehicles, wanted, strict=True):
            _drive(vehicle, target)

    def _leaders(self) -> tuple[np.ndarray, np.ndarray]:
        """Gap to the nearest thing on each vehicle's way, and its speed."""
        vehicles = self.vehicles
        along = np.array([v.along for v in vehicles])
        length, width = self._sizes[:, 0], self._sizes[:, 1]
        rear = self._poses(along - 0.3 * length)[:, :2]
        front = self._poses(along + 0.3 * length)[:, :2]
        facing = front - rear
        facing /= np.hypot(*facing.T)[:, None]
        body = ((rear + front) / 2)[:, None] + (
            BODY[None, :, None] * length[:, None, None] * facing[:, None]
        )
        body = body.reshape(-1, 2)
        owner = np.repeat(np.arange(len(vehicles)), len(BODY))
        half = np.repeat(width / 2, len(BODY))
        speed = np.array([v.speed for v in vehicles])
        moving = np.repeat(facing * speed[:, None], len(BODY), axis=0)
        ahead = self._poses((along + length / 2)[:, None] + LOOK_AHEAD)
        right = ahead[:, :, None, 0] - body[:, 0]
        up = ahead[:, :, None, 1] - body[:, 1]
        distance = right * right + up * up
        reach = width[:, None] / 2 + half + 0.4
        near = distance < (reach * reach)[:, None]
        near &= owner[None, None] != np.arange(len(vehicles))[:, None, None]
        gaps = np.full(len(vehicles), np.inf)
        speeds = np.zeros(len(vehicles))
        for i in np.flatnonzero(near.any((1, 2))):
            step = int(near[i].any(1).argmax())
            which = int(distance[i, step].argmin())
            yaw = ahead[i, step, 2]
            gaps[i] = LOOK_AHEAD[step]
            same_way = moving[which] @ (np.cos(yaw), np.sin(yaw))
            speeds[i] = max(0.0, same_way)
        return gaps, speeds

    def _poses(self, along: np.ndarray) -> np.ndarray:
        """Poses ``[vehicles, ..., 3]`` on each vehicle's own route."""
        place = np.clip(along / STEP, 0, self._tables.shape[1] - 1.001)
        index = place.astype(int)
        which = np.arange(len(index)).reshape(-1, *[1] * (index.ndim - 1))
        below = self._tables[which, index]
        above = self._tables[which, index + 1]
        return below + (place - index)[..., None] * (above - below)

    def _release(self) -> None:
        for i, way in list(self.booked.items()):
            vehicle = self.vehicles[i]
            rear = vehicle.along - vehicle.size[0] / 2
            for passage in vehicle.route.passages:
                if passage.connector == way and rear > passage.leave:
                    del self.booked[i]

    def _stops(self, index: int, vehicle: Vehicle) -> list[float]:
        """Gaps to the places where the vehicle has to stop now."""
        front = vehicle.along + vehicle.size[0] / 2
        braking = vehicle.speed**2 / (2 * HARD_BRAKING)
        stops = []
        for passage in vehicle.route.passages:
            gap = passage.stop - front
            if gap > 40 or self.booked.get(index) == passage.connector:
                continue
            if front > passage.enter + 1.0:
                continue
            near = gap < vehicle.speed**2 / (2 * BRAKING) + 6
            if near and self._book(index, passage.connector):
                continue
            if gap > braking - 0.5:
                stops.append(max(gap, 0.1))
            break
        for begin, _, crossing in vehicle.route.crossings:
            gap = begin - 1.0 - front
            if -0.7 < gap < 40 and gap > braking - 0.5:
                place = vehicle.route.pose(np.array(begin + 1.6))[:2]
                if self._must_yield(crossing, place):
                    stops.append(max(gap, 0.1))
        return stops

    def _book(self, index: int, way: int) -> bool:
        junction = self.town.connectors[way].junction
        for other, taken in self.booked.items():
            if other == index:
                return False
            if self.town.connectors[taken].junction != junction:
                continue
            if (way, taken) in self.conflicts:
                return False
        self.booked[index] = way
        return True

    def _must_yield(self, crossing: int, place: np.ndarray) -> bool:
        for walker in self.walkers:
            if walker.crossing != crossing or not walker.is_at_road:
                continue
            if walker.metres_to(place) > -2.4:
                return True
        return False

    def _walk(self, walker: Walker, time: float) -> None:
        if time < walker.start_time:
            return
        step = walker.pace * STEP_SECONDS
        kerb = walker.road[0] - 0.5
        steps_off = walker.along <= kerb < walker.along + step
        waits = walker.crossing is not None and steps_off
        if waits and not self._is_safe(walker.crossing):
            return
        walker.along = min(walker.along + step, walker.path.length)

    def _is_safe(self, crossing: int) -> bool:
        """Whether every vehicle on the way there can stop in comfort."""
        for vehicle in self.vehicles:
            for begin, end, number in vehicle.route.crossings:
                if number != crossing:
                    continue
                front = vehicle.along + vehicle.size[0] / 2
                rear = vehicle.along - vehicle.size[0] / 2
                needed = vehicle.speed**2 / (2 * 2.2) + 0.4 * vehicle.speed
                if front > begin - 1.0 - needed and rear < end + 0.5:
                    if front < begin and vehicle.speed < 0.3:
                        continue
                    return False
        return True


def _follow(
    vehicle: Vehicle, gap: float, speed: float, standing: float = STANDING_GAP
) -> float:
    """Acceleration by the Intelligent Driver Model, with bends as limits."""
    own = vehicle.speed
    ahead = vehicle.along + 0.4 * own
    limit = vehicle.limit[min(int(ahead / STEP), len(vehicle.limit) - 1)]
    target = max(-2.5, (limit - own) / 0.9)
    if gap < np.inf:
        closing = own * (own - speed)
        closing /= 2 * (MAX_ACCELERATION * BRAKING) ** 0.5
        wanted = standing + max(0.0, own * HEADWAY_SECONDS + closing)
        ratio = (own / vehicle.cruise) ** 4
        near = (wanted / max(gap, 0.1)) ** 2
        target = min(target, MAX_ACCELERATION * (1 - ratio - near))
    return float(min(max(target, -HARD_BRAKING), MAX_ACCELERATION))


def _drive(vehicle: Vehicle, target: float) -> None:
    change = target - vehicle.acceleration
    change = min(change, JERK_UP * STEP_SECONDS)
    change = max(change, -JERK_DOWN * STEP_SECONDS)
    vehicle.acceleration = float(vehicle.acceleration + change)
    before = vehicle.speed
    after = before + vehicle.acceleration * STEP_SECONDS
    if after <= 0:
        after = 0.0
        vehicle.acceleration = max(0.0, vehicle.acceleration)
    vehicle.speed = after
    vehicle.along += (before + after) / 2 * STEP_SECONDS


def conflicting_ways(town: Town) -> set[tuple[int, int]]:
    """Pairs of connectors that may not be driven at the same time."""
    points = [c.path.sample(1.0)[:, :2] for c in town.connectors]
    pairs = set()
    for i, a in enumerate(town.connectors):
        for j in range(i + 1, len(town.connectors)):
            b = town.connectors[j]
            if a.junction != b.junction or a.source == b.source:
                continue
            apart = points[i][:, None] - points[j][None]
            if (np.linalg.norm(apart, axis=-1) < CLEARANCE).any():
                pairs |= {(i, j), (j, i)}
    return pairs
