"""Composes scenes: a drive of the ego and what else is on the streets.

A scene is drawn until it is worth learning from: the ego turns, brakes for
a reason and drives on, and nothing touches anything. A moment, a few frames
of a drive, only has to be free of collisions.
"""

import math
from dataclasses import dataclass

import numpy as np

from projects.VAD.mini_world.boxes import overlaps
from projects.VAD.mini_world.cast import (
    draw_crossers,
    draw_ego,
    draw_statics,
    draw_strollers,
    draw_vehicles,
)
from projects.VAD.mini_world.motion import (
    EGO_MIDDLE,
    EGO_SIZE,
    RATE,
    Motion,
    ego_motion,
)
from projects.VAD.mini_world.routes import Route
from projects.VAD.mini_world.town import Town
from projects.VAD.mini_world.tracks import (
    AFTER,
    BEGIN,
    FRAME_SECONDS,
    FRAMES,
    WARM_UP,
    Track,
    vehicle_track,
    walker_track,
)
from projects.VAD.mini_world.traffic import STEP_SECONDS, Traffic, Vehicle

REACH = 60.0
MAX_TRIES = 200


@dataclass
class Scene:
    """A drive, and all that moves or stands around it."""

    route: Route
    motion: Motion
    tracks: list[Track]


def compose_scene(
    town: Town,
    conflicts: set[tuple[int, int]],
    rng: np.random.Generator,
    held_out: bool,
) -> Scene:
    """Returns a scene in which the ego turns, brakes and drives on.

    Args:
        town: The town.
        conflicts: Pairs of connectors that exclude each other.
        rng: Source of all choices.
        held_out: Whether it takes place in the part of the town that is kept
            for validation.

    Raises:
        ValueError: If no attempt was worth it.
    """
    nodes = range(len(town.nodes))
    allowed = frozenset(n for n in nodes if town.is_held_out(n) == held_out)
    for _ in range(MAX_TRIES):
        scene = _attempt(town, conflicts, rng, allowed, FRAMES, eventful=True)
        if scene is not None:
            return scene
    raise ValueError(
        f'none of {MAX_TRIES} drives was free of collisions with a turn and '
        'a stop in it; choose another --seed'
    )


def compose_moment(
    town: Town,
    conflicts: set[tuple[int, int]],
    rng: np.random.Generator,
    frames: int,
) -> Scene:
    """Returns a few frames of any drive; much quicker than a scene.

    Args:
        town: The town.
        conflicts: Pairs of connectors that exclude each other.
        rng: Source of all choices.
        frames: Number of key frames.

    Raises:
        ValueError: If every attempt had a collision or nothing to see.
    """
    allowed = frozenset(range(len(town.nodes)))
    for _ in range(MAX_TRIES):
        scene = _attempt(town, conflicts, rng, allowed, frames, eventful=False)
        if scene is not None:
            return scene
    raise ValueError(
        f'none of {MAX_TRIES} drives was free of collisions with something '
        'to see; choose another --seed'
    )


def _attempt(
    town: Town,
    conflicts: set[tuple[int, int]],
    rng: np.random.Generator,
    allowed: frozenset[int],
    frames: int,
    eventful: bool,
) -> Scene | None:
    end = frames * FRAME_SECONDS + AFTER
    ego = draw_ego(town, rng, allowed)
    if ego is None:
        return None
    # First without the others, which is a hundredth of the work.
    driven, _ = Traffic(town, [_copy(ego)], [], conflicts).run(WARM_UP, end)
    hoped_for = ego_motion(ego.route, WARM_UP, driven[:, 0])
    if eventful and not _could_be_worth_it(hoped_for):
        return None
    way = ego.route.pose(np.arange(0.0, 150.0, 5.0))[:, :2]
    vehicles = [ego, *draw_vehicles(town, rng, ego, way)]
    walkers = draw_strollers(town, rng, way)
    walkers += draw_crossers(town, rng, ego, driven[:, 0])
    standing = draw_statics(town, rng, way)
    traffic = Traffic(town, vehicles, walkers, conflicts)
    driven, walked = traffic.run(WARM_UP, end)
    skip = round((BEGIN - WARM_UP) / STEP_SECONDS)
    driven, walked = driven[skip:], walked[skip:]
    motion = ego_motion(ego.route, BEGIN, driven[:, 0])
    if eventful and not _is_worth_it(motion):
        return None
    tracks = [
        vehicle_track(vehicle, driven[:, i + 1])
        for i, vehicle in enumerate(vehicles[1:])
    ]
    tracks += [walker_track(w, walked[:, i]) for i, w in enumerate(walkers)]
    times = np.arange(frames) * FRAME_SECONDS
    tracks = [t for t in tracks + standing if _comes_near(t, motion, times)]
    if _is_lonely(motion, tracks, times[-1]):
        return None
    if _collides(motion, tracks, times[-1]):
        return None
    return Scene(ego.route, motion, tracks)


def _copy(v: Vehicle) -> Vehicle:
    return Vehicle(
        v.kind, v.size, v.paint, v.route, v.along, v.cruise, v.speed
    )


def _is_worth_it(motion: Motion) -> bool:
    """Turns by a right angle, brakes hard, drives on, is not stuck."""
    speed = motion.speed[_within(motion)]
    slowest = int(speed.argmin())
    return bool(
        _could_be_worth_it(motion)
        and speed[:slowest].max(initial=0) > speed[slowest] + 2.7
        and speed[slowest:].max() > speed[slowest] + 2.2
        and speed.max() > 5.7
        and speed.min() < 3.0
        and (speed < 0.3).mean() < 0.3
    )


def _could_be_worth_it(motion: Motion) -> bool:
    """What pedestrians in the way can only make worse."""
    inside = _within(motion)
    turned = np.abs(motion.yaw_rate[inside]).sum() / RATE
    return bool(turned > 1.2 and motion.speed[inside].mean() > 3.0)


def _within(motion: Motion) -> np.ndarray:
    """Which samples lie well between the first and the last frame."""
    last = (FRAMES - 1) * FRAME_SECONDS
    return (motion.times >= 0.25) & (motion.times <= last - 0.25)


def _comes_near(track: Track, motion: Motion, times: np.ndarray) -> bool:
    ego = motion.at(times)[:, :2]
    own = np.array([track.at(t)[:2] for t in times])
    return bool(np.linalg.norm(ego - own, axis=1).min() < REACH)


def _is_lonely(motion: Motion, tracks: list[Track], last: float) -> bool:
    """Whether there is too little to see somewhere on the way."""
    counts = []
    for time in np.arange(0, last + FRAME_SECONDS, 1.0):
        ego = motion.at(time)[:2]
        away = [np.hypot(*(t.at(time)[:2] - ego)) for t in tracks]
        counts.append(sum(distance < 40 for distance in away))
    return min(counts) < 4 or sum(counts) < 8 * len(counts)


def _collides(motion: Motion, tracks: list[Track], last: float) -> bool:
    """Whether any two boxes touch while the pictures are taken."""
    sizes = np.array([EGO_SIZE[:2], *(t.size[:2] for t in tracks)])
    for time in np.arange(-0.2, last + FRAME_SECONDS + 0.2, 0.2):
        ego = motion.at(time)
        ego[:2] += EGO_MIDDLE * np.array([math.cos(ego[2]), math.sin(ego[2])])
        poses = np.array([ego, *(t.at(time) for t in tracks)])
        moving = [t.speed_at(time) > 0 for t in tracks]
        if overlaps(poses, sizes, np.array([True, *moving])):
            return True
    return False
