"""Chooses who takes part in a scene and what stands around."""

import math

import numpy as np

from projects.VAD.mini_world.motion import EGO_SIZE
from projects.VAD.mini_world.paths import Path
from projects.VAD.mini_world.routes import Route, choose_lanes, plan_route
from projects.VAD.mini_world.solids import SIZES
from projects.VAD.mini_world.town import WALKWAY, Town
from projects.VAD.mini_world.tracks import WARM_UP, Track
from projects.VAD.mini_world.traffic import STEP_SECONDS, Vehicle, Walker

PAINTS = 6
DRIVEN = ('car', 'truck', 'bus', 'motorcycle', 'bicycle')
DRIVEN_SHARE = (0.66, 0.12, 0.08, 0.07, 0.07)
PARKED = ('car', 'truck', 'construction_vehicle', 'trailer')
PARKED_SHARE = (0.82, 0.07, 0.055, 0.055)
# Nobody parks between the junction and this metre of a street.
PARKED_FROM = 6.5
CRUISE = dict(bicycle=4.2, bus=6.5, truck=6.5)


def draw_ego(
    town: Town, rng: np.random.Generator, allowed: frozenset[int]
) -> Vehicle | None:
    """The ego on a drive with a turn, None if the drawn one is no good."""
    lanes = [
        i
        for i, lane in enumerate(town.lanes)
        if {lane.source, lane.target} <= allowed
    ]
    lane = int(rng.choice(lanes))
    chosen, ways = choose_lanes(town, rng, lane, 300.0, allowed)
    turns = [
        abs(sum(n * k for n, k in town.connectors[way].path.pieces)) > 1
        for way in ways[:2]
    ]
    route = plan_route(town, chosen, ways)
    if not any(turns) or route.along[-1] < 280:
        return None
    cruise = float(rng.uniform(7.0, 9.0))
    along = float(rng.uniform(4.0, 16.0))
    return Vehicle('car', EGO_SIZE, 0, route, along, cruise, 0.8 * cruise)


def draw_vehicles(
    town: Town, rng: np.random.Generator, ego: Vehicle, way: np.ndarray
) -> list[Vehicle]:
    """Others on the lanes around; often a slower one ahead of the ego."""
    vehicles = []
    if rng.random() < 0.65:
        lead = _new_vehicle(rng, ego.route, ego.along + rng.uniform(15, 24))
        lead.cruise = min(lead.cruise, float(rng.uniform(4.5, 7.0)))
        vehicles.append(_started(lead))
    for index in rng.permutation(len(town.lanes)):
        path = town.lanes[index].path
        middle = np.array(path.at(path.length / 2)[:2])
        away = np.linalg.norm(way - middle, axis=1).min()
        if away > 55 or rng.random() < 0.4 or len(vehicles) > 13:
            continue
        lanes, ways = choose_lanes(town, rng, int(index), 280.0)
        route = plan_route(town, lanes, ways)
        along = float(rng.uniform(7, path.length - 9))
        place = route.pose(np.array(along))[:2]
        others = [ego, *vehicles]
        apart = [v.route.pose(np.array(v.along))[:2] - place for v in others]
        if route.along[-1] < 270 or np.linalg.norm(apart, axis=1).min() < 14:
            continue
        vehicles.append(_new_vehicle(rng, route, along))
    return vehicles


def _new_vehicle(
    rng: np.random.Generator, route: Route, along: float
) -> Vehicle:
    kind = str(rng.choice(DRIVEN, p=DRIVEN_SHARE))
    cruise = CRUISE.get(kind, 7.5) * float(rng.uniform(0.85, 1.15))
    paint = int(rng.integers(PAINTS))
    size = _size(rng, kind)
    return _started(Vehicle(kind, size, paint, route, along, cruise))


def _started(vehicle: Vehicle) -> Vehicle:
    vehicle.__post_init__()
    limit = np.interp(vehicle.along, vehicle.route.along, vehicle.limit)
    vehicle.speed = float(0.8 * limit)
    return vehicle


def _size(rng: np.random.Generator, kind: str) -> tuple[float, float, float]:
    scale = rng.uniform(0.94, 1.06)
    # The tables keep these digits.
    length, width, height = (round(n * scale, 4) for n in SIZES[kind])
    return length, width, height


def _near(street_path: Path, way: np.ndarray, reach: float = 55.0) -> bool:
    middle = np.array(street_path.at(street_path.length / 2)[:2])
    return bool(np.linalg.norm(way - middle, axis=1).min() < reach)


def draw_strollers(
    town: Town, rng: np.random.Generator, way: np.ndarray
) -> list[Walker]:
    walkers = []
    for street in town.streets:
        if not _near(street.path, way):
            continue
        for side in (-1, 1):
            if rng.random() < 0.6:
                continue
            away = street.half_width + rng.uniform(0.9, 1.9)
            path = street.path.offset(side * away)
            if rng.random() < 0.5:
                path = path.reversed()
            along = float(rng.uniform(0.0, 0.6 * path.length))
            walkers.append(_new_walker(rng, path, along))
    return walkers


def _new_walker(
    rng: np.random.Generator, path: Path, along: float = 0.0
) -> Walker:
    pace = float(rng.uniform(1.1, 1.6))
    paint = int(rng.integers(PAINTS))
    return Walker(_size(rng, 'pedestrian'), paint, path, pace, along)


def draw_crossers(
    town: Town, rng: np.random.Generator, ego: Vehicle, driven: np.ndarray
) -> list[Walker]:
    """Pedestrians who reach the kerb shortly before the ego would come."""
    walkers = []
    for begin, _, number in ego.route.crossings:
        if begin < driven[0] + 12 or begin > driven[-1]:
            continue
        step = int(np.searchsorted(driven, begin - EGO_SIZE[0] / 2))
        arrival = WARM_UP + step * STEP_SECONDS
        if arrival < 1.0 or rng.random() < 0.45:
            continue
        half = town.streets[town.crossings[number].street].half_width
        for i in range(int(rng.integers(1, 3))):
            path = _crossing_path(town, number, rng.random() < 0.5)
            path = path.offset(float(rng.uniform(-0.3, 0.3)) + 0.9 * i)
            walker = _new_walker(rng, path)
            walker.crossing = number
            walker.road = (WALKWAY - 0.3, WALKWAY - 0.3 + 2 * half)
            walker.start_time = arrival - float(rng.uniform(3.0, 5.0)) + i
            walkers.append(walker)
    return walkers


def _crossing_path(town: Town, number: int, reverse: bool) -> Path:
    begin, end = town.crossings[number].axis
    if reverse:
        begin, end = end, begin
    way = end - begin
    heading = math.atan2(way[1], way[0])
    before = (WALKWAY - 0.3) * way / np.linalg.norm(way)
    start = (*(begin - before), heading)
    length = float(np.linalg.norm(way)) + 2 * (WALKWAY - 0.3)
    return Path(start, ((length, 0.0),))


def draw_statics(
    town: Town, rng: np.random.Generator, way: np.ndarray
) -> list[Track]:
    """Parked vehicles and building sites on the strips beside the lanes."""
    tracks = []
    for street in town.streets:
        for side in (-1, 1):
            middle = street.path if side < 0 else street.path.reversed()
            if not _near(street.path, way):
                continue
            if street.has_parking:
                lane = middle.offset(-(street.half_width - 1.2))
                site = rng.random() < 0.12
                tracks += (_site if site else _parked)(rng, lane)
            elif rng.random() < 0.15:
                lane = middle.offset(-(street.half_width + 0.6))
                tracks += _barriers(rng, lane)
    return tracks


def _parked(rng: np.random.Generator, lane: Path) -> list[Track]:
    tracks = []
    along = PARKED_FROM
    while along < lane.length - PARKED_FROM:
        kind = str(rng.choice(PARKED, p=PARKED_SHARE))
        size = _size(rng, kind)
        room = size[0] + 1.0
        if rng.random() < 0.9 and along + room < lane.length - PARKED_FROM:
            tracks.append(_static(rng, lane, along + room / 2, kind, size))
        along += room
    return tracks


def _site(rng: np.random.Generator, lane: Path) -> list[Track]:
    """A row of cones around barriers."""
    begin = float(rng.uniform(9.0, 14.0))
    tracks = []
    for i in range(int(rng.integers(4, 6))):
        kind = 'barrier' if i in (2, 3) else 'traffic_cone'
        size = _size(rng, kind)
        along = begin + 2.4 * i
        if along < lane.length - 8:
            tracks.append(_static(rng, lane, along, kind, size))
    return tracks


def _barriers(rng: np.random.Generator, lane: Path) -> list[Track]:
    along = float(rng.uniform(7.0, lane.length - 10.0))
    tracks = []
    for i in range(2):
        size = _size(rng, 'barrier')
        track = _static(rng, lane, along + 2.4 * i, 'barrier', size)
        track.poses[:, 2] += math.pi / 2
        tracks.append(track)
    return tracks


def _static(
    rng: np.random.Generator,
    lane: Path,
    along: float,
    kind: str,
    size: tuple[float, float, float],
) -> Track:
    poses = np.array([lane.at(along)] * 2)
    paint = int(rng.integers(PAINTS))
    return Track(kind, size, paint, poses, np.zeros(2), parked=True)
