"""Writes the files of a scene and their rows in the tables."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from projects.VAD.mini_world.boxes import inside
from projects.VAD.mini_world.can_bus import can_messages
from projects.VAD.mini_world.ground import Ground, draw_ground
from projects.VAD.mini_world.lidar import sweep
from projects.VAD.mini_world.pictures import Body, draw
from projects.VAD.mini_world.rig import (
    CAMERA_NAMES,
    CHANNELS,
    DELAYS,
    lidar_to_ego,
    yaw_quaternion,
)
from projects.VAD.mini_world.scenes import Scene
from projects.VAD.mini_world.solids import solid
from projects.VAD.mini_world.tables import (
    CATEGORY_OF,
    attribute_of,
    box_rows,
    link,
    visibility_token,
)
from projects.VAD.mini_world.town import Town
from projects.VAD.mini_world.tracks import FRAME_SECONDS, FRAMES, Track

LOCATION = 'boston-seaport'
ANNOTATED_METRES = 45.0
DRAWN_METRES = 95.0
BRAKE_LIGHT = -0.5
JPEG_QUALITY = 90


@dataclass
class Sighting:
    """One object in one key frame."""

    pose: np.ndarray
    speed: float
    share: float
    points: int


@dataclass
class World:
    """What is being written.

    Attributes:
        root: Folder of the dataset.
        size: Width and height of the pictures.
        token: Gives the token of a name.
        tables: Rows by the name of the table.
        frames: Key frames of each scene.
        drawn: Which of them get pictures and a sweep, all by default. An
            object that is to be annotated must be seen in one of them.
    """

    root: Path
    town: Town
    size: tuple[int, int]
    token: Callable[[str], str]
    tables: dict[str, list[dict]] = field(default_factory=dict)
    frames: int = FRAMES
    drawn: Sequence[int] | None = None


def write_scene(
    world: World,
    scene: Scene,
    name: str,
    start_us: int,
    rng: np.random.Generator,
) -> None:
    """Writes pictures, sweeps and CAN bus; adds the rows to the tables.

    Args:
        world: Is added to.
        scene: What happens.
        name: Name of the scene.
        start_us: Time stamp of its first key frame.
        rng: Source of the ground's grain.
    """
    log = f'mini-world-{name}'
    for channel in CHANNELS:
        folder = world.root / 'samples' / channel
        folder.mkdir(parents=True, exist_ok=True)
    _write_can_bus(world.root / 'can_bus', scene, name, start_us)
    poses = scene.motion.poses
    if world.drawn is not None:
        poses = scene.motion.at(np.array(world.drawn) * FRAME_SECONDS)
    xy = poses[:, :2]
    ground = draw_ground(
        world.town, xy.min(0) - DRAWN_METRES, xy.max(0) + DRAWN_METRES, rng
    )
    world.tables['log'].append(
        dict(
            token=world.token(log),
            logfile=log,
            vehicle='mini-world',
            date_captured='2018-06-26',
            location=LOCATION,
        )
    )
    samples = _sample_rows(world, name, start_us)
    sightings: list[dict[int, Sighting]] = []
    data: dict[str, list[dict]] = {channel: [] for channel in CHANNELS}
    for frame, sample in enumerate(samples):
        seen = _write_frame(world, scene, ground, frame, sample, log, data)
        sightings.append(seen)
    for rows in data.values():
        link(rows)
        world.tables['sample_data'] += rows
    _add_instances(world, scene, name, samples, sightings)


def _write_can_bus(
    folder: Path, scene: Scene, name: str, start_us: int
) -> None:
    folder.mkdir(exist_ok=True)
    messages = can_messages(scene.motion, scene.route, start_us)
    for kind, rows in messages.items():
        path = folder / f'{name}_{kind}.json'
        path.write_text(json.dumps(rows), encoding='ascii')


def _sample_rows(world: World, name: str, start_us: int) -> list[dict]:
    """Adds the scene and its key frames; returns the latter."""
    scene_token = world.token(name)
    rows = [
        dict(
            token=world.token(f'{name} sample {i}'),
            timestamp=start_us + round(i * FRAME_SECONDS * 1e6),
            prev='',
            next='',
            scene_token=scene_token,
        )
        for i in range(world.frames)
    ]
    link(rows)
    world.tables['sample'] += rows
    world.tables['scene'].append(
        dict(
            token=scene_token,
            log_token=world.token(f'mini-world-{name}'),
            nbr_samples=world.frames,
            first_sample_token=rows[0]['token'],
            last_sample_token=rows[-1]['token'],
            name=name,
            description='Drawn town: turns at junctions, brakes, drives on',
        )
    )
    return rows


def _write_frame(
    world: World,
    scene: Scene,
    ground: Ground,
    frame: int,
    sample: dict,
    log: str,
    data: dict[str, list[dict]],
) -> dict[int, Sighting]:
    """Writes seven files of a key frame; returns what is to annotate."""
    time = frame * FRAME_SECONDS
    rows = {c: _data_row(world, scene, c, sample, log) for c in CHANNELS}
    for channel, row in rows.items():
        data[channel].append(row)
    boxes = _boxes(_bodies(world.town, scene, time))[: len(scene.tracks)]
    share, points = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=int)
    if world.drawn is None or frame in world.drawn:
        share = _write_pictures(world, scene, ground, time, rows)
        points = _write_sweep(world, scene, time, rows['LIDAR_TOP'])
    ego = scene.motion.at(time)
    near = np.linalg.norm(boxes[:, :2] - ego[:2], axis=1) < ANNOTATED_METRES
    return {
        int(i): Sighting(
            boxes[i, :3],
            scene.tracks[i].speed_at(time),
            float(share[i]),
            int(points[i]),
        )
        for i in np.flatnonzero(near)
    }


def _write_pictures(
    world: World,
    scene: Scene,
    ground: Ground,
    time: float,
    rows: dict[str, dict],
) -> np.ndarray:
    """Writes the pictures; returns the visible share of each object."""
    shown = np.zeros(len(scene.tracks))
    whole = np.zeros(len(scene.tracks))
    for name in CAMERA_NAMES:
        at = time + DELAYS[name]
        bodies = _bodies(world.town, scene, at)
        view = draw(name, scene.motion.at(at), ground, bodies, world.size)
        shown += view.shown[: len(shown)]
        whole += view.whole[: len(whole)]
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        content = cv2.imencode('.jpg', view.picture, quality)[1]
        path = world.root / rows[name]['filename']
        path.write_bytes(content.tobytes())
    return shown / np.maximum(whole, 1)


def _write_sweep(
    world: World, scene: Scene, time: float, row: dict
) -> np.ndarray:
    """Writes a LiDAR file; returns the number of points in each object."""
    ego = scene.motion.at(time)
    boxes = _boxes(_bodies(world.town, scene, time))
    mount = lidar_to_ego()
    points, hit = sweep(ego, mount[2, 3], mount[0, 3], boxes)
    (world.root / row['filename']).write_bytes(points.tobytes())
    count = len(scene.tracks)
    on_objects = points[(hit >= 0) & (hit < count)]
    placed = _on_map(on_objects, ego, mount)
    return inside(placed, boxes[:count, :3], boxes[:count, 3:])


def _boxes(bodies: list[Body]) -> np.ndarray:
    """x, y, yaw, length, width, height of each body, ``[n, 6]``."""
    boxes = np.array([(*b.pose, *b.size) for b in bodies])
    # The tables keep these digits.
    boxes[:, :2] = np.round(boxes[:, :2], 4)
    return boxes


def _bodies(town: Town, scene: Scene, time: float) -> list[Body]:
    """Objects, in their order, and then the houses around the car."""
    ego = scene.motion.at(time)
    bodies = []
    for track in scene.tracks:
        braking = track.acceleration_at(time) < BRAKE_LIGHT
        faces = solid(track.kind, track.paint, braking)
        bodies.append(Body(track.at(time), np.array(track.size), faces))
    centres = np.array([house[0] for house in town.houses]).reshape(-1, 2)
    away = np.linalg.norm(centres - ego[:2], axis=1)
    for i in np.flatnonzero(away < DRAWN_METRES):
        centre, size, yaw, paint = town.houses[i]
        pose = np.array([*centre, yaw])
        bodies.append(Body(pose, size, solid('house', paint)))
    return bodies


def _on_map(
    points: np.ndarray, ego: np.ndarray, mount: np.ndarray
) -> np.ndarray:
    """Points of a sweep in the frame of the map, ``[k, 3]``."""
    on_car = points[:, :3].astype(np.float64) @ mount[:3, :3].T + mount[:3, 3]
    cos, sin = np.cos(ego[2]), np.sin(ego[2])
    turned = on_car[:, :2] @ np.array([[cos, sin], [-sin, cos]]) + ego[:2]
    return np.c_[turned, on_car[:, 2]]


def _data_row(
    world: World, scene: Scene, channel: str, sample: dict, log: str
) -> dict:
    """Adds the ego pose of a file; returns the file's row."""
    is_camera = channel in CAMERA_NAMES
    stamp = sample['timestamp'] + round(DELAYS[channel] * 1e6)
    token = world.token(f'{log} {channel} {stamp}')
    first = world.tables['sample'][-world.frames]['timestamp']
    x, y, yaw = scene.motion.at((stamp - first) / 1e6).tolist()
    world.tables['ego_pose'].append(
        dict(
            token=token,
            timestamp=stamp,
            rotation=yaw_quaternion(yaw),
            translation=[x, y, 0.0],
        )
    )
    ending = 'jpg' if is_camera else 'pcd.bin'
    file_name = f'{log}__{channel}__{stamp}.{ending}'
    return dict(
        token=token,
        sample_token=sample['token'],
        ego_pose_token=token,
        calibrated_sensor_token=world.token(f'calibrated {channel}'),
        timestamp=stamp,
        fileformat='jpg' if is_camera else 'pcd',
        is_key_frame=True,
        height=world.size[1] if is_camera else 0,
        width=world.size[0] if is_camera else 0,
        filename=f'samples/{channel}/{file_name}',
        prev='',
        next='',
    )


def _add_instances(
    world: World,
    scene: Scene,
    name: str,
    samples: list[dict],
    sightings: list[dict[int, Sighting]],
) -> None:
    """Adds the chain of annotations of every object that was ever seen."""
    for i, track in enumerate(scene.tracks):
        frames = [f for f, seen in enumerate(sightings) if i in seen]
        for run in _unbroken(frames):
            seen = [sightings[f][i] for f in run]
            if not any(s.points or s.share for s in seen):
                continue
            instance = world.token(f'{name} instance {i} {run[0]}')
            rows = [
                _annotation(world, track, s, instance, samples[f]['token'])
                for f, s in zip(run, seen, strict=True)
            ]
            link(rows)
            world.tables['sample_annotation'] += rows
            world.tables['instance'].append(
                dict(
                    token=instance,
                    category_token=world.token(CATEGORY_OF[track.kind]),
                    nbr_annotations=len(rows),
                    first_annotation_token=rows[0]['token'],
                    last_annotation_token=rows[-1]['token'],
                )
            )


def _unbroken(frames: list[int]) -> list[list[int]]:
    """Splits frame numbers where one is missing."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][-1] + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def _annotation(
    world: World, track: Track, seen: Sighting, instance: str, sample: str
) -> dict:
    attribute = attribute_of(track.kind, seen.speed, track.parked)
    rotation = yaw_quaternion(float(seen.pose[2]))
    return dict(
        token=world.token(f'annotation {instance} {sample}'),
        sample_token=sample,
        instance_token=instance,
        visibility_token=visibility_token(seen.share),
        attribute_tokens=[world.token(attribute)] if attribute else [],
        **box_rows(seen.pose, track.size, rotation),
        prev='',
        next='',
        num_lidar_pts=seen.points,
        num_radar_pts=0,
    )
