"""Draws flat-shaded solids on a ground plane through pinhole cameras.

Everything is in one right-handed frame in metres: x right, y forward, z up.
Colours are BGR, 0 to 255.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

SKY_TOP = np.array([215.0, 165.0, 110.0])
HAZE = np.array([226.0, 214.0, 200.0])
SUN = np.array([0.45, -0.25, 0.86])
HAZE_METRES = 90.0
NEAR_METRES = 0.05
SUBPIXEL_BITS = 4


class Face(NamedTuple):
    """A flat polygon; the normal of a ground mark is not used."""

    points: np.ndarray  # [k, 3] metres
    colour: tuple[float, float, float]
    normal: np.ndarray | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: ``cam2img [3, 3]``, ``lidar2cam [4, 4]``, pixels."""

    cam2img: np.ndarray
    lidar2cam: np.ndarray
    width: int = 1600
    height: int = 900

    @property
    def centre(self) -> np.ndarray:
        """Position of the camera in the scene, ``[3]`` metres."""
        rotation, shift = self.lidar2cam[:3, :3], self.lidar2cam[:3, 3]
        return -rotation.T @ shift


def cuboid(
    centre: np.ndarray,
    size: np.ndarray,
    yaw: float,
    colour: tuple[float, float, float],
    taper: float = 1.0,
) -> list[Face]:
    """Returns the six faces of a box.

    Args:
        centre: ``[3]``, the middle of the bottom.
        size: ``(length, width, height)``.
        yaw: Counter-clockwise heading of the length from +x, radians.
        colour: Colour before shading.
        taper: Size of the top relative to the bottom, for cones and cabins.
    """
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, -sin], [sin, cos]])
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    bottom = np.c_[unit * size[:2] @ turn.T, np.zeros(4)] + centre
    top = np.c_[unit * size[:2] * taper @ turn.T, np.full(4, size[2])]
    top = top + centre
    faces = [Face(top, colour, np.array([0.0, 0.0, 1.0]))]
    for i in range(4):
        j = (i + 1) % 4
        side = np.stack([bottom[i], bottom[j], top[j], top[i]])
        normal = np.cross(side[1] - side[0], np.array([0.0, 0.0, 1.0]))
        faces.append(Face(side, colour, normal / np.linalg.norm(normal)))
    return faces


def render(
    camera: Camera,
    ground_z: float,
    road_half_width: float,
    marks: Iterable[Face],
    solids: Iterable[list[Face]],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the picture of one camera.

    Args:
        camera: The camera.
        ground_z: Height of the ground.
        road_half_width: The road is where abs(x) is below this.
        marks: Polygons on the ground, drawn in order.
        solids: Groups of faces; the farther group is drawn first.
        rng: Source of the ground's grain.

    Returns:
        ``[height, width, 3]`` uint8 BGR.
    """
    img = _background(camera, ground_z, road_half_width, rng)
    for mark in marks:
        _fill(img, camera, mark.points, mark.colour)
    eye = camera.centre
    for faces in sorted(solids, key=lambda group: -_distance(group, eye)):
        seen = [f for f in faces if f.normal @ (eye - f.points[0]) > 0]
        for face in sorted(seen, key=lambda face: -_distance([face], eye)):
            light = 0.55 + 0.45 * max(0.0, float(face.normal @ SUN))
            _fill(img, camera, face.points, np.array(face.colour) * light)
    return img


def _background(
    camera: Camera,
    ground_z: float,
    road_half_width: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sky, road and grass by one ray per 2x2 pixels."""
    columns = np.arange(0.5, camera.width, 2) + 0.5
    rows = np.arange(0.5, camera.height, 2) + 0.5
    u, v = np.meshgrid(columns, rows)
    rays = np.stack([u, v, np.ones_like(u)], -1)
    rays = rays @ np.linalg.inv(camera.cam2img).T @ camera.lidar2cam[:3, :3]
    eye = camera.centre
    drop = np.minimum(rays[..., 2], -1e-3)
    reach = (ground_z - eye[2]) / drop
    x = eye[0] + reach * rays[..., 0]
    distance = reach * np.hypot(rays[..., 0], rays[..., 1])
    grain = rng.normal(0, 5, u.shape + (1,))
    road = np.abs(x) < road_half_width
    walk = ~road & (np.abs(x) < road_half_width + 3)
    ground = np.select(
        [road[..., None], walk[..., None]],
        [np.array([92.0, 90.0, 88.0]), np.array([150.0, 156.0, 160.0])],
        np.array([82.0, 138.0, 108.0]),
    )
    ground = _in_haze(ground + grain, distance[..., None])
    up = np.clip(rays[..., 2:] / 0.5, 0, 1)
    sky = HAZE + (SKY_TOP - HAZE) * up
    img = np.where(rays[..., 2:] < -1e-3, ground, sky)
    img = np.clip(img, 0, 255).astype(np.uint8)
    return cv2.resize(img, (camera.width, camera.height))


def _fill(
    img: np.ndarray, camera: Camera, points: np.ndarray, colour: np.ndarray
) -> None:
    """Projects the part of a polygon in front of the camera and fills it."""
    rotation, shift = camera.lidar2cam[:3, :3], camera.lidar2cam[:3, 3]
    inside = (points @ rotation.T + shift) @ camera.cam2img.T
    inside = _clip(inside, inside[:, 2] - NEAR_METRES)
    if len(inside) < 3:
        return
    pixels = inside[:, :2] / inside[:, 2:] * (1 << SUBPIXEL_BITS)
    distance = np.linalg.norm(points.mean(0) - camera.centre)
    shade = _in_haze(np.asarray(colour, dtype=float), distance)
    cv2.fillPoly(
        img,
        [np.round(pixels).astype(np.int32)],
        tuple(np.clip(shade, 0, 255).tolist()),
        cv2.LINE_AA,
        SUBPIXEL_BITS,
    )


def _clip(points: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """The part of a polygon where ``signed`` (one per point) is positive."""
    if (signed > 0).all():
        return points
    kept = []
    for i, here in enumerate(signed):
        j = (i + 1) % len(points)
        if here > 0:
            kept.append(points[i])
        if (here > 0) != (signed[j] > 0):
            share = here / (here - signed[j])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.array(kept).reshape(-1, 3)


def _distance(faces: list[Face], eye: np.ndarray) -> float:
    middle = np.mean([face.points.mean(0) for face in faces], axis=0)
    return float(np.linalg.norm(middle - eye))


def _in_haze(colour: np.ndarray, distance: np.ndarray | float) -> np.ndarray:
    share = 1 - np.exp(-np.asarray(distance) / HAZE_METRES)
    return colour + (HAZE - colour) * share
