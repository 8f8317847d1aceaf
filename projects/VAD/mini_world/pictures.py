"""Draws what a camera sees: sky, ground and solids, and how much of each.

The ground is one warped picture; solids are painted from the farthest to
the nearest. A second picture holds the number of the object in each pixel.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from projects.VAD.mini_world.boxes import corners
from projects.VAD.mini_world.ground import Ground
from projects.VAD.mini_world.rig import (
    camera_to_ego,
    intrinsics,
    pose_matrix,
)
from projects.VAD.mini_world.solids import SUN, Faces

SKY_TOP = np.array([215.0, 165.0, 110.0])
HAZE = np.array([226.0, 214.0, 200.0])
HAZE_METRES = 110.0
NEAR = 0.3
SUBPIXEL_BITS = 4
# Rows of the ground are drawn so many times and averaged: far away one
# pixel covers metres of road.
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Body:
    """One thing to draw.

    Attributes:
        pose: x, y of its middle and yaw.
        size: Length, width, height.
        faces: Its faces in the unit box.
    """

    pose: np.ndarray
    size: np.ndarray
    faces: Faces


@dataclass(frozen=True)
class View:
    """A picture ``[h, w, 3]`` uint8 BGR with what is in it.

    Attributes:
        shown: ``[n]`` pixels of each body that can be seen.
        whole: ``[n]`` pixels that could be seen if nothing hid it.
    """

    picture: np.ndarray
    shown: np.ndarray
    whole: np.ndarray


def draw(
    name: str,
    ego: np.ndarray,
    ground: Ground,
    bodies: list[Body],
    size: tuple[int, int],
) -> View:
    """Draws the picture of one camera.

    Args:
        name: The camera.
        ego: Pose ``[3]`` of the car at that moment.
        ground: The ground around.
        bodies: Things on it.
        size: Width and height in pixels.
    """
    camera = camera_to_ego(name)
    to_world = pose_matrix(ego) @ camera
    cam2img = intrinsics(name, *size)
    picture = _background(name, to_world, cam2img, ground, size)
    numbers = np.zeros(size[::-1], dtype=np.uint16)
    shown = np.zeros(len(bodies), dtype=int)
    whole = np.zeros(len(bodies), dtype=int)
    rotation, eye = to_world[:3, :3], to_world[:3, 3]
    seen = _in_view(bodies, rotation, eye, cam2img, size[0])
    order = _far_to_near([bodies[i] for i in seen], eye)
    for i in (seen[k] for k in order):
        shapes = _project(bodies[i], rotation, eye, cam2img)
        hull = _paint(picture, numbers, shapes, i + 1)
        whole[i] = hull
    counts = np.bincount(numbers.ravel(), minlength=len(bodies) + 1)
    shown[:] = counts[1 : len(bodies) + 1]
    return View(picture, np.minimum(shown, whole), whole)


def _background(name, to_world, cam2img, ground, size) -> np.ndarray:
    """Sky above the horizon, the warped ground below it."""
    width, height = size
    horizon = height // 2
    rotation, eye = to_world[:3, :3].T, to_world[:3, 3]
    plane = cam2img @ np.c_[rotation[:, :2], -rotation @ eye]
    rows = height - horizon
    stretch = np.array(
        [
            [1, 0, -0.5],
            [0, SUPERSAMPLING, -SUPERSAMPLING * horizon - 0.5],
            [0, 0, 1.0],
        ]
    )
    warp = stretch @ plane @ ground.to_metres
    tall = cv2.warpPerspective(
        ground.image,
        warp,
        (width, rows * SUPERSAMPLING),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    low = cv2.resize(tall, (width, rows), interpolation=cv2.INTER_AREA)
    sky, clear, haze = _air(cam2img[0, 0], camera_to_ego(name)[2, 3], size)
    mixed = cv2.multiply(low.astype(np.float32), clear)
    mixed += haze
    return np.concatenate([sky, mixed.astype(np.uint8)])


@lru_cache(maxsize=32)
def _air(
    focal: float, above_ground: float, size: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Sky ``[horizon, w, 3]``, share and colour of the haze below it."""
    width, height = size
    horizon = height // 2
    right = (np.arange(width) + 0.5 - width / 2) / focal
    down = (np.arange(height) + 0.5 - height / 2) / focal
    # How far the ray of each pixel comes down on a metre of its way.
    drop = down[:, None] / np.sqrt(right**2 + down[:, None] ** 2 + 1)
    up = np.clip(-drop[:horizon] / 0.5, 0, 1)
    distance = above_ground / np.maximum(drop[horizon:], 1e-3)
    clear = np.exp(-distance / HAZE_METRES).astype(np.float32)
    # Colour by colour: arrays of all three would not stay in the cache.
    sky = [
        (low + (high - low) * up).astype(np.uint8)
        for low, high in zip(HAZE, SKY_TOP, strict=True)
    ]
    haze = [(1 - clear) * np.float32(low) for low in HAZE]
    return cv2.merge(sky), cv2.merge([clear] * 3), cv2.merge(haze)


def _in_view(bodies, rotation, eye, cam2img, width) -> list[int]:
    """Indices of the bodies whose surrounding sphere meets the picture."""
    if not bodies:
        return []
    middle = np.array([(*b.pose[:2], b.size[2] / 2) for b in bodies])
    radius = np.array([np.linalg.norm(b.size) / 2 for b in bodies])
    local = (middle - eye) @ rotation
    slope = width / 2 / cam2img[0, 0]
    aside = np.abs(local[:, 0]) - slope * local[:, 2]
    near = aside < radius * np.hypot(1, slope)
    return np.flatnonzero(near & (local[:, 2] > -radius)).tolist()


def _far_to_near(bodies: list[Body], eye: np.ndarray) -> list[int]:
    """An order in which nothing is painted over what hides it.

    Two boxes with an edge line between them: the one on the eye's side of
    it is in front.
    """
    if not bodies:
        return []
    poses = np.array([b.pose for b in bodies])
    sizes = np.array([b.size[:2] for b in bodies])
    points = corners(poses, sizes)
    edges = np.roll(points, -1, axis=1) - points
    normals = np.stack([edges[..., 1], -edges[..., 0]], -1)
    offset = (normals * points).sum(-1)
    # [i, edge, j]: all of body j outside of that edge of body i.
    away = np.einsum('iek,jck->iejc', normals, points)
    outside = (away > offset[..., None, None] - 1e-6).all(-1)
    eye_outside = (normals @ eye[:2] > offset)[..., None]
    hides = (outside & ~eye_outside).any(1)
    hidden_by = (outside & eye_outside).any(1)
    in_front = (hides | hidden_by.T) & ~(hides.T | hidden_by)
    distance = np.linalg.norm(poses[:, :2] - eye[:2], axis=1)
    left = list(np.argsort(-distance))
    order = []
    while left:
        # A body can be painted when nothing left is behind it.
        ready = (
            i for i in left if not any(in_front[i, j] for j in left if j != i)
        )
        chosen = next(ready, left[0])
        left.remove(chosen)
        order.append(int(chosen))
    return order


def _project(body, rotation, eye, cam2img):
    """Visible faces as pixel polygons with their shaded colours, hull last."""
    cos, sin = np.cos(body.pose[2]), np.sin(body.pose[2])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
    foot = np.array([body.pose[0], body.pose[1], 0.0])
    points = (body.faces.points * body.size) @ turn + foot
    normals = body.faces.normals @ turn
    to_eye = eye - points[:, 0]
    seen = (normals * to_eye).sum(-1) > 0
    points, normals = points[seen], normals[seen]
    colours = body.faces.colours[seen]
    light = 0.6 + 0.4 * np.maximum(normals @ SUN, 0)
    distance = np.linalg.norm(foot - eye)
    clear = np.exp(-distance / HAZE_METRES)
    colours = colours * light[:, None] * clear + HAZE * (1 - clear)
    local = (points - eye) @ rotation
    if (local[..., 2] > NEAR).all():
        return list(zip(_to_pixels(local, cam2img), colours, strict=True))
    polygons = []
    for corner, colour in zip(local, colours, strict=True):
        clipped = _clipped(corner)
        if len(clipped) >= 3:
            polygons.append((_to_pixels(clipped, cam2img), colour))
    return polygons


def _to_pixels(points: np.ndarray, cam2img: np.ndarray) -> np.ndarray:
    # The centre of the first pixel is (0, 0) in OpenCV.
    flat = points[..., :2] * (cam2img[0, 0] / points[..., 2:])
    flat = np.clip(flat + cam2img[:2, 2] - 0.5, -4000, 4000)
    return np.round(flat * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _clipped(points: np.ndarray) -> np.ndarray:
    """The part of a polygon in front of the near plane."""
    kept = []
    for here, there in zip(points, np.roll(points, -1, axis=0), strict=True):
        a, b = here[2] - NEAR, there[2] - NEAR
        if a > 0:
            kept.append(here)
        if (a > 0) != (b > 0):
            kept.append(here + (there - here) * a / (a - b))
    return np.array(kept).reshape(-1, 3)


def _paint(picture, numbers, polygons, number) -> int:
    """Fills the polygons; returns how many pixels their outline covers."""
    if not polygons:
        return 0
    for pixels, colour in polygons:
        cv2.fillConvexPoly(
            picture, pixels, colour.tolist(), cv2.LINE_AA, SUBPIXEL_BITS
        )
    stack = np.concatenate([pixels for pixels, _ in polygons])
    hull = cv2.convexHull(stack)
    cv2.fillConvexPoly(numbers, hull, number, cv2.LINE_8, SUBPIXEL_BITS)
    height, width = numbers.shape
    low = np.maximum(stack.min(0) >> SUBPIXEL_BITS, 0)
    high = (stack.max(0) >> SUBPIXEL_BITS) + 2
    window = numbers[low[1] : high[1], low[0] : high[0]]
    return int(np.count_nonzero(window == number))
